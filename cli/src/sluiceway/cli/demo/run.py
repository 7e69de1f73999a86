"""One run of the demo: from options to a verified report."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sluiceway.cli.demo.conductor import DemoFailed, Recovery, Watching, kill_and_recover, pour_and_deliver, watching
from sluiceway.cli.demo.fleet import FleetOptions, LocalFleet
from sluiceway.cli.demo.generate import Traffic
from sluiceway.cli.demo.pace import Pace
from sluiceway.cli.demo.pour import Poured, create_topics
from sluiceway.cli.demo.progress import Progress
from sluiceway.cli.demo.report import DemoReport
from sluiceway.cli.demo.sink import SinkIndex, index_sink
from sluiceway.cli.demo.sources import Stream, files, generated
from sluiceway.cli.demo.verify import Verification, verify
from sluiceway.common.clock import Clock

DATA: Final = "data"
DEAD_LETTERS: Final = "_dead_letters"
_EVENT_RATE: Final = 20_000  # records per second of event time
_KILL_AFTER: Final = 0.1  # of all records, delivered
_COMPARE: Final = 200_000  # records whose values are compared, at least, where there are as many
_BRAKE_AFTER: Final = 0.5  # of all records, poured


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to run. `compare_every`: compare the values of every so-manieth record, 0: of none, None: of enough."""

    fleet: FleetOptions
    inputs: tuple[Path, ...] = ()
    records: int = 200_000
    seconds: float | None = None
    partitions: int = 12
    kill: bool = False
    seed: int = 0
    max_age_s: float = 3.0
    compare_every: int | None = None
    keep: bool = False


@dataclass(slots=True, kw_only=True)
class _Measured:
    """What one delivery gave, beside what is proven afterwards."""

    poured: Poured = field(default_factory=Poured)
    seconds: float = 0.0
    moves: int = 0
    recovery: Recovery | None = None
    peak_bytes: int = 0


def run_demo(options: DemoOptions, clock: Clock) -> DemoReport:
    """Starts a fleet, pours, delivers, stops and verifies. Leaves the sink's folder and the logs, and no process.

    Raises:
        DemoFailed: the fleet did not deliver.
        ServerFailed: something did not start.
    """
    streams = _streams(options, clock)
    progress = Progress(clock, total=sum(stream.records for stream in streams))
    fleet = LocalFleet(options.fleet)
    progress.say(f"starting etcd, a broker, an object store, a scheduler and {options.fleet.workers} workers")
    try:
        with fleet:
            progress.say(f"they run; until they end, their logs are below {fleet.servers_folder}")
            measured = asyncio.run(_deliver(fleet, streams, options, clock, progress))
            fleet.stop_services()
            progress.say("all is delivered and the workers are drained; now source and sink are compared")
            sink, found = _verify(fleet, streams, options)
    except DemoFailed as error:
        error.add_note(f"logs are kept below {fleet.servers_folder}")
        raise
    except KeyboardInterrupt:
        progress.say(f"interrupted; nothing runs any more, what was written is below {fleet.options.directory}")
        raise
    logs = fleet.servers_folder if options.keep else fleet.keep_logs()
    return _report(options, streams, measured, sink, found, folder=fleet.sink_folder, logs=logs)


def _streams(options: DemoOptions, clock: Clock) -> list[Stream]:
    if options.inputs:
        return files(options.inputs)
    # The last event is from now: brokers may drop records whose time lies far back.
    start_ms = int(clock.now() * 1000) - options.records * 1000 // _EVENT_RATE
    traffic = Traffic(records=options.records, seed=options.seed, start_ms=start_ms, records_per_second=_EVENT_RATE)
    return [generated(traffic)]


async def _deliver(
    fleet: LocalFleet, streams: list[Stream], options: DemoOptions, clock: Clock, progress: Progress
) -> _Measured:
    topics = _topics(streams, options)
    measured = _Measured()
    pace = _pace(streams, options, clock)
    async with watching(fleet, progress.say) as (etcd, seen):
        await create_topics(fleet.stack.bootstrap, list(topics), options.partitions)
        await fleet.apply(etcd, fleet.documents(list(topics), max_age_s=options.max_age_s), clock)
        drawing = asyncio.create_task(progress.follow(seen, measured.poured), name="progress")
        try:
            began = clock.monotonic()
            meanwhile: list[Coroutine[Any, Any, None]] = []
            if options.kill:
                meanwhile.append(_kill(fleet, seen, streams, options, clock, progress, measured, pace))
            await pour_and_deliver(fleet, seen, streams, measured.poured, gate=pace.gate, meanwhile=meanwhile)
            measured.seconds = clock.monotonic() - began
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
        measured.moves = seen.moves
        measured.peak_bytes = max(seen.memory.peaks.values(), default=0)
    return measured


async def _kill(
    fleet: LocalFleet,
    seen: Watching,
    streams: list[Stream],
    options: DemoOptions,
    clock: Clock,
    progress: Progress,
    measured: _Measured,
    pace: Pace,
) -> None:
    """Kills a worker, measures, replaces it."""
    try:
        measured.recovery = await kill_and_recover(
            fleet,
            seen,
            measured.poured,
            clock,
            after_records=max(1, round(_KILL_AFTER * _total(streams))),
            partitions=len(_topics(streams, options)) * options.partitions,
            say=progress.say,
        )
    finally:
        pace.release()
    replacement = fleet.launch_worker(f"worker-{options.fleet.workers}")
    await asyncio.to_thread(replacement.wait_ready)
    progress.say(f"{replacement.name} takes the place of {measured.recovery.worker}")


def _pace(streams: list[Stream], options: DemoOptions, clock: Clock) -> Pace:
    total = _total(streams)
    usual = total / options.seconds if options.seconds else math.inf
    if not options.kill:
        return Pace(clock, records_per_second=usual)
    # Half of what is left lasts for twice the time that a recovery may take.
    brake_rate = 0.5 * (1 - _BRAKE_AFTER) * total / (2 * options.fleet.session_ttl_s + 4)
    return Pace(clock, records_per_second=usual, brake_after=_BRAKE_AFTER * total, brake_rate=max(1.0, brake_rate))


def _total(streams: list[Stream]) -> int:
    return sum(stream.records for stream in streams)


def _topics(streams: list[Stream], options: DemoOptions) -> dict[str, int]:
    return dict.fromkeys(sorted({stream.topic for stream in streams}), options.partitions)


def _verify(fleet: LocalFleet, streams: list[Stream], options: DemoOptions) -> tuple[SinkIndex, Verification]:
    folder = fleet.export()
    sink = index_sink((folder / DATA).rglob("*.parquet"), (folder / DEAD_LETTERS).rglob("*.parquet"))
    topics = _topics(streams, options)
    every = options.compare_every
    if every is None:
        every = max(1, _total(streams) // _COMPARE)
    return sink, asyncio.run(verify(fleet.stack.bootstrap, topics, sink, every=every))


def _report(
    options: DemoOptions,
    streams: list[Stream],
    measured: _Measured,
    sink: SinkIndex,
    found: Verification,
    *,
    folder: Path,
    logs: Path,
) -> DemoReport:
    recovery, budget = measured.recovery, options.fleet.worker_memory_bytes
    data = folder.absolute() / DATA
    topics = sorted({stream.topic for stream in streams})
    return DemoReport(
        produced=found.total("produced"),
        delivered=found.total("delivered"),
        missing=found.total("missing"),
        duplicated=found.total("duplicated"),
        unexpected=found.total("unexpected"),
        dead_letters=found.total("dead_letters"),
        rescued=sink.rescued,
        values_compared=found.values_compared,
        values_different=found.values_different,
        moves=measured.moves,
        killed=recovery.worker if recovery else None,
        recovery_seconds=round(recovery.seconds, 2) if recovery else None,
        ttl_seconds=options.fleet.session_ttl_s,
        seconds=round(measured.seconds, 2),
        records_per_second=round(measured.poured.records / measured.seconds),
        mb_per_second=round(measured.poured.value_bytes / measured.seconds / 1e6, 1),
        workers=options.fleet.workers,
        peak_worker_rss_mb=measured.peak_bytes >> 20,
        memory_budget_mb=budget >> 20,
        within_memory_budget=measured.peak_bytes <= budget,
        empty_lines=sum(stream.empty_lines for stream in streams),
        topics={
            topic: sum(counts.produced for source, counts in found.partitions.items() if source.topic == topic)
            for topic in topics
        },
        files=sink.files,
        file_mb=round(sink.file_bytes / 1e6, 1),
        folder=str(data),
        dead_letter_folder=str(folder.absolute() / DEAD_LETTERS),
        logs=str(logs.absolute()),
        query=f"select _topic, count(*) as records, count(distinct _partition) as partitions "  # noqa: S608
        f"from read_parquet('{data}/**/*.parquet', union_by_name=true) group by all order by all",
        differences=found.different,
    )
