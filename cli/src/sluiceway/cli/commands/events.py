"""events: what operators did and schedulers decided, with the reasons."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

import orjson
import typer

from sluiceway.cli.connection import Fleet, decoded, operator
from sluiceway.cli.output import Form, FormOption, print_table
from sluiceway.cli.rendering import events as rendering
from sluiceway.common.errors import Compacted
from sluiceway.common.records import EventRecord


def register(app: typer.Typer) -> None:
    app.command("events")(events)


def events(
    context: typer.Context,
    subject: Annotated[
        str | None, typer.Argument(help="Only about this: pipeline/NAME, a worker, a partition …")
    ] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many past events.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new events until interrupted.")] = False,
    output: FormOption = Form.TABLE,
) -> None:
    """Show what operators did and schedulers decided, oldest first.

    With --follow each event is one line (of JSON with -o json).

    [bold]Examples[/bold]

      sluiceway events -n 20

      sluiceway events pipeline/sales --follow

      sluiceway events worker-1 -o json
    """

    async def act(fleet: Fleet) -> None:
        past, revision = await _past(fleet, subject, last)
        if not follow:
            print_table(rendering.events(past), output)
            return
        for record in past:
            _print_line(record, output)
        await _follow(fleet, subject, output, revision + 1)

    try:
        operator(context).run(act)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(0) from None


async def _past(fleet: Fleet, subject: str | None, last: int) -> tuple[list[EventRecord], int]:
    listing = await fleet.etcd.list(fleet.keys.events)
    records = {item.key: decoded(EventRecord, item.key, item.value) for item in listing.items}
    chosen = _about(subject, records)
    return (chosen[-last:] if last else []), listing.revision


def _about(subject: str | None, records: dict[str, EventRecord]) -> list[EventRecord]:
    if subject is None:
        return [record for _, record in sorted(records.items())]
    return rendering.about(subject, records, len(records))


async def _follow(fleet: Fleet, subject: str | None, output: Form, revision: int) -> None:
    """Prints new events for ever; what is compacted away meanwhile is jumped over, and said."""
    while True:
        watch = fleet.etcd.watch(fleet.keys.events, start_revision=revision)
        try:
            async with aclosing(watch):
                async for batch in watch:
                    new = {e.key: decoded(EventRecord, e.key, e.item.value) for e in batch.events if e.item}
                    for record in _about(subject, new):
                        _print_line(record, output)
                    revision = batch.revision + 1
        except Compacted as error:
            typer.echo("some events were compacted away before they could be shown", err=True)
            revision = error.revision


def _print_line(record: EventRecord, output: Form) -> None:
    row = rendering.event(record)
    if output in (Form.JSON, Form.YAML):
        typer.echo(orjson.dumps(row).decode())
    else:
        typer.echo("   ".join(str(row[key]) for key in ("time", "actor", "action", "subject", "reason")))
