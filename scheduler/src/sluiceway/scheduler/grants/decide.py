"""The decision: from a view of the fleet to a plan. Pure; the same view gives the same plan.

Order: leases that must end (their pipeline, partition, session or deadline is over) → failures that quarantine →
partitions without a lease are placed → moves that drain, relieve and spread. Holders are kept unless one of these
applies. One partition's trouble never stops the others: what can't be placed is in `unplaced` with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import LeaseState
from sluiceway.common.resources import Resources
from sluiceway.scheduler.grants.failures import avoided, quarantine_reason, wait_s
from sluiceway.scheduler.grants.plan import Deletion, Forget, Grant, Plan, Quarantine, Revoke
from sluiceway.scheduler.grants.states import changed_states
from sluiceway.scheduler.grants.view import View
from sluiceway.scheduler.grants.wanted import Wanted, find_wanted
from sluiceway.scheduler.placement.moves import Held, relieve, spread
from sluiceway.scheduler.placement.pack import Item, Packing, Slot, pack
from sluiceway.scheduler.placement.reasons import Reason, Why
from sluiceway.scheduler.placement.suitable import Suitable, suitable
from sluiceway.scheduler.snapshot import FleetSnapshot, Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What operators tune."""

    headroom: float = 0.2
    revoke_timeout_s: float = 30.0
    moves_in_flight: int = 16  # planned moves (drain, relief, spreading) at a time, or a tenth of all leases if more


def decide(view: View, policy: Policy) -> Plan:
    """What to change now."""
    return _Decision(view, policy).plan()


@dataclass(slots=True)
class _Decision:
    """One decision in the making."""

    view: View
    policy: Policy
    snapshot: FleetSnapshot = field(init=False)
    wanted: Wanted = field(init=False)
    suitable: Mapping[str, Suitable] = field(init=False)
    takers: Mapping[str, frozenset[str]] = field(init=False)
    deletions: list[Deletion] = field(default_factory=list)
    revokes: list[Revoke] = field(default_factory=list)
    quarantines: list[Quarantine] = field(default_factory=list)
    unplaced: dict[PartitionId, Reason] = field(default_factory=dict)
    kept: list[Held] = field(default_factory=list)  # granted, and nothing forces them away
    draining: list[Held] = field(default_factory=list)  # granted, at a holder that drains or became unsuitable
    loads: dict[str, Resources] = field(default_factory=dict)
    in_flight: int = 0
    wakes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.snapshot = self.view.snapshot
        self.wanted = find_wanted(self.snapshot, self.view.sources)
        self.suitable = suitable(self.snapshot)
        self.takers = {name: one.takers for name, one in self.suitable.items()}

    def plan(self) -> Plan:
        for partition in sorted(self.snapshot.leases):
            self._look_at(self.snapshot.leases[partition])
        items = list(self._to_place())
        packing = pack(self._slots(), items, self.takers, self.policy.headroom)
        self._explain(packing)
        if self.policy.moves_in_flight > 0:
            self._move(bool(items))
        return Plan(
            id=f"plan-{self.snapshot.revision}",
            deletions=tuple(self.deletions),
            revokes=tuple(sorted(self.revokes, key=lambda revoke: revoke.lease.partition)),
            grants=tuple(sorted(self._grants(packing), key=lambda grant: grant.partition)),
            quarantines=tuple(self.quarantines),
            states=changed_states(self.view, self.wanted, self.suitable, self.unplaced),
            forgets=tuple(self._forgets()),
            unplaced=self.unplaced,
            partitions=sum(map(len, self.wanted.partitions.values())),
            leased=len(self.snapshot.leases),
            wake_in_s=max(0.0, min(self.wakes)) if self.wakes else None,
        )

    # leases

    def _look_at(self, lease: Lease) -> None:
        """Sorts one lease into: to delete, to revoke, being revoked, to move away, kept."""
        if lease.record.state is LeaseState.GRANTED and self._is_of_another_version(lease):
            return
        worker = self.snapshot.workers.get(lease.record.holder)
        if worker is None or worker.etcd_lease != lease.etcd_lease:
            self.deletions.append(Deletion(lease, Reason(Why.SESSION_GONE, f"of worker {lease.record.holder}")))
            return
        demand = self._demand(lease.partition)
        self.loads[worker.id] = self.loads.get(worker.id, Resources()) + demand
        if lease.record.state is LeaseState.REVOKING:
            self._await_release(lease)
        elif (over := self._is_over(lease)) is not None:
            self._revoke(lease, over)
        else:
            group = lease.partition.pipeline
            held = Held(Item(lease.partition, demand, group, self._avoided(lease.partition)), worker.id)
            leaves = self.snapshot.drains(worker.id) or worker.id not in self.suitable[group].holders
            (self.draining if leaves else self.kept).append(held)

    def _is_of_another_version(self, lease: Lease) -> bool:
        """Whether something behind the lease is there but can't be read: then it is left alone, not taken for gone."""
        keys, partition = self.view.keys, lease.partition
        behind = {
            keys.spec("pipelines", partition.pipeline),
            keys.spec("topics", partition.topic),
            keys.worker(lease.record.holder),
        }
        return not behind.isdisjoint(self.snapshot.problems)

    def _await_release(self, lease: Lease) -> None:
        self.in_flight += 1
        timeout_s = lease.record.revoke_timeout_s
        limit_s = self.policy.revoke_timeout_s if timeout_s is None else timeout_s
        left_s = limit_s - self.view.ages.revoking.get(lease.partition, 0.0)
        if left_s <= 0:
            self.deletions.append(Deletion(lease, Reason(Why.DEADLINE_PASSED, f"not released within {limit_s:g} s")))
        else:
            self.wakes.append(left_s)

    def _is_over(self, lease: Lease) -> Reason | None:
        """Why nobody should hold this partition, or None."""
        pipeline = self.snapshot.pipelines.get(lease.partition.pipeline)
        if pipeline is None:
            return Reason(Why.PIPELINE_DELETED)
        if pipeline.paused:
            return Reason(Why.PIPELINE_PAUSED)
        failure = self.snapshot.failures.get(lease.partition)
        if failure is not None and failure.record.quarantined:
            return Reason(Why.QUARANTINED, failure.record.error)
        return None if self.wanted.has(lease.partition) else Reason(Why.PARTITION_GONE)

    # placing

    def _to_place(self) -> Iterator[Item]:
        """Partitions without a lease that may have one now; the others get their reason."""
        for name, partitions in self.wanted.partitions.items():
            if self.snapshot.pipelines[name].paused:
                continue
            for partition in partitions:
                lease = self.snapshot.leases.get(partition)
                if lease is None:
                    if self._may_run(partition):
                        yield Item(partition, self._demand(partition), name, self._avoided(partition))
                elif lease.record.state is LeaseState.REVOKING:
                    self.unplaced[partition] = Reason(Why.BEING_RELEASED, f"by {lease.record.holder}")

    def _may_run(self, partition: PartitionId) -> bool:
        failure = self.snapshot.failures.get(partition)
        if failure is None:
            return True
        record = failure.record
        if record.quarantined:
            self.unplaced[partition] = Reason(Why.QUARANTINED, record.error)
            return False
        reason = quarantine_reason(record, self.takers[partition.pipeline])
        if reason is not None:
            self.quarantines.append(Quarantine(partition, failure.revision, record, reason))
            self.unplaced[partition] = reason
            return False
        left_s = wait_s(record) - self.view.ages.failures.get(partition, 0.0)
        if left_s > 0:
            self.wakes.append(left_s)
            facts = f"failure {record.count} ({record.kind}): {record.error}"
            self.unplaced[partition] = Reason(Why.BACKING_OFF, facts)
        return left_s <= 0

    def _grants(self, packing: Packing) -> Iterator[Grant]:
        for placed in packing.placed:
            worker = self.snapshot.workers[placed.worker]
            item = placed.item
            yield Grant(item.partition, worker.id, worker.session, worker.etcd_lease, item.demand, placed.reason)

    def _explain(self, packing: Packing) -> None:
        for item in packing.homeless:
            refusals = self.suitable[item.group].refusals
            why = Why.NO_SUITABLE_WORKER if self.snapshot.workers else Why.NO_WORKERS
            self.unplaced[item.partition] = Reason(why, refusals)

    # moving

    def _move(self, placing: bool) -> None:
        """Plans moves within what may be in flight. Relief and spreading wait until nothing else is under way, because
        what is being placed changes the loads that they look at."""
        budget = max(self.policy.moves_in_flight, len(self.snapshot.leases) // 10) - self.in_flight
        for held in self.draining[: max(0, budget)]:
            draining = self.snapshot.drains(held.worker)
            reason = Reason(Why.DRAINING if draining else Why.WORKER_UNSUITABLE, self._against(held))
            self._revoke(self.snapshot.leases[held.item.partition], reason)
        if placing or self.in_flight or self.draining or self.revokes or self.deletions:
            return
        args = (self._slots(), self.kept, self.takers, self.policy.headroom, budget)
        for move in relieve(*args) or spread(*args):
            self._revoke(self.snapshot.leases[move.partition], move.reason)

    def _against(self, held: Held) -> str:
        cordon = self.snapshot.cordons.get(held.worker)
        if cordon is not None and cordon.drain:
            return f"{held.worker}: {cordon.reason}" if cordon.reason else held.worker
        return self.snapshot.workers[held.worker].record.refuses.get(held.item.group, "class or labels do not match")

    def _revoke(self, lease: Lease, reason: Reason) -> None:
        self.revokes.append(Revoke(lease, self.policy.revoke_timeout_s, reason))

    # the rest

    def _slots(self) -> list[Slot]:
        return [
            Slot(worker=name, capacity=worker.record.capacity, load=self.loads.get(name, Resources()))
            for name, worker in sorted(self.snapshot.workers.items())
        ]

    def _demand(self, partition: PartitionId) -> Resources:
        pipeline = self.snapshot.pipelines.get(partition.pipeline)
        return Resources() if pipeline is None else self.view.estimator.demand(partition, pipeline.cut)

    def _avoided(self, partition: PartitionId) -> frozenset[str]:
        failure = self.snapshot.failures.get(partition)
        return frozenset() if failure is None else avoided(failure.record)

    def _forgets(self) -> Iterator[Forget]:
        """Failures and states of pipelines that are no more. Progress stays: a pipeline applied again goes on."""
        keys, prefix = self.view.keys, self.view.keys.spec("pipelines", "")
        pipelines = {*self.snapshot.pipelines, *(key.removeprefix(prefix) for key in self.snapshot.problems)}
        for partition, failure in sorted(self.snapshot.failures.items()):
            if partition.pipeline not in pipelines and partition not in self.snapshot.leases:
                yield Forget(keys.failure(partition), failure.revision)
        for name, state in sorted(self.snapshot.states.items()):
            if name not in pipelines:
                yield Forget(keys.state(name), state.revision)
