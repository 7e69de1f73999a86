"""The lease agent on the fake etcd: what it holds is what its inbox says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import LeaseLost, SinkUnavailable, SpecInvalid
from sluiceway.common.etcd.api import Put, Txn
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.etcd.session import Session
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import (
    CordonRecord,
    FailureKind,
    FailureRecord,
    InboxRecord,
    LeaseRecord,
    LeaseState,
    LoadReport,
    WorkerRecord,
    decode,
    encode,
)
from sluiceway.common.resources import Resources
from sluiceway.worker.agent import Identity, LeaseAgent, Work
from sluiceway.worker.usage import Usage

KEYS = Keys("test")
A, B = PartitionId("p", "t", 0, 0), PartitionId("p", "t", 0, 1)


@dataclass
class Job:
    """Work that does nothing until it is stopped or told to fail."""

    token: int
    session: Session
    usage: Usage = field(default_factory=lambda: Usage(pipeline="p"))
    buffered_bytes: int = 0
    cancelled: bool = False
    cleaned: asyncio.Event = field(default_factory=asyncio.Event)
    may_clean: asyncio.Event | None = None

    def __post_init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        try:
            await self.ended
        except asyncio.CancelledError:
            self.cancelled = True
            if self.may_clean is not None:
                await self.may_clean.wait()
            self.cleaned.set()
            raise

    def stop(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def relieve(self) -> None:
        return


@dataclass
class Jobs:
    """Hands out jobs and remembers them by partition."""

    by_partition: dict[PartitionId, list[Job]] = field(default_factory=dict)
    spec: str = "1"
    specs_to_come: int = 0

    async def runner(self, partition: PartitionId, token: int, session: Session) -> Job:
        if not self.spec_hash(partition):
            raise SpecInvalid(["no such pipeline"])
        job = Job(token, session)
        self.by_partition.setdefault(partition, []).append(job)
        return job

    def spec_hash(self, partition: PartitionId) -> str:
        self.specs_to_come -= 1
        return self.spec if self.specs_to_come < 0 else ""

    def process_usage(self) -> tuple[float, int]:
        return 1.0, 1000

    def buffered_bytes(self) -> int:
        return 0

    def relieve_memory(self, runners: Mapping[str, Work]) -> None:
        return

    def running(self, partition: PartitionId) -> Job | None:
        jobs = [job for job in self.by_partition.get(partition, []) if not job.ended.done()]
        return jobs[-1] if jobs else None


class Fleet:
    """One worker on a fake etcd, and what a scheduler would do to it."""

    def __init__(self, etcd: FakeEtcd, agent: LeaseAgent, jobs: Jobs) -> None:
        self.etcd, self.agent, self.jobs = etcd, agent, jobs

    async def worker(self) -> WorkerRecord | None:
        item = await self.etcd.get(KEYS.worker("w"))
        return decode(WorkerRecord, item.value) if item else None

    async def grant(self, partition: PartitionId) -> int:
        worker = await self.worker()
        assert worker is not None
        result = await self.etcd.txn(
            Txn(
                [],
                [
                    Put(KEYS.lease(partition), encode(LeaseRecord(holder="w")), worker.session),
                    Put(KEYS.inbox_entry("w", partition), encode(InboxRecord()), worker.session),
                ],
            )
        )
        return result.revision

    async def revoke(self, partition: PartitionId) -> None:
        worker = await self.worker()
        assert worker is not None
        record = InboxRecord(state=LeaseState.REVOKING)
        await self.etcd.put(KEYS.inbox_entry("w", partition), encode(record), lease=worker.session)

    async def exists(self, key: str) -> bool:
        return await self.etcd.get(key) is not None


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def gone(fleet: Fleet, *keys: str) -> None:
    async with asyncio.timeout(10):
        while any([await fleet.exists(key) for key in keys]):
            await asyncio.sleep(0.001)


@asynccontextmanager
async def a_fleet() -> AsyncIterator[Fleet]:
    etcd, jobs = FakeEtcd(), Jobs()
    specs = Mirror(etcd, KEYS.specs)
    identity = Identity(
        record=WorkerRecord(id="w", session=0, capacity=Resources(cpu=1)),
        ttl_s=10,
        margin_s=1,
        report_interval_s=0.01,
        drain_timeout_s=5,
    )
    agent = LeaseAgent(identity, etcd=etcd, keys=KEYS, clock=SystemClock(), specs=specs, assembly=jobs)
    fleet = Fleet(etcd, agent, jobs)
    async with asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(specs.run()), tasks.create_task(agent.run())]
        await until(lambda: agent.problem() is None)
        yield fleet
        for task in background:
            task.cancel()
    await etcd.close()


async def test_a_grant_starts_a_runner_under_its_token() -> None:
    async with a_fleet() as fleet:
        token = await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        job = fleet.jobs.running(A)
        assert job is not None
        assert job.token == token


async def test_a_revoke_stops_the_runner_and_gives_the_lease_back() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(A) and fleet.jobs.running(B))
        await fleet.revoke(A)
        await gone(fleet, KEYS.lease(A), KEYS.inbox_entry("w", A))
        assert fleet.jobs.running(B) is not None
        assert not await fleet.exists(KEYS.failure(A))


async def test_a_failure_is_recorded_and_takes_nothing_from_its_neighbours() -> None:
    """INV-LEASE-7"""
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(A) and fleet.jobs.running(B))
        fleet.jobs.by_partition[A][0].ended.set_exception(SinkUnavailable("the bucket is full"))
        await gone(fleet, KEYS.lease(A), KEYS.inbox_entry("w", A))
        item = await fleet.etcd.get(KEYS.failure(A))
        assert item is not None
        failure = decode(FailureRecord, item.value)
        assert (failure.count, failure.kind, failure.error) == (1, FailureKind.SINK, "the bucket is full")
        assert failure.workers == ["w"]
        assert fleet.jobs.running(B) is not None
        assert await fleet.exists(KEYS.lease(B))


async def test_a_lease_that_vanishes_cancels_its_runner_at_once_without_a_failure() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        await fleet.etcd.delete(KEYS.lease(A))
        await fleet.etcd.delete(KEYS.inbox_entry("w", A))
        await until(lambda: fleet.jobs.by_partition[A][0].cancelled)
        assert not await fleet.exists(KEYS.failure(A))


async def test_a_lease_granted_anew_is_run_under_the_new_token_only() -> None:
    async with a_fleet() as fleet:
        first = await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        await fleet.etcd.delete(KEYS.lease(A))
        await fleet.etcd.delete(KEYS.inbox_entry("w", A))
        second = await fleet.grant(A)
        await until(lambda: len(fleet.jobs.by_partition[A]) == 2)
        assert [job.token for job in fleet.jobs.by_partition[A]] == [first, second]
        assert fleet.jobs.by_partition[A][0].cancelled


async def test_a_changed_spec_restarts_the_partition_through_a_new_lease() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        fleet.jobs.spec = "2"
        await fleet.etcd.put(KEYS.spec("pipelines", "p"), b"{}")
        await gone(fleet, KEYS.lease(A))
        assert not await fleet.exists(KEYS.failure(A))


async def test_a_lost_session_cancels_everything_and_is_never_resumed() -> None:
    """INV-LEASE-3"""
    async with a_fleet() as fleet:
        before = await fleet.worker()
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        job = fleet.jobs.by_partition[A][0]
        assert before is not None
        fleet.etcd.expire(before.session)
        job.ended.set_exception(LeaseLost("the sink noticed first"))
        async with asyncio.timeout(20):
            while (after := await fleet.worker()) is None or after.session == before.session:
                await asyncio.sleep(0.01)
        assert fleet.jobs.running(A) is None
        with pytest.raises(LeaseLost):
            job.session.check()


async def test_draining_gives_everything_back_and_refuses_new_leases() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(A) and fleet.jobs.running(B))
        fleet.agent.drain()
        await gone(fleet, KEYS.lease(A), KEYS.lease(B), KEYS.worker("w"))
        assert not await fleet.exists(KEYS.cordon("w"))  # its own cordon ends with the session


async def test_an_operators_cordon_is_not_overwritten_by_draining() -> None:
    async with a_fleet() as fleet:
        cordon = CordonRecord(worker="w", by="operator@host", reason="disk")
        await fleet.etcd.put(KEYS.cordon("w"), encode(cordon))
        fleet.agent.drain()
        await gone(fleet, KEYS.worker("w"))
        item = await fleet.etcd.get(KEYS.cordon("w"))
        assert item is not None
        assert decode(CordonRecord, item.value) == cordon


async def test_usage_is_reported_under_the_session() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        job = fleet.jobs.running(A)
        assert job is not None
        job.usage.records, job.usage.bytes_in = 10, 1000
        async with asyncio.timeout(10):
            while True:
                item = await fleet.etcd.get(KEYS.load("w"))
                usage = decode(LoadReport, item.value).partitions.get(str(A)) if item else None
                if usage is not None and usage.records:
                    break
                await asyncio.sleep(0.001)
        worker = await fleet.worker()
        assert item is not None
        assert worker is not None
        assert item.lease == worker.session
        assert (usage.records, usage.bytes_in) == (10, 1000)


async def test_a_token_that_is_over_is_not_run_again_by_an_inbox_that_lags() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        await fleet.etcd.delete(KEYS.lease(A))  # the entry stays, as it does in a copy that has not caught up
        fleet.jobs.by_partition[A][0].ended.set_exception(LeaseLost("the sink noticed first"))
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(B))
        await fleet.revoke(B)
        await gone(fleet, KEYS.lease(B))
        assert len(fleet.jobs.by_partition[A]) == 1


async def test_a_lease_that_is_ours_still_is_given_back_when_the_sink_takes_it_for_lost() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        fleet.jobs.by_partition[A][0].ended.set_exception(LeaseLost("an operator moved the progress"))
        await gone(fleet, KEYS.lease(A), KEYS.inbox_entry("w", A))
        assert not await fleet.exists(KEYS.failure(A))


async def test_a_runner_that_cleans_up_is_not_cancelled_again() -> None:
    async with a_fleet() as fleet:
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        job = fleet.jobs.by_partition[A][0]
        job.may_clean = asyncio.Event()
        await fleet.etcd.delete(KEYS.inbox_entry("w", A))
        await until(lambda: job.cancelled)
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(B))
        job.may_clean.set()
        async with asyncio.timeout(10):
            await job.cleaned.wait()


async def test_an_entry_of_another_session_with_this_id_is_not_ours() -> None:
    async with a_fleet() as fleet:
        other = await fleet.etcd.grant(10)
        await fleet.etcd.put(KEYS.inbox_entry("w", A), encode(InboxRecord()), lease=other)
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(B))
        assert A not in fleet.jobs.by_partition


async def test_a_worker_that_waits_for_its_id_can_be_drained() -> None:
    async with a_fleet() as fleet:
        second = LeaseAgent(
            fleet.agent._identity,
            etcd=fleet.etcd,
            keys=KEYS,
            clock=SystemClock(),
            specs=Mirror(fleet.etcd, KEYS.specs),
            assembly=Jobs(),
        )
        running = asyncio.create_task(second.run())
        await asyncio.sleep(0.05)
        second.drain()
        async with asyncio.timeout(10):
            await running
        assert await fleet.exists(KEYS.worker("w"))
        assert not await fleet.exists(KEYS.cordon("w"))


async def test_a_lease_whose_spec_has_not_arrived_waits_for_it() -> None:
    async with a_fleet() as fleet:
        fleet.jobs.specs_to_come = 1
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(B))
        assert len(fleet.jobs.by_partition[A]) == 1
        assert await fleet.exists(KEYS.lease(A))
        assert not await fleet.exists(KEYS.failure(A))


async def test_an_inbox_that_only_a_newer_version_can_read_changes_nothing() -> None:
    async with a_fleet() as fleet:
        worker = await fleet.worker()
        assert worker is not None
        await fleet.grant(A)
        await until(lambda: fleet.jobs.running(A))
        await fleet.etcd.put(KEYS.inbox_entry("w", A), b'{"state":"hibernating"}', lease=worker.session)
        await fleet.etcd.put(KEYS.inbox("w") + "not-a-partition", b"{}", lease=worker.session)
        await fleet.grant(B)
        await until(lambda: fleet.jobs.running(B))
        assert fleet.jobs.running(A) is not None
