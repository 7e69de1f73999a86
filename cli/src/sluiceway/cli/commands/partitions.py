"""retry, pause and resume: whether partitions are worked on."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from sluiceway.cli.changes import change
from sluiceway.cli.commands.specs import DryRun
from sluiceway.cli.connection import Fleet, decoded, operator
from sluiceway.common.errors import SluicewayError
from sluiceway.common.etcd.api import Delete, KeyValue, Op, Txn, modified_at
from sluiceway.common.events import puts
from sluiceway.common.ids import PartitionId
from sluiceway.common.records import EventRecord, FailureRecord, SpecRecord
from sluiceway.common.specs.documents import from_record
from sluiceway.common.specs.models import Document, Pipeline
from sluiceway.common.specs.plan import Current
from sluiceway.common.specs.references import SpecKey
from sluiceway.common.specs.wording import suggestion

_BATCH: Final = 50  # failures a transaction: each takes two operations of etcd's 128

PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE")]


def register(app: typer.Typer) -> None:
    app.command("retry")(retry)
    app.command("pause")(pause)
    app.command("resume")(resume)


def retry(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="PARTITION|PIPELINE")],
    dry_run: DryRun = False,
) -> None:
    """Forget the failures of a partition or of all partitions of a pipeline, so that they are tried again at once.

    Lifts quarantine, too.

    [bold]Examples[/bold]

      sluiceway retry sales

      sluiceway retry sales/orders@0/3
    """

    async def act(fleet: Fleet) -> None:
        failures = await _failures(fleet, target)
        if not failures:
            await _check_applied(fleet, target.partition("/")[0])
            typer.echo(f"nothing to retry: {target} has no recorded failure")
        for start in range(0, len(failures), _BATCH):
            await _forget(fleet, failures[start : start + _BATCH], dry_run=dry_run)

    operator(context).run(act)


def pause(context: typer.Context, name: PipelineName, dry_run: DryRun = False) -> None:
    """Stop delivering a pipeline; progress is kept.

    [bold]Examples[/bold]

      sluiceway pause sales
    """
    _set_paused(context, name, paused=True, dry_run=dry_run)


def resume(context: typer.Context, name: PipelineName, dry_run: DryRun = False) -> None:
    """Go on with a paused pipeline where it stopped.

    [bold]Examples[/bold]

      sluiceway resume sales
    """
    _set_paused(context, name, paused=False, dry_run=dry_run)


def _set_paused(context: typer.Context, name: str, *, paused: bool, dry_run: bool) -> None:
    key = SpecKey("Pipeline", name)

    def wanted(current: Current) -> list[Document]:
        if key not in current.specs:
            known = [each.name for each in current.specs if each.kind == "Pipeline"]
            raise SluicewayError(f"no pipeline {name!r} is applied{suggestion(name, known)}")
        document = from_record(current.specs[key].record)
        assert isinstance(document, Pipeline)
        spec = document.spec.model_copy(update={"paused": paused})
        return [document.model_copy(update={"spec": spec})]

    async def act(fleet: Fleet) -> None:
        await change(fleet, [key], wanted, dry_run=dry_run)

    operator(context).run(act)


async def _check_applied(fleet: Fleet, pipeline: str) -> None:
    """A typing error must not pass for a healthy pipeline.

    Raises:
        SluicewayError: no such pipeline is applied.
    """
    specs = await fleet.read_all(SpecRecord, fleet.keys.specs, "pipelines/")
    known = [name.removeprefix("pipelines/") for name in specs]
    if pipeline not in known:
        raise SluicewayError(f"no pipeline {pipeline!r} is applied{suggestion(pipeline, known)}")


async def _failures(fleet: Fleet, target: str) -> list[KeyValue]:
    """The failure records of a partition, or of a pipeline.

    Raises:
        SluicewayError: the text is neither.
    """
    if "/" not in target:
        return (await fleet.etcd.list(f"{fleet.keys.failures}{target}/")).items
    try:
        item = await fleet.etcd.get(fleet.keys.failure(PartitionId.parse(target)))
    except ValueError as error:
        raise SluicewayError(str(error)) from error
    return [item] if item else []


async def _forget(fleet: Fleet, failures: list[KeyValue], *, dry_run: bool) -> None:
    names = [item.key.removeprefix(fleet.keys.failures) for item in failures]
    if not dry_run:
        author = fleet.author()
        events = [
            EventRecord(
                at=author.at,
                actor=author.name,
                action="retried",
                subject=name,
                reason=_reason(item),
                cause=author.cause,
            )
            for name, item in zip(names, failures, strict=True)
        ]
        operations: list[Op] = [Delete(item.key) for item in failures]
        guards = [modified_at(item.key, item.mod_revision) for item in failures]
        if not (await fleet.etcd.txn(Txn(guards, [*operations, *puts(fleet.keys, events)]))).succeeded:
            raise SluicewayError("a partition failed again meanwhile: look at it, then retry once more")
    for name in names:
        typer.echo(f"- failures of {name} {'would be forgotten' if dry_run else 'forgotten'}")


def _reason(item: KeyValue) -> str:
    failure = decoded(FailureRecord, item.key, item.value)
    return f"had failed {failure.count} time(s), last with {failure.kind.value}: {failure.error}"
