"""One partition from feed to sink: the runner on the fake etcd and the fake store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import LeaseLost, OffsetOutOfRange, SluicewayError, SourceUnavailable
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import LeaseRecord, ProgressRecord, decode, encode
from sluiceway.common.specs.models import PipelineSpec
from sluiceway.worker.batches import DecodedBlock, LogIdentity, RecordBlock
from sluiceway.worker.decode.blocks import decode_block
from sluiceway.worker.decode.json_records import JsonDecoder
from sluiceway.worker.decode.registry import SchemaRegistry
from sluiceway.worker.failures import DeadLetterRateExceeded
from sluiceway.worker.objects.fake import FakeStore, Fault
from sluiceway.worker.runner import FLUSH_WORTH_BYTES, Assignment, Runner
from sluiceway.worker.sinks.columns import InferredColumns
from sluiceway.worker.sinks.parquet import ParquetSink
from sluiceway.worker.usage import Usage

PARTITION = PartitionId("p", "t", 0, 0)
KEYS = Keys("test")
THREADS = ThreadPoolExecutor(1)
SPEC = {"topics": ["t"], "sink": {"url": "file:///unused"}}


def block(start: int, values: list[bytes], *, size_bytes: int | None = None) -> RecordBlock:
    offsets = list(range(start, start + len(values)))
    return RecordBlock(
        offsets=offsets,
        timestamps_ms=[0] * len(values),
        keys=[None] * len(values),
        values=list(values),
        start_offset=start,
        next_offset=start + len(values),
        size_bytes=sum(map(len, values)) if size_bytes is None else size_bytes,
    )


def rows(start: int, end: int) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(start, end)]


@dataclass
class ListFeed:
    """Gives out what it was given, then waits for ever or raises."""

    blocks: list[RecordBlock]
    end: Exception | None = None
    position: int = 0
    log_end: int = -1
    problem: str | None = None
    closed: bool = False
    log: LogIdentity = field(default_factory=lambda: LogIdentity("ab12", 3))
    drained: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> RecordBlock:
        if self.blocks:
            found = self.blocks.pop(0)
            self.position = found.next_offset
            return found
        self.drained.set()
        if self.end is not None:
            raise self.end
        return await asyncio.Future()

    async def close(self) -> None:
        self.closed = True


@dataclass
class ListSource:
    feeds: list[ListFeed]
    opened_at: list[int] = field(default_factory=list)
    logs: list[LogIdentity] = field(default_factory=list)

    async def open(self, offset: int, log: LogIdentity) -> ListFeed:
        self.opened_at.append(offset)
        self.logs.append(log)
        return self.feeds[len(self.opened_at) - 1]

    async def first_offset(self) -> int:
        return 0


class CountingBudget:
    def __init__(self, reserved: int) -> None:
        self.reserved = self.peak = reserved

    def take(self, size_bytes: int) -> None:
        self.reserved += size_bytes
        self.peak = max(self.peak, self.reserved)

    def release(self, size_bytes: int) -> None:
        self.reserved -= size_bytes


class AlwaysHeld:
    def check(self) -> None:
        return


class Rig:
    """A runner on fakes, with what a test looks at afterwards."""

    def __init__(self, *feeds: ListFeed, spec: dict[str, object] | None = None) -> None:
        self.feeds, self.source = feeds, ListSource(list(feeds))
        self.spec = PipelineSpec.model_validate(SPEC | (spec or {}))
        self.etcd, self.store = FakeEtcd(), FakeStore()
        self.budget = CountingBudget(sum(b.size_bytes for feed in feeds for b in feed.blocks))
        self.first_deliveries = 0

    async def start(self) -> Runner:
        await self.etcd.put(KEYS.lease(PARTITION), encode(LeaseRecord(holder="w")))
        lease = await self.etcd.get(KEYS.lease(PARTITION))
        assert lease is not None
        decoder = JsonDecoder(PARTITION, self.spec.format, self.spec.origin)
        registry = SchemaRegistry(self.etcd, KEYS, PARTITION.pipeline, PARTITION.topic, decoder.limits)

        sink = ParquetSink(
            partition=PARTITION,
            token=lease.create_revision,
            spec=self.spec,
            spec_hash="h",
            etcd=self.etcd,
            keys=KEYS,
            store=self.store,
            columns=InferredColumns(decoder, registry),
            session=AlwaysHeld(),
            clock=SystemClock(),
        )

        async def decoded(found: RecordBlock) -> DecodedBlock:
            return await decode_block(decoder, found, registry, THREADS)

        async def first_delivery() -> None:
            self.first_deliveries += 1

        return Runner(
            Assignment(partition=PARTITION, token=lease.create_revision, spec=self.spec, spec_hash="h"),
            source=self.source,
            decode=decoded,
            sink=sink,
            budget=self.budget,
            clock=SystemClock(),
            usage=Usage(pipeline=PARTITION.pipeline),
            on_first_delivery=first_delivery,
        )

    async def progress(self) -> ProgressRecord:
        item = await self.etcd.get(KEYS.progress(PARTITION))
        assert item is not None
        return decode(ProgressRecord, item.value)

    def delivered(self) -> list[int]:
        offsets: list[int] = []
        for key in list(self.store.objects):
            if key.startswith("data/"):
                offsets += pq.read_table(pa.BufferReader(self.store.read(key))).column("_offset").to_pylist()
        return sorted(offsets)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_blocks_become_cuts_when_they_reach_the_limit_and_the_budget_is_given_back() -> None:
    feed = ListFeed([block(0, rows(0, 5)), block(5, rows(5, 10)), block(10, rows(10, 12))])
    rig = Rig(feed, spec={"cut": {"max_records": 5}})
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: len(rig.delivered()) >= 10)
    runner.stop()
    await running
    end = (await rig.progress()).next_offset  # 10: the last records are cheaper to read again; 12: they joined a cut
    assert end in (10, 12)
    assert rig.delivered() == list(range(end))
    assert (rig.budget.reserved, rig.first_deliveries, feed.closed) == (0, 1, True)


async def test_on_stop_a_large_buffer_is_flushed() -> None:
    feed = ListFeed([block(0, rows(0, 5), size_bytes=FLUSH_WORTH_BYTES)])
    rig = Rig(feed)
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: runner.buffered_bytes > 0)
    runner.stop()
    await running
    assert rig.delivered() == [0, 1, 2, 3, 4]
    assert rig.budget.reserved == 0


async def test_short_memory_makes_a_cut_at_once() -> None:
    feed = ListFeed([block(0, rows(0, 5))])
    rig = Rig(feed)
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: runner.buffered_bytes > 0)
    runner.relieve()
    await until(lambda: rig.delivered() == [0, 1, 2, 3, 4])
    runner.stop()
    await running


async def test_while_the_sink_hangs_no_more_than_one_further_cut_is_read() -> None:
    feed = ListFeed([block(start, rows(start, start + 2)) for start in range(0, 20, 2)])
    rig = Rig(feed, spec={"cut": {"max_records": 4}})
    hanging = threading.Event()
    rig.store.faults = lambda operation, key: None if hanging.wait(20) else Fault.REFUSED
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: feed.position == 8)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert feed.position == 8
    hanging.set()
    await until(lambda: rig.delivered() == list(range(20)))
    runner.stop()
    await running
    assert rig.budget.reserved == 0


async def test_many_tiny_records_count_with_the_room_that_they_take() -> None:
    feed = ListFeed([block(0, [b"{}"] * 1000)])
    rig = Rig(feed)
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: runner.buffered_bytes > 0)
    assert runner.buffered_bytes == rig.budget.peak > 10 * 2000
    runner.relieve()
    await until(lambda: len(rig.delivered()) == 1000)
    runner.stop()
    await running
    assert rig.budget.reserved == 0


async def test_a_gap_is_skipped_by_policy_and_counted_as_lost() -> None:
    gap = OffsetOutOfRange(3, 10, 12)
    rig = Rig(
        ListFeed([block(0, rows(0, 3))], end=gap),
        ListFeed([block(10, rows(10, 12))]),
        spec={"on_offset_out_of_range": "earliest", "cut": {"max_age_s": 0.01}},
    )
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: rig.delivered() == [0, 1, 2, 10, 11])
    runner.stop()
    await running
    progress = await rig.progress()
    assert (progress.next_offset, progress.lost, progress.delivered) == (12, 7, 5)
    assert (progress.topic_id, progress.leader_epoch) == ("ab12", 3)
    assert rig.source.logs == [LogIdentity(), LogIdentity("ab12", 3)]
    assert rig.source.opened_at == [0, 10]
    assert rig.budget.reserved == 0


async def test_what_a_partly_aborted_cut_left_is_delivered_in_small_cuts_without_a_restart() -> None:
    """INV-DELIVERY-1"""
    feed = ListFeed([block(start, rows(start, start + 2)) for start in range(0, 10, 2)])
    rig = Rig(feed, spec={"cut": {"max_records": 2}})
    runner = await rig.start()
    left = ProgressRecord(next_offset=0, pending=[(0, 2), (6, 8)], pending_end=8)
    await rig.etcd.put(KEYS.progress(PARTITION), encode(left))
    running = asyncio.create_task(runner.run())
    await until(lambda: running.done() or len(rig.delivered()) >= 6)
    runner.stop()
    await running
    assert rig.delivered() == [0, 1, 6, 7, 8, 9]
    assert len(rig.source.opened_at) == 1


@pytest.mark.parametrize("error", [OffsetOutOfRange(3, 10, 12), SourceUnavailable("broker down")])
async def test_what_cannot_be_read_ends_the_runner_after_what_came_before_is_delivered(error: SluicewayError) -> None:
    feed = ListFeed([block(0, rows(0, 3))], end=error)
    rig = Rig(feed)
    runner = await rig.start()
    with pytest.raises(type(error)):
        await runner.run()
    assert rig.delivered() == [0, 1, 2]
    assert (rig.budget.reserved, feed.closed) == (0, True)


async def test_mostly_bad_records_release_the_partition_and_write_nothing() -> None:
    feed = ListFeed([block(0, [b"no json"] * 20)])
    rig = Rig(feed, spec={"dead_letters": {"min_records": 10}, "cut": {"max_age_s": 0.01}})
    runner = await rig.start()
    with pytest.raises(DeadLetterRateExceeded, match="20 of the last 20"):
        await runner.run()
    assert rig.store.objects == {}
    assert rig.budget.reserved == 0


async def test_a_holder_whose_lease_is_gone_writes_nothing() -> None:
    """INV-LEASE-2"""
    feed = ListFeed([block(0, rows(0, 5))])
    rig = Rig(feed)
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: runner.buffered_bytes > 0)
    await rig.etcd.delete(KEYS.lease(PARTITION))
    runner.relieve()
    with pytest.raises(LeaseLost):
        await running
    assert rig.store.objects == {}
    assert rig.budget.reserved == 0


async def test_cancelled_twice_the_feed_is_closed_all_the_same() -> None:
    feed = ListFeed([block(0, rows(0, 5))])
    rig = Rig(feed)
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: feed.drained.is_set())
    running.cancel()
    await asyncio.sleep(0)  # it begins to clean up
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (rig.budget.reserved, feed.closed) == (0, True)


async def test_cancelling_gives_everything_back() -> None:
    feed = ListFeed([block(0, rows(0, 5)), block(5, rows(5, 8))])
    rig = Rig(feed)
    runner = await rig.start()
    running = asyncio.create_task(runner.run())
    await until(lambda: feed.drained.is_set())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (rig.budget.reserved, feed.closed) == (0, True)
