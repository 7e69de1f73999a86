"""Runs the demo's one act on a fleet: pour, watch, kill, wait until everything is delivered.

Role: the doing between `fleet` (processes), `pour` (records) and `watch` (what etcd says). It measures; `verify`
proves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

from sluiceway.cli.demo.fleet import PIPELINE, LocalFleet
from sluiceway.cli.demo.pour import Poured, pour
from sluiceway.cli.demo.sources import Stream
from sluiceway.cli.demo.watch import FleetView, Moves, behind, consumes, observe
from sluiceway.common.clock import Clock
from sluiceway.common.errors import SluicewayError
from sluiceway.common.etcd.api import Etcd
from sluiceway.common.etcd.client import connect
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.settings import EtcdSettings

_LOOK_S: Final = 0.05
_SAMPLE_S: Final = 0.25
_STALL_LIMIT_S: Final = 90.0


class DemoFailed(SluicewayError):
    """The fleet did not do its job; the message has what it says of itself."""


@dataclass(slots=True)
class Memory:
    """The largest resident memory seen of each worker, in bytes."""

    peaks: dict[str, int] = field(default_factory=dict)

    def sample(self, fleet: LocalFleet) -> None:
        for name, service in fleet.workers.items():
            if service.alive:
                try:
                    used = psutil.Process(service.pid).memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                self.peaks[name] = max(self.peaks.get(name, 0), used)


@dataclass(slots=True, kw_only=True)
class Recovery:
    """A worker that was killed while it held partitions. `seconds` is from the kill until all are consumed again."""

    worker: str
    partitions: int
    seconds: float


class Watching:
    """The newest view of the fleet, and what changed on the way to it."""

    def __init__(self, fleet: LocalFleet, mirror: Mirror, say: Callable[[str], None]) -> None:
        self._fleet, self._mirror, self._say = fleet, mirror, say
        self._moves = Moves()
        self.memory = Memory()
        self.view = FleetView()

    @property
    def moves(self) -> int:
        return self._moves.count

    def look(self) -> FleetView:
        self.view = observe(self._mirror.snapshot().items, self._fleet.keys)
        if moved := self._moves.see(self.view):
            shown = "; ".join(moved[:3]) + (f" and {len(moved) - 3} more" if len(moved) > 3 else "")
            self._say(f"moved {shown}")
        return self.view

    async def follow(self) -> None:
        """Looks and samples for ever, so that nothing is missed between questions."""
        while True:
            self.look()
            self.memory.sample(self._fleet)
            await asyncio.sleep(_SAMPLE_S)

    async def until(self, holds: Callable[[FleetView], bool], *, limit_s: float, what: str) -> FleetView:
        """Waits for a condition.

        Raises:
            DemoFailed: it does not come true in time.
        """
        try:
            async with asyncio.timeout(limit_s):
                while not holds(self.look()):  # noqa: ASYNC110 (what is held and reported changes many times a second)
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            raise DemoFailed(f"{what}: not within {limit_s:g} s. {condition(self.view)}") from error
        return self.view


def condition(view: FleetView) -> str:
    """What the fleet says of itself, for errors."""
    state = view.states.get(PIPELINE)
    said = f"{state.condition}: {state.message}" if state else "the scheduler has said nothing of the pipeline"
    return f"{said}. {len(view.holders)} partitions leased, {view.delivered} records delivered"


@asynccontextmanager
async def watching(fleet: LocalFleet, say: Callable[[str], None]) -> AsyncIterator[tuple[Etcd, Watching]]:
    """Follows the fleet's keys while the context lasts."""
    etcd = await connect(EtcdSettings(endpoints=[fleet.stack.etcd_endpoint]))
    mirror = Mirror(etcd, fleet.keys.root)
    seen = Watching(fleet, mirror, say)
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(mirror.run(), name="mirror")]
    try:
        await mirror.wait_for(0)
        tasks.append(asyncio.create_task(seen.follow(), name="follow"))
        yield etcd, seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await etcd.close()


async def pour_and_deliver(
    fleet: LocalFleet,
    seen: Watching,
    streams: Sequence[Stream],
    poured: Poured,
    *,
    gate: Callable[[int], Awaitable[None]],
    meanwhile: Sequence[Coroutine[Any, Any, None]] = (),
) -> None:
    """Pours everything, does `meanwhile` beside it, and returns when all is delivered and committed.

    Raises:
        DemoFailed: nothing has moved for a long time.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pour(fleet.stack.bootstrap, streams, poured, gate), name="pour")
        for number, work in enumerate(meanwhile):
            tasks.create_task(work, name=f"meanwhile {number}")
    await delivered(seen, poured.by_partition)


async def delivered(seen: Watching, ends: Mapping[tuple[str, int], int]) -> None:
    """Returns when progress has reached the ends.

    Raises:
        DemoFailed: progress has stood still for a long time.
    """
    left = behind(seen.look(), PIPELINE, ends)
    while left:
        last = left
        await seen.until(
            lambda view, last=last: behind(view, PIPELINE, ends) < last,  # type: ignore[misc]
            limit_s=_STALL_LIMIT_S,
            what=f"{left} records are still to be delivered",
        )
        left = behind(seen.view, PIPELINE, ends)


async def kill_and_recover(
    fleet: LocalFleet,
    seen: Watching,
    poured: Poured,
    clock: Clock,
    *,
    after_records: int,
    partitions: int,
    say: Callable[[str], None],
) -> Recovery:
    """Kills the worker with the most partitions while records flow; waits until others consume all of them.

    Args:
        after_records: kill once this many are delivered and every one of the `partitions` is leased.

    Raises:
        DemoFailed: it never came to that, or the partitions did not come back.
    """
    view = await seen.until(
        lambda view: view.delivered >= after_records and len(view.holders) >= partitions,
        limit_s=_STALL_LIMIT_S,
        what="waiting for records to flow before the kill",
    )
    victim = max(sorted(fleet.workers), key=lambda worker: len(view.held_by(worker)))
    lost = {p: view.holders[p][1] for p in view.held_by(victim)}
    killed_at = clock.monotonic()
    await asyncio.to_thread(fleet.workers[victim].kill)
    say(f"killed {victim} (kill -9) while it held {len(lost)} partitions")
    waiting = dict(lost)

    def all_back(view: FleetView) -> bool:
        for p, token in lost.items():
            if p in waiting and consumes(view, p, lost_by=token, end=poured.by_partition[p.topic, p.number]):
                del waiting[p]
        return not waiting

    await seen.until(
        all_back,
        limit_s=fleet.options.session_ttl_s + _STALL_LIMIT_S,
        what=f"waiting for the partitions of {victim}",
    )
    took_s = clock.monotonic() - killed_at
    say(f"all {len(lost)} partitions are consumed again {took_s:.2f} s after the kill")
    return Recovery(worker=victim, partitions=len(lost), seconds=took_s)
