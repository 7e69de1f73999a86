"""The keyspace of etcd as a plain state machine: revisions, leases, nested transactions, history, compaction.

`FakeEtcd` (fake.py) serves it to the same contract as the real etcd. Pure: time is an argument. It must not be kinder
than etcd: what etcd refuses, this refuses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from sluiceway.common.errors import Compacted, LeaseLost
from sluiceway.common.etcd.api import (
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    Listing,
    Newest,
    Op,
    Put,
    Relation,
    Target,
    Txn,
    TxnResult,
    WatchBatch,
)

MAX_TXN_OPS = 128


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    expires_s: float
    keys: set[str] = field(default_factory=set)


class Keyspace:
    """Keys with their history since the last compaction."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.items: dict[str, KeyValue] = {}
        self._at_compaction: dict[str, KeyValue] = {}
        self._history: list[WatchBatch] = []  # one entry a revision, since then
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = count(1000)
        self._pending: list[Event] = []

    # Reading

    def listing(self, prefix: str, revision: int) -> Listing:
        """The keys below a prefix at a revision (0: now).

        Raises:
            Compacted: the revision is older than the last compaction.
            ValueError: the revision is still to come.
        """
        if revision in (0, self.revision):
            return Listing(self.revision, self._below(self.items, prefix))
        if revision > self.revision:
            raise ValueError(f"revision {revision} is still to come")
        if revision < self.compacted:
            raise Compacted(self.compacted + 1)
        return Listing(revision, self._below(self._rewound(revision), prefix))

    def newest(self, prefix: str) -> Newest:
        found = self._below(self.items, prefix)
        return Newest(self.revision, len(found), max((item.mod_revision for item in found), default=0))

    def batches(self, prefix: str, start_revision: int) -> list[WatchBatch]:
        """The events below a prefix, a batch a revision, from `start_revision` on.

        Raises:
            Compacted: some of them may be gone, or `start_revision` is beyond the next one: history went back.
        """
        if not self.compacted < start_revision <= self.revision + 1:
            raise Compacted(self.compacted + 1)
        first = bisect_left(self._history, start_revision, key=lambda batch: batch.revision)
        below = (
            WatchBatch(batch.revision, [event for event in batch.events if event.key.startswith(prefix)])
            for batch in self._history[first:]
        )
        return [batch for batch in below if batch.events]

    @staticmethod
    def _below(items: dict[str, KeyValue], prefix: str) -> list[KeyValue]:
        return [items[key] for key in sorted(items) if key.startswith(prefix)]

    def _rewound(self, revision: int) -> dict[str, KeyValue]:
        """The keys as of a revision: the state at the last compaction, then history up to it."""
        items = dict(self._at_compaction)
        for batch in self._history:
            if batch.revision > revision:
                break
            for event in batch.events:
                if event.item is None:
                    items.pop(event.key, None)
                else:
                    items[event.key] = event.item
        return items

    # Writing

    def txn(self, txn: Txn) -> TxnResult:
        """Runs a transaction as etcd does: all compares (nested ones too) see the state before it.

        Raises:
            ValueError: too many operations, or a key written twice.
            LeaseLost: a Put names a lease that does not exist; nothing was written.
        """
        check_form(txn)
        path = self._choose(txn)
        self._check_leases(path)
        results = self._run(path)
        self._commit()
        return self._stamped(results)

    def compact(self, revision: int) -> None:
        """Forgets the history up to and including `revision`."""
        if not self.compacted < revision <= self.revision:
            raise ValueError(f"can't compact at {revision}: compacted {self.compacted}, now {self.revision}")
        self._at_compaction = self._rewound(revision)
        self._history = [batch for batch in self._history if batch.revision > revision]
        self.compacted = revision

    # Leases

    def grant(self, ttl_s: int, now_s: float) -> int:
        lease = next(self._lease_ids)
        self._leases[lease] = _Lease(ttl_s, now_s + ttl_s)
        return lease

    def keep_alive(self, lease: int, now_s: float) -> float:
        if (held := self._leases.get(lease)) is None:
            return 0.0
        held.expires_s = now_s + held.ttl_s
        return float(held.ttl_s)

    def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys at one revision."""
        if (held := self._leases.pop(lease, None)) is not None:
            for key in sorted(held.keys):
                self._remove(key)
            self._commit()

    def expire_due(self, now_s: float) -> None:
        for lease in sorted(lease for lease, held in self._leases.items() if held.expires_s <= now_s):
            self.revoke(lease)

    # Inside a transaction

    def _choose(self, txn: Txn) -> _Path:
        succeeded = all(self._holds(compare) for compare in txn.compares)
        ops = txn.then if succeeded else txn.otherwise
        return _Path(succeeded, [self._choose(op) if isinstance(op, Txn) else op for op in ops])

    def _holds(self, compare: Compare) -> bool:
        item = self.items.get(compare.key)
        if compare.target is Target.VALUE:
            return item is not None and _related(item.value, compare.relation, compare.expected)
        actual = 0 if item is None else getattr(item, compare.target.value)
        return _related(actual, compare.relation, compare.expected)

    def _check_leases(self, path: _Path) -> None:
        for op in path.ops:
            if isinstance(op, _Path):
                self._check_leases(op)
            elif isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseLost(f"etcd lease {op.lease:x} is gone")

    def _run(self, path: _Path) -> TxnResult:
        results: list[KeyValue | TxnResult | int | None] = []
        for op in path.ops:
            match op:
                case _Path():
                    results.append(self._run(op))
                case Put():
                    self._write(op)
                    results.append(None)
                case Delete():
                    results.append(self._delete(op))
                case Get():
                    results.append(self.items.get(op.key))
        return TxnResult(path.succeeded, 0, results)

    def _write(self, op: Put) -> None:
        old, revision = self.items.get(op.key), self.revision + 1
        self._detach(old)
        created, version = (revision, 1) if old is None else (old.create_revision, old.version + 1)
        item = KeyValue(op.key, op.value, created, revision, version, op.lease)
        self.items[op.key] = item
        if op.lease:
            self._leases[op.lease].keys.add(op.key)
        self._pending.append(Event(op.key, revision, item))

    def _delete(self, op: Delete) -> int:
        keys = [key for key in sorted(self.items) if key.startswith(op.key)] if op.prefix else [op.key]
        return sum(self._remove(key) for key in keys)

    def _remove(self, key: str) -> bool:
        if (old := self.items.pop(key, None)) is None:
            return False
        self._detach(old)
        self._pending.append(Event(key, self.revision + 1, None))
        return True

    def _detach(self, item: KeyValue | None) -> None:
        if item is not None and item.lease in self._leases:
            self._leases[item.lease].keys.discard(item.key)

    def _commit(self) -> None:
        if self._pending:
            self.revision += 1
            self._history.append(WatchBatch(self.revision, self._pending))
            self._pending = []

    def _stamped(self, result: TxnResult) -> TxnResult:
        results = [self._stamped(each) if isinstance(each, TxnResult) else each for each in result.results]
        return TxnResult(result.succeeded, self.revision, results)


@dataclass(frozen=True, slots=True)
class _Path:
    """The branch of a transaction that runs, all compares being decided."""

    succeeded: bool
    ops: list[Put | Delete | Get | _Path]


def _related(actual: int | bytes, relation: Relation, expected: int | bytes) -> bool:
    match relation:
        case Relation.EQUAL:
            return actual == expected
        case Relation.NOT_EQUAL:
            return actual != expected
        case Relation.GREATER:
            return actual > expected  # type: ignore[operator]  # both are of the target's type
        case Relation.LESS:
            return actual < expected  # type: ignore[operator]


def check_form(txn: Txn) -> None:
    """Refuses what etcd's front refuses before looking at any key.

    Raises:
        ValueError: too many operations, or a key written twice on one path.
    """
    _check_size(txn, MAX_TXN_OPS)
    _check_overlaps(txn.then)
    _check_overlaps(txn.otherwise)


def _check_size(txn: Txn, allowed: int) -> None:
    # etcd's own count: the longest list of each level, added up along each way down
    used = max(len(txn.compares), len(txn.then), len(txn.otherwise))
    if used > allowed:
        raise ValueError("etcdserver: too many operations in txn request")
    for op in (*txn.then, *txn.otherwise):
        if isinstance(op, Txn):
            _check_size(op, allowed - used)


def _check_overlaps(ops: Sequence[Op]) -> tuple[set[str], list[Delete]]:
    """The keys put and the deletes of these operations, as etcd's `checkIntervals` finds them."""
    deletes = [op for op in ops if isinstance(op, Delete)]
    puts: set[str] = set()
    for op in ops:
        if isinstance(op, Txn):
            then, then_deletes = _check_overlaps(op.then)
            otherwise, otherwise_deletes = _check_overlaps(op.otherwise)
            if (then | otherwise) & puts or any(_deleted(key, deletes) for key in then | otherwise):
                raise ValueError("etcdserver: duplicate key given in txn request")
            puts |= then | otherwise
            deletes += then_deletes + otherwise_deletes
    for op in ops:
        if isinstance(op, Put):
            if op.key in puts or _deleted(op.key, deletes):
                raise ValueError("etcdserver: duplicate key given in txn request")
            puts.add(op.key)
    return puts, deletes


def _deleted(key: str, deletes: list[Delete]) -> bool:
    return any(key.startswith(each.key) if each.prefix else key == each.key for each in deletes)
