"""cordon, uncordon and drain: whether workers get leases and keep them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated, Final

import msgspec
import typer

from sluiceway.cli.commands.specs import DryRun
from sluiceway.cli.connection import Fleet, operator
from sluiceway.cli.units import age, seconds
from sluiceway.common.errors import Compacted, Refused, SluicewayError
from sluiceway.common.etcd.api import Delete, Op, Put
from sluiceway.common.records import CordonRecord, EventRecord, WorkerRecord, encode
from sluiceway.common.specs.wording import suggestion

_ATTEMPTS: Final = 5
_WAIT_S: Final = 3600.0

Reason = Annotated[str, typer.Option(help="Why, for the event log and whoever looks next.")]
Worker = Annotated[str, typer.Argument(help="The worker's name, as `get workers` shows it.")]


def register(app: typer.Typer) -> None:
    app.command("cordon")(cordon)
    app.command("uncordon")(uncordon)
    app.command("drain")(drain)


def cordon(context: typer.Context, worker: Worker, reason: Reason = "", dry_run: DryRun = False) -> None:
    """Give a worker no new leases; it keeps those it has. On a draining worker: stop draining it.

    [bold]Examples[/bold]

      sluiceway cordon worker-1 --reason "disk is failing"
    """

    async def act(fleet: Fleet) -> None:
        await _set(fleet, worker, CordonRecord(worker=worker, reason=reason), dry_run=dry_run)

    operator(context).run(act)


def uncordon(context: typer.Context, worker: Worker, dry_run: DryRun = False) -> None:
    """Let a worker have leases again; ends a drain, too.

    [bold]Examples[/bold]

      sluiceway uncordon worker-1
    """

    async def act(fleet: Fleet) -> None:
        await _set(fleet, worker, None, dry_run=dry_run)

    operator(context).run(act)


def drain(
    context: typer.Context,
    worker: Worker,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the worker holds nothing any more.")] = False,
    deadline: Annotated[
        str | None, typer.Option(metavar="SPAN", help="By when it shall be empty, such as 90s or 5m.")
    ] = None,
    reason: Reason = "",
    dry_run: DryRun = False,
) -> None:
    """Move all leases away from a worker, and give it no new ones, until `uncordon`.

    Exits with 4 when --wait does not see the worker empty within the deadline (an hour without one); the drain goes on.

    [bold]Examples[/bold]

      sluiceway drain worker-1 --wait --deadline 5m --reason "kernel update"
    """
    try:
        limit_s = seconds(deadline) if deadline is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    async def act(fleet: Fleet) -> None:
        at = fleet.clock.now() + limit_s if limit_s is not None else None
        wanted = CordonRecord(worker=worker, drain=True, reason=reason, deadline_at=at)
        await _set(fleet, worker, wanted, dry_run=dry_run)
        if wait and not dry_run:
            await until_empty(fleet, worker, limit_s if limit_s is not None else _WAIT_S)

    operator(context).run(act)


async def _set(fleet: Fleet, worker: str, wanted: CordonRecord | None, *, dry_run: bool) -> None:
    """Makes the cordon what is wanted (None: no cordon) and prints what changed."""
    key = fleet.keys.cordon(worker)
    for _ in range(_ATTEMPTS):
        present, revision = await fleet.read(CordonRecord, key)
        if present is None and wanted is not None:
            await _must_exist(fleet, worker)
        if _same(present, wanted):
            typer.echo(f"= worker/{worker} unchanged: {_told(present)}")
            return
        if dry_run:
            typer.echo(f"~ worker/{worker} would change: {_told(present)} → {_told(wanted)}")
            return
        author = fleet.author()
        event = EventRecord(
            at=author.at,
            actor=author.name,
            action=_told(wanted),
            subject=f"worker/{worker}",
            reason=wanted.reason if wanted else "",
            cause=author.cause,
        )
        stamped = msgspec.structs.replace(wanted, by=author.name, at=author.at) if wanted else None
        operation: Op = Put(key, encode(stamped)) if stamped else Delete(key)
        if await fleet.act(key, revision, [operation], event):
            typer.echo(f"~ worker/{worker} {_told(wanted)}")
            return
    raise Refused(f"others changed the cordon of {worker} during each of {_ATTEMPTS} attempts; try again")


async def _must_exist(fleet: Fleet, worker: str) -> None:
    known = await fleet.read_all(WorkerRecord, fleet.keys.workers)
    if worker not in known:
        raise SluicewayError(f"no worker {worker!r} is registered{suggestion(worker, known)}")


def _same(present: CordonRecord | None, wanted: CordonRecord | None) -> bool:
    if present is None or wanted is None:
        return present is wanted
    return (present.drain, present.reason or wanted.reason, wanted.deadline_at) == (
        wanted.drain,
        wanted.reason or present.reason,
        None,
    )


def _told(record: CordonRecord | None) -> str:
    if record is None:
        return "uncordoned"
    return "draining" if record.drain else "cordoned"


async def until_empty(fleet: Fleet, worker: str, limit_s: float) -> None:
    """Returns when the worker holds no lease.

    Raises:
        TimeoutError: it still holds some after the limit.
    """
    started = fleet.clock.monotonic()
    left: set[str] = set()
    try:
        async with asyncio.timeout(limit_s):
            while not await _emptied(fleet, worker, left):
                left.clear()
    except TimeoutError:
        raise TimeoutError(
            f"worker {worker} still holds {len(left)} lease(s) after {age(limit_s)}; the drain goes on: "
            f"`sluiceway describe worker {worker}` tells which"
        ) from None
    typer.echo(f"worker/{worker} holds no lease any more, after {age(fleet.clock.monotonic() - started)}")


async def _emptied(fleet: Fleet, worker: str, left: set[str]) -> bool:
    """Follows the worker's inbox until nothing is left in it; False when it must be listed again."""
    prefix = fleet.keys.inbox(worker)
    listing = await fleet.etcd.list(prefix)
    left.update(item.key for item in listing.items)
    if not left:
        return True
    watch = fleet.etcd.watch(prefix, start_revision=listing.revision + 1)
    try:
        async with aclosing(watch):
            async for batch in watch:
                for event in batch.events:
                    (left.add if event.item else left.discard)(event.key)
                if not left:
                    return True
    except Compacted:
        left.clear()
    return False
