"""An etcd in memory, for tests and simulations: the same contract as the real one, with faults on demand.

Each `FakeEtcd` is one client's connection; `connect()` gives another one to the same keyspace, with its own faults.
Time comes from the given clock. An etcd lease ends when a call or `tick()` finds it due, or by `expire`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from enum import Enum, auto
from typing import TypeVar
from weakref import WeakSet

from sluiceway.common.clock import Clock, SystemClock
from sluiceway.common.errors import Compacted, EtcdUnavailable
from sluiceway.common.etcd.api import Delete, KeyValue, Listing, Newest, Put, Txn, TxnResult, WatchBatch
from sluiceway.common.etcd.memory import Keyspace

T = TypeVar("T")


class Fault(Enum):
    """How a call fails: both raise EtcdUnavailable."""

    LOST = auto()  # the request never arrives
    APPLIED = auto()  # it takes effect, the answer never arrives


class FakeEtcd:
    """An `Etcd` in memory.

    `down = True` cuts this client off: calls raise EtcdUnavailable, watches stand still as if reconnecting.
    `lagging = True` holds back what the watches receive, while calls are answered.
    """

    def __init__(self, clock: Clock | None = None, *, _shared: _Shared | None = None) -> None:
        self._shared = _shared or _Shared(clock or SystemClock())
        self._faults: deque[Fault | None] = deque()
        self._down = False
        self._lagging = False
        self._closed = False
        self._cursors: list[_Cursor] = []
        self._shared.clients.add(self)

    # What a test or a simulation does to it

    def connect(self) -> FakeEtcd:
        """Another client of the same keyspace."""
        return FakeEtcd(_shared=self._shared)

    @property
    def keyspace(self) -> Keyspace:
        """The truth, for comparing."""
        return self._shared.keyspace

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        self._down = down
        self._shared.wake()

    @property
    def lagging(self) -> bool:
        return self._lagging

    @lagging.setter
    def lagging(self, lagging: bool) -> None:
        self._lagging = lagging
        self._shared.wake()

    def fail_next(self, fault: Fault = Fault.LOST, *, times: int = 1, after: int = 0) -> None:
        """Lets `after` calls of this client pass, then fails `times` of them."""
        self._faults.extend([None] * after + [fault] * times)

    def expire(self, lease: int) -> None:
        """Ends an etcd lease as if its TTL had passed."""
        self._shared.keyspace.revoke(lease)
        self._shared.wake()

    def tick(self) -> None:
        """Ends the leases that are due on the clock."""
        self._shared.settle()

    def compact(self, revision: int = 0) -> None:
        """Forgets history up to a revision (0: all of it). Watches that are connected have received it before."""
        for client in self._shared.clients:
            client._receive()
        self.keyspace.compact(revision or self.keyspace.revision)
        self._shared.wake()

    def restore(self, keyspace: Keyspace) -> None:
        """Replaces the keyspace, as an operator does who restores a backup."""
        self._shared.keyspace = keyspace
        self._shared.wake()

    # Etcd

    async def get(self, key: str) -> KeyValue | None:
        return await self._call(lambda: self.keyspace.items.get(key))

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        return await self._call(lambda: self.keyspace.listing(prefix, revision))

    async def newest(self, prefix: str) -> Newest:
        return await self._call(lambda: self.keyspace.newest(prefix))

    async def txn(self, txn: Txn) -> TxnResult:
        return await self._call(lambda: self.keyspace.txn(txn))

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self.txn(Txn((), [Put(key, value, lease)]))).revision

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        (deleted,) = (await self.txn(Txn((), [Delete(key, prefix)]))).results
        assert isinstance(deleted, int)
        return deleted

    async def grant(self, ttl_s: int) -> int:
        return await self._call(lambda: self.keyspace.grant(ttl_s, self._shared.clock.monotonic()))

    async def keep_alive(self, lease: int) -> float:
        return await self._call(lambda: self.keyspace.keep_alive(lease, self._shared.clock.monotonic()))

    async def revoke(self, lease: int) -> None:
        await self._call(lambda: self.keyspace.revoke(lease))

    async def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        cursor = _Cursor(prefix, start_revision)
        self._cursors.append(cursor)
        try:
            while not self._closed:
                changed = self._shared.changed
                if not self._down:
                    cursor.catch_up(self.keyspace)
                if cursor.waiting and not (self._down or self._lagging):
                    yield cursor.waiting.popleft()
                else:
                    await changed.wait()
            raise EtcdUnavailable("this client is closed")
        finally:
            self._cursors.remove(cursor)

    async def close(self) -> None:
        self._closed = True
        self._shared.wake()

    def _receive(self) -> None:
        if not self._down:
            for cursor in self._cursors:
                with suppress(Compacted):  # it will find out itself
                    cursor.catch_up(self.keyspace)

    async def _call(self, act: Callable[[], T]) -> T:
        await asyncio.sleep(0)  # as any call over a network, it lets others run
        fault = self._faults.popleft() if self._faults else None
        if self._down or self._closed or fault is Fault.LOST:
            raise EtcdUnavailable("etcd did not answer")
        self._shared.settle()
        result = act()
        self._shared.wake()
        if fault is Fault.APPLIED:
            raise EtcdUnavailable("etcd's answer was lost")
        return result


class _Cursor:
    """How far one watch has received the history, and what its reader has not taken yet."""

    def __init__(self, prefix: str, start_revision: int) -> None:
        self._prefix, self._next_revision = prefix, start_revision
        self.waiting: deque[WatchBatch] = deque()

    def catch_up(self, keyspace: Keyspace) -> None:
        self.waiting.extend(keyspace.batches(self._prefix, self._next_revision))
        self._next_revision = keyspace.revision + 1


class _Shared:
    """What the clients of one keyspace share."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.keyspace = Keyspace()
        self.changed = asyncio.Event()
        self.clients: WeakSet[FakeEtcd] = WeakSet()

    def settle(self) -> None:
        self.keyspace.expire_due(self.clock.monotonic())
        self.wake()

    def wake(self) -> None:
        """Lets every waiting watch look again."""
        self.changed.set()
        self.changed = asyncio.Event()
