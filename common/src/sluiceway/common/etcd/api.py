"""What Sluiceway needs of etcd, as a Protocol that the real adapter and the fake both serve.

One contract suite (`tests/contract/test_etcd_contract.py`) runs on both.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol


class KeyValue(NamedTuple):
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int  # 0: attached to no lease


class Target(StrEnum):
    CREATE = "create_revision"
    MOD = "mod_revision"
    VERSION = "version"
    LEASE = "lease"
    VALUE = "value"


class Relation(StrEnum):
    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclass(frozen=True, slots=True)
class Compare:
    """One guard of a transaction. A key that does not exist has 0 for every number and fails any VALUE compare."""

    key: str
    target: Target
    expected: int | bytes
    relation: Relation = Relation.EQUAL


def absent(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, Target.CREATE, 0)


def created_at(key: str, revision: int) -> Compare:
    """The key exists and was created at `revision`: the guard on terms, sessions and tokens."""
    return Compare(key, Target.CREATE, revision)


def modified_at(key: str, revision: int) -> Compare:
    """The key was last written at `revision`; 0: it does not exist."""
    return Compare(key, Target.MOD, revision)


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    key: str


@dataclass(frozen=True, slots=True)
class Txn:
    """`then` runs if every compare holds, `otherwise` if not, at one revision. Transactions nest."""

    compares: Sequence[Compare]
    then: Sequence[Op]
    otherwise: Sequence[Op] = ()


Op = Put | Delete | Get | Txn


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`results` has one entry an operation of the branch that ran: None for Put, the number of deleted keys for
    Delete, the KeyValue or None for Get, a TxnResult for Txn."""

    succeeded: bool
    revision: int
    results: list[KeyValue | TxnResult | int | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Listing:
    """Every key below a prefix as of one revision, sorted by key."""

    revision: int
    items: list[KeyValue]


@dataclass(frozen=True, slots=True)
class Newest:
    """What tells whether a copy of a prefix lacks anything, without reading it: same count and nothing newer."""

    revision: int
    count: int
    mod_revision: int  # 0: there is no key


@dataclass(frozen=True, slots=True)
class Event:
    """A put has a value; a delete has `value is None` and only `key` and `mod_revision` mean something."""

    key: str
    mod_revision: int
    item: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All events of one or several whole revisions, in order. `revision`: everything up to it has been seen.

    A batch without events is a progress notification. A revision is never split between batches.
    """

    revision: int
    events: list[Event]


class Etcd(Protocol):
    """One etcd cluster. Every method raises EtcdUnavailable or AccessDenied; see each for more.

    No write is retried by the adapter: after EtcdUnavailable its outcome is unknown, and the caller reads.
    """

    async def get(self, key: str) -> KeyValue | None:
        """Linearizable read of one key."""

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        """All keys below `prefix` at one revision (0: now), read in pages.

        Raises:
            Compacted: the revision was compacted while paging (a listing at 0 starts again by itself).
        """

    async def txn(self, txn: Txn) -> TxnResult:
        """Runs one transaction: at most 128 operations in all, nested ones included.

        Raises:
            LeaseLost: a Put of the branch that would run names an etcd lease that is gone; nothing was written.
            ValueError: etcd refuses its form: too many operations, too large, or a key written twice.
        """

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Writes one key unconditionally; returns the revision.

        Raises:
            LeaseLost: the etcd lease is gone; nothing was written.
        """

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """Deletes a key or all keys below a prefix; returns how many there were."""

    async def grant(self, ttl_s: int) -> int:
        """A new etcd lease; returns its id."""

    async def keep_alive(self, lease: int) -> float:
        """Refreshes an etcd lease once; returns its TTL in seconds, 0 when it is gone."""

    async def revoke(self, lease: int) -> None:
        """Ends an etcd lease and deletes its keys; no error when it is gone already."""

    async def newest(self, prefix: str) -> Newest:
        """Linearizable: how many keys there are below `prefix`, and the newest of their mod_revisions."""

    def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every event below `prefix` from `start_revision` on, each revision exactly once, over reconnects.

        Reconnects for as long as it is read. Close it (`contextlib.aclosing`) when leaving it before its end.

        Raises:
            Compacted: the history from the wanted revision on is gone, or etcd itself went back; list again.
        """

    async def close(self) -> None:
        """Ends all calls and watches."""
