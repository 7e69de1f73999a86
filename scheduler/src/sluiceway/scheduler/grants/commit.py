"""Carries a plan out in guarded transactions: it can fail, and it can do nothing that the guards don't allow.

Every transaction compares the term, and each change in it compares what the plan saw (session, token, absence), in a
transaction nested in it, so that one lost compare fails one change only. Nothing is retried here: after a lost compare
or an unknown outcome the next cycle decides on a fresh snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from sluiceway.common.clock import Clock
from sluiceway.common.errors import EtcdUnavailable, LeaseLost
from sluiceway.common.etcd.api import Delete, Etcd, Get, Op, Put, Txn, TxnResult, absent, created_at, modified_at
from sluiceway.common.etcd.election import Term
from sluiceway.common.events import puts
from sluiceway.common.keys import Keys
from sluiceway.common.records import EventRecord, InboxRecord, LeaseRecord, LeaseState, encode
from sluiceway.scheduler.grants.plan import Deletion, Forget, Grant, Plan, Quarantine, Revoke
from sluiceway.scheduler.snapshot import FleetSnapshot

CHANGES_A_TXN = 40  # each holds up to three operations and its event one: etcd allows 128 by default
TXNS_IN_FLIGHT = 8
EVENTS_KEPT = 10_000
EVENTS_TRIMMED_AT = 11_000
EVENTS_SINGLY = 400  # a plan with more changes is recorded in one event a worker and kind


@dataclass(slots=True)
class Outcome:
    """What became of a plan. `revision`: a mirror that has seen it has seen everything that was written.

    `unknown` transactions may or may not have happened.
    """

    revision: int = 0
    written: int = 0
    lost_compares: int = 0
    unknown: int = 0
    granted: int = 0
    revoked: int = 0
    deleted: int = 0
    quarantined: int = 0


@dataclass(slots=True)
class _Change:
    """One guarded change and how it counts."""

    kind: str
    txn: Txn


@dataclass(slots=True)
class Committer:
    """Writes plans under one term."""

    etcd: Etcd
    keys: Keys
    clock: Clock
    term: Term
    actor: str
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TXNS_IN_FLIGHT))

    async def commit(self, plan: Plan, snapshot: FleetSnapshot) -> Outcome:
        """Carries the plan out as far as its guards hold.

        Raises:
            LeaseLost: the term is over; nothing was written in the transaction that found it.
            AccessDenied: etcd refuses this process.
        """
        outcome = Outcome()
        now = self.clock.now()
        # What frees a partition goes before what takes one; a grant never depends on a deletion of the same plan.
        for stage in (
            [self._deletion(d) for d in plan.deletions] + [self._revoke(r) for r in plan.revokes],
            [self._grant(g, now) for g in plan.grants],
            [self._quarantine(q) for q in plan.quarantines]
            + [self._forget(f) for f in plan.forgets]
            + [self._state(name, plan, snapshot) for name in sorted(plan.states)],
        ):
            await self._run(stage, outcome)
        await self._record(plan, now, outcome)
        await self._trim(snapshot, outcome)
        return outcome

    async def settle(self) -> int:
        """A revision of now: whatever an unanswered transaction did before is at or below it, and what it may still do
        later is held to its guards.

        Raises:
            LeaseLost: the term is over.
            EtcdUnavailable, AccessDenied: no answer.
        """
        result = await self.etcd.txn(Txn([self.term.guard()], [Get(self.term.key)]))
        self._check(result)
        return result.revision

    async def _run(self, changes: Sequence[_Change], outcome: Outcome) -> None:
        batches = [changes[at : at + CHANGES_A_TXN] for at in range(0, len(changes), CHANGES_A_TXN)]
        results = await asyncio.gather(*(self._txn(batch, outcome) for batch in batches), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _txn(self, batch: Sequence[_Change], outcome: Outcome) -> None:
        try:
            async with self._slots:
                result = await self.etcd.txn(Txn([self.term.guard()], [change.txn for change in batch]))
        except EtcdUnavailable:
            outcome.unknown += 1
            return
        except LeaseLost:  # some put names an etcd lease that is gone, and etcd refused all of it: find out which
            outcome.lost_compares += len(batch) == 1
            for change in batch if len(batch) > 1 else ():
                await self._txn([change], outcome)
            return
        self._check(result)
        outcome.revision = max(outcome.revision, result.revision)
        for change, nested in zip(batch, result.results, strict=True):
            assert isinstance(nested, TxnResult)
            _count(outcome, change.kind, nested.succeeded)

    def _check(self, result: TxnResult) -> None:
        if not result.succeeded:
            raise LeaseLost(f"term {self.term.number} is over")

    def _grant(self, grant: Grant, now: float) -> _Change:
        lease, reason = self.keys.lease(grant.partition), str(grant.reason)
        record = LeaseRecord(holder=grant.worker, reason=reason, granted_at=now, term=self.term.number)
        inbox = InboxRecord(demand=grant.demand, reason=reason)
        entry = self.keys.inbox_entry(grant.worker, grant.partition)
        return _Change(
            "granted",
            Txn(
                [
                    created_at(self.keys.worker(grant.worker), grant.session),
                    absent(self.keys.cordon(grant.worker)),
                    absent(lease),
                ],
                [Put(lease, encode(record), grant.etcd_lease), Put(entry, encode(inbox), grant.etcd_lease)],
            ),
        )

    def _revoke(self, revoke: Revoke) -> _Change:
        lease, reason = revoke.lease, str(revoke.reason)
        record = msgspec.structs.replace(
            lease.record, state=LeaseState.REVOKING, reason=reason, revoke_timeout_s=revoke.timeout_s
        )
        inbox = InboxRecord(state=LeaseState.REVOKING, reason=reason)
        key = self.keys.lease(lease.partition)
        entry = self.keys.inbox_entry(lease.record.holder, lease.partition)
        return _Change(
            "revoked",
            Txn(
                [created_at(key, lease.token), modified_at(key, lease.revision)],
                [Put(key, encode(record), lease.etcd_lease), Put(entry, encode(inbox), lease.etcd_lease)],
            ),
        )

    def _deletion(self, deletion: Deletion) -> _Change:
        lease = deletion.lease
        key = self.keys.lease(lease.partition)
        entry = self.keys.inbox_entry(lease.record.holder, lease.partition)
        return _Change("deleted", Txn([created_at(key, lease.token)], [Delete(key), Delete(entry)]))

    def _quarantine(self, quarantine: Quarantine) -> _Change:
        key = self.keys.failure(quarantine.partition)
        record = msgspec.structs.replace(quarantine.record, quarantined=True)
        return _Change("quarantined", Txn([modified_at(key, quarantine.revision)], [Put(key, encode(record))]))

    def _forget(self, forget: Forget) -> _Change:
        return _Change("forgotten", Txn([modified_at(forget.key, forget.revision)], [Delete(forget.key)]))

    def _state(self, name: str, plan: Plan, snapshot: FleetSnapshot) -> _Change:
        key, before = self.keys.state(name), snapshot.states.get(name)
        guard = modified_at(key, 0 if before is None else before.revision)
        return _Change("state", Txn([guard], [Put(key, encode(plan.states[name]))]))

    async def _record(self, plan: Plan, now: float, outcome: Outcome) -> None:
        """Writes the plan's moves to the event log, as decided: a change that lost its compare is decided again."""
        written = puts(self.keys, list(self._events(plan, now)))
        await self._write([*written], outcome)

    def _events(self, plan: Plan, now: float) -> Iterator[EventRecord]:
        moves = list(_moves(plan))
        if len(moves) > EVENTS_SINGLY:
            counts: dict[tuple[str, str, str], int] = {}
            for action, _, worker, why, _ in moves:
                counts[action, worker, why] = counts.get((action, worker, why), 0) + 1
            moves = [
                (action, f"{count} partitions", worker, why, why) for (action, worker, why), count in counts.items()
            ]
        for action, subject, worker, _, reason in moves:
            at = f"{reason} (worker {worker})" if worker else reason
            yield EventRecord(at=now, actor=self.actor, action=action, subject=subject, reason=at, cause=plan.id)

    async def _trim(self, snapshot: FleetSnapshot, outcome: Outcome) -> None:
        if len(snapshot.events) > EVENTS_TRIMMED_AT:
            oldest = sorted(snapshot.events)[: len(snapshot.events) - EVENTS_KEPT]
            await self._write([Delete(self.keys.event(sequence)) for sequence in oldest], outcome)

    async def _write(self, ops: Sequence[Op], outcome: Outcome) -> None:
        """Operations that need no guard but the term."""
        for at in range(0, len(ops), 100):
            try:
                result = await self.etcd.txn(Txn([self.term.guard()], ops[at : at + 100]))
            except EtcdUnavailable:
                outcome.unknown += 1
                return
            self._check(result)
            outcome.revision = max(outcome.revision, result.revision)


def _moves(plan: Plan) -> Iterator[tuple[str, str, str, str, str]]:
    """Action, subject, worker, kind of reason, whole reason."""
    for deletion in plan.deletions:
        lease = deletion.lease
        yield "deleted", str(lease.partition), lease.record.holder, deletion.reason.why, str(deletion.reason)
    for revoke in plan.revokes:
        lease = revoke.lease
        yield "revoked", str(lease.partition), lease.record.holder, revoke.reason.why, str(revoke.reason)
    for grant in plan.grants:
        yield "granted", str(grant.partition), grant.worker, grant.reason.why, str(grant.reason)
    for quarantine in plan.quarantines:
        yield "quarantined", str(quarantine.partition), "", quarantine.reason.why, str(quarantine.reason)


def _count(outcome: Outcome, kind: str, succeeded: bool) -> None:
    if not succeeded:
        outcome.lost_compares += 1
        return
    outcome.written += 1
    if kind in ("granted", "revoked", "deleted", "quarantined"):
        setattr(outcome, kind, getattr(outcome, kind) + 1)
