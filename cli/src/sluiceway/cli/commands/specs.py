"""apply, plan, delete, schema: from files to guarded changes of the applied specs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sluiceway.cli.changes import Wanted, change, make_plan, print_plan
from sluiceway.cli.connection import Fleet, operator
from sluiceway.cli.output import Form, FormOption, print_raw
from sluiceway.cli.rendering.plans import as_document
from sluiceway.common.errors import Refused, SpecInvalid
from sluiceway.common.specs import reference
from sluiceway.common.specs.documents import Source, in_order, parse, read
from sluiceway.common.specs.files import read_sources
from sluiceway.common.specs.models import KINDS, PLURALS
from sluiceway.common.specs.references import SpecKey
from sluiceway.common.specs.wording import suggestion

Files = Annotated[
    list[str],
    typer.Option("--filename", "-f", metavar="PATH", help="File, folder or - for standard input; may be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]


def register(app: typer.Typer) -> None:
    app.command("apply")(apply)
    app.command("plan")(show_plan)
    app.command("delete")(delete)
    app.command("schema")(schema)


def apply(
    context: typer.Context,
    filename: Files,
    dry_run: DryRun = False,
    expected: Annotated[
        str | None, typer.Option("--plan", metavar="HASH", help="Apply only if this is still what `plan` printed.")
    ] = None,
) -> None:
    """Make the specs in files true, all of them or none.

    Every problem in every file is reported at once, and then nothing is applied. Past some 40 changes, several
    transactions are needed: each is all or nothing, and applying again goes on from there.

    [bold]Examples[/bold]

      sluiceway apply -f pipelines.yaml

      sluiceway apply -f specs/ --dry-run

      kustomize build | sluiceway apply -f - --plan 5a1c0f3e9b77d210
    """
    asker = operator(context)
    sources = read_sources(filename, asker.stdin)

    touched, wanted = _checked(sources)

    async def act(fleet: Fleet) -> None:
        await change(fleet, touched, wanted, expected=expected, dry_run=dry_run)

    asker.run(act)


def show_plan(context: typer.Context, filename: Files, output: FormOption = Form.TABLE) -> None:
    """Show what `apply` would change, and the hash that `apply --plan` takes.

    Exits with 3 when the changes would be refused.

    [bold]Examples[/bold]

      sluiceway plan -f pipelines.yaml

      sluiceway apply -f specs/ --plan $(sluiceway plan -f specs/ -o json | jq -r .hash)
    """
    asker = operator(context)
    sources = read_sources(filename, asker.stdin)
    touched, wanted = _checked(sources)
    _, made = asker.run(lambda fleet: make_plan(fleet, touched, wanted))
    if output in (Form.JSON, Form.YAML):
        print_raw(as_document(made), output)
    else:
        print_plan(made, done=False)
        typer.echo(f"plan {made.hash}")
    if made.refusals:
        raise Refused("\n".join(map(str, made.refusals)))


def delete(
    context: typer.Context,
    kind: Annotated[str | None, typer.Argument(help="cluster, topic or pipeline")] = None,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...")] = None,
    filename: Annotated[
        list[str] | None, typer.Option("--filename", "-f", metavar="PATH", help="Delete what these files name.")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget the progress of deleted pipelines: a successor starts anew.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Delete specs. Delivered files stay; progress stays too, unless `--forget` is given.

    What others still use is refused. What does not exist counts as deleted.

    [bold]Examples[/bold]

      sluiceway delete pipeline orders

      sluiceway delete -f specs/ --dry-run
    """
    asker = operator(context)
    if (kind is None) == (not filename):
        raise typer.BadParameter("name a KIND and NAMEs, or files with -f")
    doomed = _readable(read_sources(filename, asker.stdin)) if filename else _named(kind or "", names or [])

    async def act(fleet: Fleet) -> None:
        await change(fleet, doomed, lambda _: [], doomed, forget=forget, dry_run=dry_run)

    asker.run(act)


def schema(
    kind: Annotated[str | None, typer.Argument(help="Cluster, Topic or Pipeline; all without it")] = None,
    write_docs: Annotated[
        Path | None, typer.Option("--write-docs", metavar="DOCS", help="Write the reference and schema in this folder.")
    ] = None,
) -> None:
    """Print the JSON Schema of the specs, for editors and checks.

    [bold]Examples[/bold]

      sluiceway schema Pipeline

      sluiceway schema > sluiceway.schema.json
    """
    if write_docs is not None:
        for name, text in reference.documents().items():
            path = write_docs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            typer.echo(f"wrote {path}")
        return
    typer.echo(reference.schema_text(_kind(kind) if kind else None), nl=False)


def _checked(sources: Sequence[Source]) -> tuple[list[SpecKey], Wanted]:
    """The specs that sources name, and how to check them against what is applied."""
    return _in_files(sources), lambda current: parse(sources, current.records())


def _in_files(sources: Sequence[Source]) -> list[SpecKey]:
    parsed, _, _ = read(sources)
    return [each.key for each in parsed]


def _readable(sources: Sequence[Source]) -> list[SpecKey]:
    parsed, problems, _ = read(sources)
    if problems:
        raise SpecInvalid([str(problem) for problem in in_order(problems, sources)])
    return [each.key for each in parsed]


def _named(kind: str, names: Sequence[str]) -> list[SpecKey]:
    if not names:
        raise typer.BadParameter(f"name the {kind} to delete")
    return [SpecKey(_kind(kind), name) for name in names]


def _kind(word: str) -> str:
    """A kind as people write it: any case, singular or plural."""
    by_word = {form.lower(): kind for kind in KINDS for form in (kind, PLURALS[kind])}
    if word.lower() not in by_word:
        raise typer.BadParameter(f"{word!r} is no kind of spec: {', '.join(KINDS)}{suggestion(word, KINDS)}")
    return by_word[word.lower()]
