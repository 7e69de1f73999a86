"""The Parquet sink on fakes that fail and stop at every step: rows exactly once, whatever happens.

Proves INV-DELIVERY-1 (each record up to progress is in the data or the dead letters, once), INV-DELIVERY-2 (what lies
beyond progress is decided by the next `open`), INV-LEASE-2 (a former holder changes nothing once its successor settled)
and INV-LEASE-3 (no side effect past the deadline).
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.common.errors import LeaseLost, SinkUnavailable
from sluiceway.common.etcd.api import Txn, TxnResult
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.etcd.fake import Fault as EtcdFault
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import ProgressRecord, decode
from sluiceway.common.specs.models import ParquetSink as ParquetSinkSpec
from sluiceway.common.specs.models import PipelineSpec
from sluiceway.worker.batches import DeadRecord, DecodedBlock
from sluiceway.worker.objects.fake import FakeStore, Fault
from sluiceway.worker.sinks.parquet import Delivery, ParquetSink

PARTITION = PartitionId("events", "logs", 0, 3)
KEYS = Keys("test")
SCHEMA = pa.schema([("text", pa.string()), ("_rescued", pa.string()), ("_offset", pa.int64())])
SPEC = PipelineSpec(topics=["logs"], sink=ParquetSinkSpec(url="file:///nowhere"))


class Crash(BaseException):
    """The process is gone."""


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return 1.7e9 + self.now_s

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s
        await asyncio.sleep(0)


class Lease:
    """The session of a holder: valid until `lost`."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise LeaseLost("past the deadline")


class PlainColumns:
    def unify(self, tables: Sequence[pa.Table]) -> pa.Table:
        return pa.concat_tables(tables)

    def row_bytes(self) -> int:
        return 0

    async def newest(self) -> pa.Schema:
        return SCHEMA


class StoppingEtcd(FakeEtcd):
    """Calls `step` before and after each transaction."""

    step: Callable[[], None] = staticmethod(lambda: None)

    async def txn(self, txn: Txn) -> TxnResult:
        self.step()
        result = await super().txn(txn)
        self.step()
        return result


class StoppingStore(FakeStore):
    step: Callable[[], None] = staticmethod(lambda: None)

    def create(self, key: str, body: bytes | memoryview, metadata: dict[str, str]) -> bool:
        self.step()
        created = super().create(key, body, metadata)
        self.step()
        return created


class World:
    """One partition's etcd and store, and the holders that come one after another."""

    def __init__(self, *, records: int, dead: frozenset[int] = frozenset(), gaps: frozenset[int] = frozenset()) -> None:
        self.records, self.dead, self.gaps = records, dead - gaps, gaps
        self.etcd, self.store, self.clock = StoppingEtcd(), StoppingStore(), ManualClock()
        self.scheduler = self.etcd.connect()  # nobody interferes with this client
        self.nonces = count()

    async def holder(self, *, spec: PipelineSpec = SPEC, lease: Lease | None = None) -> ParquetSink:
        key = KEYS.lease(PARTITION)
        await self.scheduler.delete(key)
        token = await self.scheduler.put(key, b"{}")
        return ParquetSink(
            partition=PARTITION,
            token=token,
            spec=spec,
            spec_hash="hash",
            etcd=self.etcd,
            keys=KEYS,
            store=self.store,
            columns=PlainColumns(),
            session=lease or Lease(),
            clock=self.clock,
            sleep=self.clock.sleep,
            nonce=lambda: f"{next(self.nonces):08x}",
        )

    def blocks(self, start: int, end: int, *, size: int = 7) -> list[DecodedBlock]:
        return [self.block(first, min(first + size, end)) for first in range(start, end, size)]

    def block(self, start: int, end: int) -> DecodedBlock:
        there = [offset for offset in range(start, end) if offset not in self.gaps]
        alive = [offset for offset in there if offset not in self.dead]
        columns = {"text": [f"r{offset}" for offset in alive], "_rescued": [None] * len(alive), "_offset": alive}
        return DecodedBlock(
            partition=PARTITION,
            start_offset=start,
            next_offset=end,
            table=pa.table(columns, schema=SCHEMA),
            dead=[dead_record(offset) for offset in there if offset in self.dead],
            schema_version=1,
            rescued=0,
            size_bytes=100,
        )

    async def finish(self, *, size: int = 9) -> ProgressRecord:
        """A fresh holder delivers all that is left."""
        sink = await self.holder()
        progress = await sink.open()
        while progress.next_offset < self.records:
            end = min(progress.next_offset + size, self.records)
            progress = (await sink.deliver(self.blocks(progress.next_offset, end))).progress
        return progress

    def visible(self, folder: str, column: str) -> list[int]:
        bodies = [self.store.objects[item.key][0] for item in self.store.list(folder)]
        return sorted(offset for body in bodies for offset in pq.read_table(io.BytesIO(body))[column].to_pylist())

    def check_complete(self, progress: ProgressRecord) -> None:
        there = set(range(self.records)) - self.gaps
        assert self.visible("data/", "_offset") == sorted(there - self.dead)
        assert self.visible("_dead_letters/", "offset") == sorted(there & self.dead)
        assert progress.delivered == len(there - self.dead)
        assert progress.dead_letters == len(there & self.dead)
        assert (progress.next_offset, progress.cut, progress.pending) == (self.records, None, [])


def dead_record(offset: int) -> DeadRecord:
    return DeadRecord(
        offset=offset,
        timestamp_ms=1_700_000_000_000 + offset,
        key=None if offset % 2 else b"\xffkey",
        value=b"\x00not json " + str(offset).encode(),
        headers=[("trace", b"\x01"), ("empty", None)],
        error="malformed",
        detail="expected a JSON object",
    )


async def crashing_at(step: int, world: World, act: Callable[[], Awaitable[object]]) -> bool:
    """Runs `act` and stops it dead at its step of that number; False when it ended before."""
    remaining = count(step, -1)

    def stop_at_zero() -> None:
        if next(remaining) == 0:
            raise Crash

    world.etcd.step = world.store.step = stop_at_zero
    try:
        await act()
        return False
    except Crash:
        return True
    finally:
        world.etcd.step = world.store.step = lambda: None


async def test_rows_and_dead_letters_arrive_with_their_origin_and_bytes_unchanged() -> None:
    world = World(records=40, dead=frozenset({3, 4, 20}), gaps=frozenset({10, 11, 39}))
    sink = await world.holder()
    assert (await sink.open()).next_offset == 0
    delivery = await sink.deliver(world.blocks(0, 40))
    assert (delivery.rows, delivery.dead, delivery.objects) == (34, 3, 2)
    assert delivery.bytes_out == sum(item.size for item in world.store.list())
    world.check_complete(delivery.progress)
    (item,) = world.store.list("_dead_letters/logs/e0-p00003/")
    letters = pq.read_table(io.BytesIO(world.store.read(item.key))).to_pylist()
    assert letters[0] | {"timestamp": None, "at": None} == {
        "topic": "logs",
        "epoch": 0,
        "partition": 3,
        "offset": 3,
        "timestamp": None,
        "key": None,
        "value": b"\x00not json 3",
        "headers": [{"name": "trace", "value": b"\x01"}, {"name": "empty", "value": None}],
        "error": "malformed",
        "detail": "expected a JSON object",
        "at": None,
    }


@pytest.mark.parametrize("recovery_crashes", [False, True])
async def test_a_crash_at_any_step_loses_and_doubles_nothing(recovery_crashes: bool) -> None:
    """INV-DELIVERY-1, INV-DELIVERY-2: for every step of a delivery, and of the recovery after it."""
    for step in count():
        for second in range(8) if recovery_crashes else [99]:
            world = World(records=30, dead=frozenset({2, 9, 17, 29}))
            sink = await world.holder()

            async def deliver(sink: ParquetSink = sink, world: World = world) -> None:
                await sink.open()
                await sink.deliver(world.blocks(0, 13))
                await sink.deliver(world.blocks(13, 20))

            crashed = await crashing_at(step, world, deliver)
            successor = await world.holder()
            await crashing_at(second, world, successor.open)
            world.check_complete(await world.finish())
        if not crashed:
            assert step > 12
            return


@pytest.mark.parametrize("late_landing_after", ["open", "end"])
async def test_a_zombies_late_puts_change_nothing(late_landing_after: str) -> None:
    """INV-LEASE-2: puts of a former holder that land after its successor opened are refused by the store."""
    world = World(records=20, dead=frozenset({5, 6}))
    zombie = await world.holder()
    await zombie.open()
    world.store.faults = lambda operation, key: Fault.LATE if operation == "create" else None
    with pytest.raises(SinkUnavailable):
        await zombie.deliver(world.blocks(0, 20))
    world.store.faults = lambda operation, key: None
    if late_landing_after == "open":
        await (await world.holder()).open()
        world.store.land()
    progress = await world.finish()
    world.store.land()
    world.check_complete(progress)
    with pytest.raises(LeaseLost):
        await zombie.open()


async def test_a_former_holder_can_neither_resolve_nor_write() -> None:
    world = World(records=20)
    former = await world.holder()
    await former.open()
    current = await world.holder()
    await current.open()
    with pytest.raises(LeaseLost):
        await former.deliver(world.blocks(0, 20))
    assert world.store.list() == []
    with pytest.raises(LeaseLost):
        await former.open()
    world.check_complete((await current.deliver(world.blocks(0, 20))).progress)


async def test_nothing_is_written_past_the_deadline() -> None:
    """INV-LEASE-3, at each side effect of a delivery."""
    for step in count():
        world, lease = World(records=12, dead=frozenset({1})), Lease()
        sink = await world.holder(lease=lease)
        await sink.open()
        remaining = count(step, -1)
        effects: list[bool] = []

        def observe(remaining: count[int] = remaining, lease: Lease = lease, effects: list[bool] = effects) -> None:
            effects.append(lease.lost)
            lease.lost = lease.lost or next(remaining) <= 0

        world.etcd.step = world.store.step = observe
        try:
            await sink.deliver(world.blocks(0, 12))
            assert step == 6
            return
        except LeaseLost:
            # An effect is seen before and after: after the deadline only the end of the one under way.
            assert effects.count(True) <= 1
        finally:
            world.etcd.step = world.store.step = lambda: None
        world.check_complete(await world.finish())


@pytest.mark.parametrize("fault", [EtcdFault.LOST, EtcdFault.APPLIED])
@pytest.mark.parametrize("call", range(4))
async def test_an_etcd_answer_that_never_comes_is_asked_for_again(fault: EtcdFault, call: int) -> None:
    world = World(records=12, dead=frozenset({1}))
    sink = await world.holder()
    world.etcd.fail_next(fault, times=2, after=call)
    await sink.open()
    world.check_complete((await sink.deliver(world.blocks(0, 12))).progress)


async def test_a_store_that_comes_back_within_patience_is_not_an_error() -> None:
    world = World(records=12)
    sink = await world.holder()
    await sink.open()
    world.store.faults = lambda operation, key: Fault.REFUSED if world.clock.now_s < 20 else None
    world.check_complete((await sink.deliver(world.blocks(0, 12))).progress)


async def test_after_patience_the_sink_is_unavailable_and_open_again_goes_on() -> None:
    world = World(records=12)
    sink = await world.holder()
    await sink.open()
    world.store.faults = lambda operation, key: Fault.REFUSED
    with pytest.raises(SinkUnavailable):
        await sink.deliver(world.blocks(0, 12))
    assert 20 < world.clock.now_s <= 30
    with pytest.raises(RuntimeError, match="open"):
        await sink.skip(to=5)
    world.store.faults = lambda operation, key: None
    assert (await sink.open()).next_offset == 0
    world.check_complete((await sink.deliver(world.blocks(0, 12))).progress)


async def test_at_least_once_does_not_need_conditional_writes_and_loses_nothing() -> None:
    spec = SPEC.model_copy(update={"delivery": "at_least_once"})
    for step in range(12):
        world = World(records=12, dead=frozenset({1}))
        world.store = StoppingStore(conditional=False)
        sink = await world.holder(spec=spec)

        async def deliver(sink: ParquetSink = sink, world: World = world) -> Delivery:
            await sink.open()
            return await sink.deliver(world.blocks(0, 12))

        await crashing_at(step, world, deliver)
        sink = await world.holder(spec=spec)
        progress = await sink.open()
        if progress.next_offset < 12:
            await sink.deliver(world.blocks(progress.next_offset, 12))
        assert set(world.visible("data/", "_offset")) == set(range(12)) - {1}
        assert set(world.visible("_dead_letters/", "offset")) == {1}


async def test_dead_letters_between_rows_are_spread_over_cuts_that_can_name_them() -> None:
    world = World(records=9000, dead=frozenset(range(0, 9000, 2)))
    sink = await world.holder()
    await sink.open()
    delivery = await sink.deliver(world.blocks(0, 9000, size=5000))
    assert delivery.objects == 6
    world.check_complete(delivery.progress)


async def test_a_range_without_records_moves_progress_without_an_object() -> None:
    world = World(records=12, gaps=frozenset(range(12)))
    sink = await world.holder()
    await sink.open()
    world.check_complete((await sink.deliver(world.blocks(0, 12))).progress)
    assert world.store.list() == []


async def test_where_a_partition_starts_is_durable_before_it_is_used() -> None:
    world = World(records=50)

    async def latest() -> int:
        return 37

    assert (await (await world.holder()).open(initial_offset=latest)).next_offset == 37
    assert (await (await world.holder()).open()).next_offset == 37
    item = await world.etcd.get(KEYS.progress(PARTITION))
    assert item is not None
    assert decode(ProgressRecord, item.value).next_offset == 37


async def test_blocks_that_do_not_follow_are_refused() -> None:
    world = World(records=30)
    sink = await world.holder()
    await sink.open()
    with pytest.raises(ValueError, match="starts at 5; progress is at 0"):
        await sink.deliver(world.blocks(5, 10))
    with pytest.raises(ValueError, match="starts at 14; progress is at 7"):
        await sink.deliver([world.block(0, 7), world.block(14, 20)])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_mix_of_faults_crashes_and_zombies_keeps_every_record_once(seed: int) -> None:
    asyncio.run(_disorder(random.Random(seed)))


async def _disorder(chance: random.Random) -> None:
    records = chance.randrange(20, 60)
    world = World(
        records=records,
        dead=frozenset(chance.sample(range(records), records // 4)),
        gaps=frozenset(chance.sample(range(records), records // 6)),
    )
    world.store.faults = lambda operation, key: (
        chance.choice([*Fault]) if operation == "create" and chance.random() < 0.3 else None
    )
    zombies: list[tuple[ParquetSink, int]] = []
    for _ in range(chance.randrange(1, 6)):
        sink = await world.holder()

        async def work(sink: ParquetSink = sink) -> None:
            progress = await sink.open()
            while progress.next_offset < records:
                end = min(records, progress.next_offset + chance.randrange(1, 25))
                progress = (await sink.deliver(world.blocks(progress.next_offset, end))).progress

        for _ in range(chance.randrange(3)):
            world.etcd.fail_next(chance.choice([*EtcdFault]), after=chance.randrange(6))
        await crashing_at(chance.randrange(30), world, work)
        if chance.random() < 0.5:
            world.store.land()
        for zombie, at in zombies:
            before = dict(world.store.objects)
            with suppress(LeaseLost, RuntimeError):  # one that had delivered all of it has nothing to say
                await zombie.deliver(world.blocks(at, records))
            assert world.store.objects == before
        zombies.append((sink, 0))
    world.store.faults = lambda operation, key: None
    progress = await world.finish()
    world.store.land()
    world.check_complete(progress)
