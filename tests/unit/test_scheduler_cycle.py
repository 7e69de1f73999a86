"""Whole schedulers on the fake etcd in virtual time: how fast they react, and what faults do to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from scheduling import KEYS, spec
from sluiceway.common.etcd.fake import FakeEtcd, Fault
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.records import LeaseRecord, PipelineState, WorkerRecord, decode, encode
from sluiceway.common.resources import Resources
from sluiceway.common.specs.models import ClusterSpec, TopicSpec
from sluiceway.scheduler.cycle import Identity, Scheduler
from sluiceway.scheduler.grants.decide import Policy
from sluiceway.scheduler.source_view import SourceView, TopicView
from virtual_time import LoopClock, run_virtual

PARTITIONS = 6
TTL_S = 5


class KnownSources:
    """Clusters that have answered already."""

    def view(self) -> SourceView:
        return SourceView(topics={"t": TopicView(partitions=PARTITIONS)}, version=1)

    def follow(self, clusters: Mapping[str, ClusterSpec], topics: Mapping[str, TopicSpec]) -> None:
        return


class Fleet:
    def __init__(self) -> None:
        self.etcd = FakeEtcd(LoopClock())
        self.clients: dict[str, FakeEtcd] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def apply(self) -> None:
        await self.etcd.put(KEYS.spec("topics", "t"), encode(spec("Topic", "t", cluster="c")))
        pipeline = spec("Pipeline", "p", topics=["t"], sink={"url": "file:///tmp/sink"})
        await self.etcd.put(KEYS.spec("pipelines", "p"), encode(pipeline))

    async def worker(self, name: str) -> int:
        lease = await self.etcd.grant(10_000)
        record = WorkerRecord(id=name, session=lease, capacity=Resources(cpu=1.0))
        await self.etcd.put(KEYS.worker(name), encode(record), lease=lease)
        return lease

    def scheduler(self, name: str) -> None:
        etcd = self.clients[name] = self.etcd.connect()
        mirror = Mirror(etcd, KEYS.root)
        scheduler = Scheduler(
            etcd=etcd,
            keys=KEYS,
            mirror=mirror,
            sources=KnownSources(),
            clock=LoopClock(),
            identity=Identity(id=name, session_ttl_s=TTL_S),
            policy=Policy(),
        )

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(mirror.run())
                group.create_task(scheduler.run())

        self.tasks[name] = asyncio.ensure_future(run())

    def holders(self) -> dict[str, int]:
        held: dict[str, int] = {}
        for item in self.etcd.keyspace.listing(KEYS.leases, 0).items:
            holder = decode(LeaseRecord, item.value).holder
            held[holder] = held.get(holder, 0) + 1
        return held

    async def until(self, holds: Callable[[], bool]) -> float:
        """Virtual seconds until it holds."""
        started_s = LoopClock().monotonic()
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.01)
                self.etcd.tick()
        return LoopClock().monotonic() - started_s


@asynccontextmanager
async def fleet(*schedulers: str) -> AsyncIterator[Fleet]:
    made = Fleet()
    await made.apply()
    for name in schedulers:
        made.scheduler(name)
    try:
        yield made
    finally:
        for task in made.tasks.values():
            task.cancel()
        await asyncio.wait(list(made.tasks.values()))


def test_a_dead_workers_partitions_are_granted_again_well_within_a_second() -> None:
    async def main() -> None:
        async with fleet("s1", "s2") as f:
            one = await f.worker("w1")
            await f.until(lambda: f.holders() == {"w1": PARTITIONS})
            await f.worker("w2")
            await asyncio.sleep(2)
            f.etcd.expire(one)
            assert await f.until(lambda: f.holders() == {"w2": PARTITIONS}) <= 0.25

    run_virtual(main())


def test_a_leader_cut_off_from_etcd_is_replaced_and_steps_down() -> None:
    async def main() -> None:
        async with fleet("s1", "s2") as f:
            await f.until(lambda: KEYS.leader in f.etcd.keyspace.items)
            leader = f.etcd.keyspace.items[KEYS.leader].value.decode()
            f.clients[leader].down = True
            await f.worker("w1")
            assert await f.until(lambda: f.holders() == {"w1": PARTITIONS}) <= TTL_S + 1
            f.clients[leader].down = False
            after = f.etcd.keyspace.items[KEYS.leader]
            await asyncio.sleep(60)
            f.etcd.tick()
            assert f.etcd.keyspace.items[KEYS.leader] == after
            assert after.value.decode() != leader

    run_virtual(main())


def test_a_write_without_an_answer_is_looked_up_and_done_once() -> None:
    async def main() -> None:
        for fault in Fault:
            async with fleet("s1") as f:
                await asyncio.sleep(1)
                f.clients["s1"].fail_next(fault)
                await f.worker("w1")
                await f.until(lambda: f.holders() == {"w1": PARTITIONS})

    run_virtual(main())


def test_a_stopped_leader_leaves_its_place_at_once() -> None:
    async def main() -> None:
        async with fleet("s1") as f:
            await f.until(lambda: KEYS.leader in f.etcd.keyspace.items)
            f.tasks["s1"].cancel()
            await asyncio.wait([f.tasks["s1"]])
            assert KEYS.leader not in f.etcd.keyspace.items

    run_virtual(main())


def test_an_idle_fleet_writes_nothing() -> None:
    async def main() -> None:
        async with fleet("s1", "s2") as f:
            await f.worker("w1")
            await f.until(lambda: f.holders() == {"w1": PARTITIONS})
            await asyncio.sleep(10)
            state = decode(PipelineState, f.etcd.keyspace.items[KEYS.state("p")].value)
            assert (state.condition, state.leased) == ("Running", PARTITIONS)
            before = f.etcd.keyspace.revision
            await asyncio.sleep(600)
            assert f.etcd.keyspace.revision == before

    run_virtual(main())
