"""The lease protocol under everything that can go wrong, on the real decisions and the real transactions.

Two schedulers decide on snapshots of any age and commit under terms that may be over; workers follow the protocol in a
small model (sessions with the real deadline, runners, releases, failures, zombies whose effects land late); calls get
lost before or after they took effect. What etcd went through is checked revision by revision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sluiceway.common.clock import Clock
from sluiceway.common.errors import EtcdUnavailable, LeaseLost
from sluiceway.common.etcd.api import Delete, Event, KeyValue, Put, Txn, absent, created_at
from sluiceway.common.etcd.election import Term
from sluiceway.common.etcd.fake import FakeEtcd, Fault
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
    PipelineState,
    ProgressRecord,
    SpecRecord,
    WorkerRecord,
    decode,
    encode,
)
from sluiceway.common.resources import Resources
from sluiceway.scheduler.grants.commit import Committer
from sluiceway.scheduler.grants.decide import Policy, decide
from sluiceway.scheduler.grants.plan import Plan
from sluiceway.scheduler.observe import Observer
from sluiceway.scheduler.placement.pack import use
from sluiceway.scheduler.placement.reasons import Why
from sluiceway.scheduler.source_view import SourceView, TopicView
from virtual_time import VirtualLoop

T = TypeVar("T")

KEYS = Keys("test")
SCHEDULERS = ("s1", "s2")
WORKERS = ("w1", "w2", "w3")
PARTITIONS = 4
TTL_S, MARGIN_S = 10, 2.0
SETTLED_WITHIN = 30  # cycles, five seconds apart
POLICY = Policy(revoke_timeout_s=20.0, moves_in_flight=2)
SOURCES = SourceView(topics={"t": TopicView(partitions=PARTITIONS)}, version=1)
SINGLE_CAUSES = {Why.DRAINING, Why.PIPELINE_PAUSED, Why.QUARANTINED, Why.SPREAD, Why.OVER_CAPACITY}


def pipeline(*, paused: bool) -> SpecRecord:
    spec = {"topics": ["t"], "sink": {"url": "file:///tmp/sink"}, "paused": paused}
    document: dict[str, object] = {
        "apiVersion": "sluiceway/v1",
        "kind": "Pipeline",
        "metadata": {"name": "p"},
        "spec": spec,
    }
    return SpecRecord(kind="Pipeline", name="p", hash="1", document=document)


@dataclass
class Replica:
    """A scheduler that may be behind, paused or deposed without knowing it."""

    id: str
    etcd: FakeEtcd
    clock: Clock
    observer: Observer = field(default_factory=lambda: Observer(KEYS))
    term: Term | None = None
    lease: int = 0

    async def campaign(self) -> None:
        self.lease = await self.etcd.grant(1000)
        put = Put(KEYS.leader, self.id.encode(), self.lease)
        result = await self.etcd.txn(Txn([absent(KEYS.leader)], [put]))
        if result.succeeded:
            self.term = Term(key=KEYS.leader, number=result.revision)

    async def observe(self) -> None:
        listing = await self.etcd.list(KEYS.root)
        items = {item.key: item for item in listing.items}
        self.observer.look(listing.revision, items, SOURCES, self.clock.monotonic())

    def decide(self) -> Plan:
        return decide(self.observer.view(now_s=0.0, refresh_counters=True), POLICY)

    async def commit(self, plan: Plan) -> None:
        if self.term is None:
            return
        committer = Committer(self.etcd, KEYS, self.clock, self.term, self.id)
        try:
            await committer.commit(plan, self.observer.snapshot)
        except LeaseLost:
            self.term = None


@dataclass
class Runner:
    token: int
    position: int


@dataclass
class Holder:
    """One life of a worker process: a session and its runners. It may be paused, and so become a zombie."""

    id: str
    etcd: FakeEtcd
    session: Session
    keeping: asyncio.Task[None] | None = None
    runners: dict[PartitionId, Runner] = field(default_factory=dict)
    landing: list[tuple[PartitionId, int, int]] = field(default_factory=list)  # effects begun and not yet at the sink

    async def sync(self) -> None:
        """Makes the runners what the inbox says; a revoked runner goes on until it is told to release."""
        self.session.check()
        prefix = KEYS.inbox(self.id)
        inbox = {PartitionId.parse(kv.key.removeprefix(prefix)): kv for kv in (await self.etcd.list(prefix)).items}
        for partition in list(self.runners):
            if partition not in inbox or inbox[partition].create_revision != self.runners[partition].token:
                del self.runners[partition]
        for partition, kv in inbox.items():
            state = decode(InboxRecord, kv.value).state
            if partition not in self.runners and state is LeaseState.GRANTED and kv.lease == self.session.id:
                item = await self.etcd.get(KEYS.progress(partition))
                position = decode(ProgressRecord, item.value).next_offset if item else 0
                self.runners[partition] = Runner(kv.create_revision, position)

    async def release(self, partition: PartitionId, failure: FailureKind | None) -> None:
        self.session.check()
        runner = self.runners.pop(partition)
        lease = KEYS.lease(partition)
        then: list[Put | Delete] = [Delete(lease), Delete(KEYS.inbox_entry(self.id, partition))]
        if failure is not None:
            item = await self.etcd.get(KEYS.failure(partition))
            before = decode(FailureRecord, item.value) if item else FailureRecord(count=0, kind=failure, error="")
            workers = [*before.workers, *([] if self.id in before.workers else [self.id])]
            after = FailureRecord(
                count=before.count + 1, kind=failure, error="no", workers=workers, quarantined=before.quarantined
            )
            then.append(Put(KEYS.failure(partition), encode(after)))
        await self.etcd.txn(Txn([created_at(lease, runner.token)], then))

    async def commit_progress(self, partition: PartitionId) -> None:
        """The session was checked before; the process may have been stopped since."""
        runner = self.runners[partition]
        progress = ProgressRecord(next_offset=runner.position, token=runner.token)
        guard = created_at(KEYS.lease(partition), runner.token)
        await self.etcd.txn(Txn([guard], [Put(KEYS.progress(partition), encode(progress))]))


@dataclass(frozen=True)
class LoopTime:
    """A `Clock` that shows a virtual loop's time, also between its runs."""

    loop: asyncio.AbstractEventLoop

    def now(self) -> float:
        return 1.7e9 + self.monotonic()

    def monotonic(self) -> float:
        return self.loop.time()


class LeaseProtocol(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner(loop_factory=VirtualLoop)
        self.clock = LoopTime(self.loop.get_loop())
        self.etcd = self.run(self._make_etcd())
        self.keyspace = self.etcd.keyspace
        self.replicas = {name: Replica(name, self.etcd.connect(), self.clock) for name in SCHEDULERS}
        self.holders: dict[str, Holder] = {}
        self.zombies: list[Holder] = []
        self.checked = 1  # revision
        self.reigning = 0  # term as of `checked`
        self.cordoned: set[str] = set()
        self.tokens: dict[str, int] = {}
        self.progress: dict[str, int] = {}
        self.accepted: dict[PartitionId, list[int]] = {}

    async def _make_etcd(self) -> FakeEtcd:
        return FakeEtcd(self.clock)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(coroutine)

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.loop.close()

    @initialize()
    def apply(self) -> None:
        topic: dict[str, object] = {
            "apiVersion": "sluiceway/v1",
            "kind": "Topic",
            "metadata": {"name": "t"},
            "spec": {"cluster": "c"},
        }
        self.run(
            self.etcd.put(
                KEYS.spec("topics", "t"), encode(SpecRecord(kind="Topic", name="t", hash="1", document=topic))
            )
        )
        self.run(self.etcd.put(KEYS.spec("pipelines", "p"), encode(pipeline(paused=False))))
        for name in WORKERS[:2]:
            self.start_worker(name)
        self.campaign("s1")

    # schedulers

    @rule(name=st.sampled_from(SCHEDULERS))
    def campaign(self, name: str) -> None:
        replica = self.replicas[name]
        if replica.term is None:
            self.run(replica.campaign())
            if replica.term is not None:
                self.run(replica.observe())

    @rule(name=st.sampled_from(SCHEDULERS))
    def observe(self, name: str) -> None:
        self.run(self.replicas[name].observe())

    @rule(
        name=st.sampled_from(SCHEDULERS),
        fresh=st.booleans(),
        fault=st.sampled_from([None, Fault.LOST, Fault.APPLIED]),
        after=st.integers(0, 3),
    )
    def cycle(self, name: str, fresh: bool, fault: Fault | None, after: int) -> None:
        """One cycle, on a snapshot of any age; an answer may get lost with or without its effect."""
        replica = self.replicas[name]
        if fresh:
            self.run(replica.observe())
        plan = replica.decide()
        self.check_plan(replica, plan)
        if fault is not None:
            replica.etcd.fail_next(fault, after=after)
        self.run(replica.commit(plan))
        replica.etcd = self.etcd.connect()  # faults that did not strike go with the client

    @rule(name=st.sampled_from(SCHEDULERS), worker=st.sampled_from(WORKERS), drain=st.booleans())
    def cordon_behind_a_plans_back(self, name: str, worker: str, drain: bool) -> None:
        replica = self.replicas[name]
        self.run(replica.observe())
        plan = replica.decide()
        self.cordon(worker, drain)
        self.run(replica.commit(plan))

    @rule(first=st.sampled_from(SCHEDULERS), steps=st.integers(0, 12))
    def cycle_while_the_term_ends(self, first: str, steps: int) -> None:
        """The leader loses its term in the middle of a commit, and the other one commits at the same time."""
        one, other = self.replicas[first], self.replicas[SCHEDULERS[first == "s1"]]

        async def interleave() -> None:
            await one.observe()
            await other.observe()
            committing = asyncio.ensure_future(one.commit(one.decide()))
            for _ in range(steps):
                await asyncio.sleep(0)
            if one.lease:
                self.etcd.expire(one.lease)
            if other.term is None:
                await other.campaign()
            await asyncio.gather(committing, other.commit(other.decide()))

        self.run(interleave())

    @rule(name=st.sampled_from(SCHEDULERS))
    def depose(self, name: str) -> None:
        """The session of a leader ends; it goes on believing in its term."""
        if self.replicas[name].lease:
            self.etcd.expire(self.replicas[name].lease)

    # workers

    @rule(name=st.sampled_from(WORKERS))
    def start_worker(self, name: str) -> None:
        if name not in self.holders and KEYS.worker(name) not in self.keyspace.items:
            self.holders[name] = self.run(self._register(name))

    async def _register(self, name: str) -> Holder:
        etcd = self.etcd.connect()
        session = await Session.open(etcd, self.clock, ttl_s=TTL_S, margin_s=MARGIN_S)
        capacity = Resources(cpu=2.0 if name == "w1" else 1.0, memory=2**30)
        record = WorkerRecord(id=name, session=session.id, capacity=capacity)
        await etcd.txn(Txn([absent(KEYS.worker(name))], [Put(KEYS.worker(name), encode(record), session.id)]))
        holder = Holder(name, etcd, session)
        self._keep(holder)
        return holder

    def _keep(self, holder: Holder) -> None:
        async def keep() -> None:
            with suppress(LeaseLost):
                await holder.session.run()

        holder.keeping = asyncio.ensure_future(keep())

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), expired=st.booleans())
    def pause_worker(self, data: st.DataObject, expired: bool) -> None:
        """A stopped process: it keeps nothing alive, its session may end in etcd, and it comes back as a zombie."""
        holder = self.holders.pop(data.draw(st.sampled_from(sorted(self.holders))))
        assert holder.keeping is not None
        self.run(_cancel(holder.keeping))
        for partition, runner in holder.runners.items():
            with suppress(LeaseLost):
                holder.session.check()
                holder.landing.append((partition, runner.token, runner.position))
        self.zombies.append(holder)
        if expired:
            self.run(asyncio.sleep(TTL_S + 1))
            self.etcd.tick()

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        self.run(asyncio.sleep(seconds))
        self.etcd.tick()

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def sync_inbox(self, data: st.DataObject) -> None:
        self.act(self.pick(data), lambda holder: holder.sync())

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), failure=st.sampled_from([None, *FailureKind]), lost=st.booleans())
    def release(self, data: st.DataObject, failure: FailureKind | None, lost: bool) -> None:
        holder = self.pick(data)
        if holder.runners:
            partition = data.draw(st.sampled_from(sorted(holder.runners)))
            if lost:
                holder.etcd.fail_next(Fault.APPLIED)
            self.act(holder, lambda holder: holder.release(partition, failure))

    @precondition(lambda self: self.holders or self.zombies)
    @rule(data=st.data(), late=st.booleans(), records=st.integers(1, 9))
    def deliver(self, data: st.DataObject, late: bool, records: int) -> None:
        """A runner starts an effect if its session allows; the effect may reach the sink much later."""
        holder = self.pick(data, zombies=True)
        if not holder.runners:
            return
        partition = data.draw(st.sampled_from(sorted(holder.runners)))
        runner = holder.runners[partition]
        try:
            holder.session.check()
        except LeaseLost:
            return
        # INV-LEASE-3: what the local deadline still allows, etcd has not given to anyone else yet
        registration = self.keyspace.items.get(KEYS.worker(holder.id))
        assert registration is not None
        assert registration.lease == holder.session.id
        runner.position += records
        holder.landing.append((partition, runner.token, runner.position))
        if not late:
            self.land(holder)
            self.act(holder, lambda holder: holder.commit_progress(partition))

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def effects_land_late(self, data: st.DataObject) -> None:
        holder = self.zombies[data.draw(st.integers(0, len(self.zombies) - 1))]
        self.land(holder)
        for partition in sorted(holder.runners):
            self.run(holder.commit_progress(partition))

    @precondition(lambda self: len(self.holders) > 1)
    @rule(data=st.data())
    def a_zombie_comes_back_after_others_went_on(self, data: st.DataObject) -> None:
        for holder in list(self.holders.values()):
            self.act(holder, lambda holder: holder.sync())
        self.pause_worker(data, True)
        for name in SCHEDULERS:
            self.cycle(name, True, None, 0)
        for holder in list(self.holders.values()):
            self.act(holder, lambda holder: holder.sync())
        for _ in range(4):
            if self.holders:
                self.deliver(data, False, 9)
        self.effects_land_late(data)

    def pick(self, data: st.DataObject, *, zombies: bool = False) -> Holder:
        candidates = [holder for _, holder in sorted(self.holders.items())] + (self.zombies if zombies else [])
        return candidates[data.draw(st.integers(0, len(candidates) - 1))]

    def act(self, holder: Holder, act: Any) -> None:
        """A worker's step; one that finds its session lost, or that gets no answer, drops everything."""
        try:
            self.run(act(holder))
        except LeaseLost:
            holder.runners.clear()
            self.holders.pop(holder.id, None)
        except EtcdUnavailable:
            pass

    def land(self, holder: Holder) -> None:
        """The sink's fence: it takes an effect unless it took one with a higher token."""
        for partition, token, _ in holder.landing:
            accepted = self.accepted.setdefault(partition, [])
            if not accepted or token >= accepted[-1]:
                accepted.append(token)
        holder.landing.clear()

    # operators

    @rule(name=st.sampled_from(WORKERS), drain=st.booleans())
    def cordon(self, name: str, drain: bool) -> None:
        self.run(self.etcd.put(KEYS.cordon(name), encode(CordonRecord(worker=name, drain=drain))))

    @rule(name=st.sampled_from(WORKERS))
    def uncordon(self, name: str) -> None:
        self.run(self.etcd.delete(KEYS.cordon(name)))

    @rule(paused=st.booleans())
    def pause_pipeline(self, paused: bool) -> None:
        self.run(self.etcd.put(KEYS.spec("pipelines", "p"), encode(pipeline(paused=paused))))

    @rule()
    def retry(self) -> None:
        self.run(self.etcd.delete(KEYS.failures, prefix=True))

    # what must hold

    def check_plan(self, replica: Replica, plan: Plan) -> None:
        snapshot = replica.observer.snapshot
        # INV-LEASE-8
        assert not {grant.worker for grant in plan.grants} & snapshot.cordons.keys()
        # INV-LEASE-7: nobody loses a lease because of a neighbour: each revoke has its own cause
        assert {revoke.reason.why for revoke in plan.revokes} <= SINGLE_CAUSES
        for revoke in plan.revokes:
            if revoke.reason.why is Why.QUARANTINED:
                assert snapshot.failures[revoke.lease.partition].record.quarantined
        # INV-LEASE-6
        for name, worker in snapshot.workers.items():
            granted = [grant for grant in plan.grants if grant.worker == name]
            held = [p for p, lease in snapshot.leases.items() if lease.record.holder == name]
            load = Resources()
            for partition in held:
                load += replica.observer.estimator.demand(partition, snapshot.pipelines["p"].cut)
            for grant in granted:
                load += grant.demand
            if granted and all(grant.reason.why is Why.FITS for grant in granted):
                assert use(load, worker.record.capacity) <= 1 - POLICY.headroom + 1e-9

    @invariant()
    def history_is_right(self) -> None:
        """Every revision since the last look."""
        for batch in self.keyspace.batches(KEYS.root, self.checked + 1):
            for event in batch.events:
                self.check_event(event)
            for event in batch.events:
                self.follow(event)
        self.checked = self.keyspace.revision

    def check_event(self, event: Event) -> None:
        item = event.item
        if item is None:
            return
        if event.key.startswith(KEYS.leases) and item.version == 1:
            record = decode(LeaseRecord, item.value)
            assert item.create_revision > self.tokens.get(event.key, 0), "INV-LEASE-1"
            assert record.term == self.reigning, "INV-LEASE-4"
            assert record.holder not in self.cordoned, "INV-LEASE-8"
            self.tokens[event.key] = item.create_revision
        elif event.key.startswith(KEYS.leases):
            assert decode(LeaseRecord, item.value).state is LeaseState.REVOKING, "INV-LEASE-1: granted over a lease"
        if event.key.startswith(KEYS.progress_of_all):
            next_offset = decode(ProgressRecord, item.value).next_offset
            assert next_offset >= self.progress.get(event.key, 0), "INV-LEASE-9"
            self.progress[event.key] = next_offset

    def follow(self, event: Event) -> None:
        if event.key == KEYS.leader:
            self.reigning = 0 if event.item is None else event.item.create_revision
        if event.key.startswith(KEYS.cordons):
            worker = event.key.removeprefix(KEYS.cordons)
            (self.cordoned.discard if event.item is None else self.cordoned.add)(worker)

    @invariant()
    def one_holder_each(self) -> None:
        """INV-LEASE-1: every lease key has exactly its own inbox entry, of the same token and session."""
        leases = {kv.key.removeprefix(KEYS.leases): kv for kv in self.below(KEYS.leases)}
        entries = [
            kv.key.removeprefix(KEYS.root + "inbox/").partition("/")[::2] for kv in self.below(KEYS.root + "inbox/")
        ]
        assert sorted(partition for _, partition in entries) == sorted(leases)
        for holder, partition in entries:
            lease = leases[partition]
            inbox = self.keyspace.items[KEYS.inbox_entry(holder, PartitionId.parse(partition))]
            assert decode(LeaseRecord, lease.value).holder == holder
            assert (inbox.create_revision, inbox.lease) == (lease.create_revision, lease.lease)

    @invariant()
    def sinks_are_fenced(self) -> None:
        """INV-LEASE-2"""
        for tokens in self.accepted.values():
            assert tokens == sorted(tokens)

    def below(self, prefix: str) -> list[KeyValue]:
        return self.keyspace.listing(prefix, 0).items

    def settle(self) -> None:
        """INV-LEASE-5: once faults stop, every partition is leased or has its reason, within a few cycles."""
        if KEYS.spec("pipelines", "p") not in self.keyspace.items:
            return
        for name, replica in self.replicas.items():
            if replica.lease:
                self.etcd.expire(replica.lease)
            self.replicas[name] = Replica(name, self.etcd.connect(), self.clock)
        self.campaign("s1")
        leader = self.replicas["s1"]
        for _ in range(SETTLED_WITHIN):
            self.time_passes(5)
            self.run(leader.observe())
            plan = leader.decide()
            self.run(leader.commit(plan))
            for holder in list(self.holders.values()):
                self.act(holder, lambda holder: holder.sync())
                self.let_go(holder)
            if not plan.moves_something and not leader.observer.ages.revoking:
                break
        else:
            raise AssertionError("INV-LEASE-5: still moving")
        self.history_is_right()
        self.check_settled()

    def let_go(self, holder: Holder) -> None:
        for kv in self.below(KEYS.inbox(holder.id)):
            partition = PartitionId.parse(kv.key.removeprefix(KEYS.inbox(holder.id)))
            if decode(InboxRecord, kv.value).state is LeaseState.REVOKING and partition in holder.runners:
                self.act(holder, lambda holder, partition=partition: holder.release(partition, None))

    def check_settled(self) -> None:
        if self.keyspace.items[KEYS.spec("pipelines", "p")].value == encode(pipeline(paused=True)):
            return
        state = decode(PipelineState, self.keyspace.items[KEYS.state("p")].value)
        for number in range(PARTITIONS):
            partition = PartitionId("p", "t", 0, number)
            item = self.keyspace.items.get(KEYS.lease(partition))
            granted = item is not None and decode(LeaseRecord, item.value).state is LeaseState.GRANTED
            assert granted or str(partition) in state.unplaced, "INV-LEASE-5"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


LeaseProtocol.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLeaseProtocol = LeaseProtocol.TestCase
