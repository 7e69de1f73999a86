"""Whatever happens to etcd and to the connection, a mirror that comes to rest equals the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sluiceway.common.etcd.api import Delete, Op, Put, Txn
from sluiceway.common.etcd.fake import FakeEtcd, Fault
from sluiceway.common.etcd.mirror import Mirror, Snapshot
from virtual_time import LoopClock, VirtualLoop

PREFIX = "/m/"
KEYS = st.sampled_from(["/m/a", "/m/b", "/m/c", "/m/d", "/other", "/m"])
VALUES = st.binary(max_size=2)


class MirrorMachine(RuleBasedStateMachine):
    """A writer with a good connection changes the store; the mirror's connection comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.loop = self.runner.get_loop()
        self.writer = FakeEtcd(LoopClock())
        self.etcd = self.writer.connect()
        self.mirror = Mirror(self.etcd, PREFIX)
        self.running = self.loop.create_task(self.mirror.run())
        self.leases: list[int] = []
        self.shown: list[tuple[Snapshot, dict[str, object]]] = []

    def teardown(self) -> None:
        self.running.cancel()
        self.runner.run(_ended(self.running))
        self.runner.close()

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: bytes) -> None:
        self.runner.run(self.writer.put(key, value))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.runner.run(self.writer.delete(key))

    @rule(keys=st.lists(KEYS, unique=True, max_size=4), value=VALUES)
    def transaction(self, keys: list[str], value: bytes) -> None:
        ops: list[Op] = [Put(key, value) if number % 2 else Delete(key) for number, key in enumerate(keys)]
        self.runner.run(self.writer.txn(Txn([], ops)))

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3))
    def put_under_a_lease(self, keys: list[str]) -> None:
        lease = self.runner.run(self.writer.grant(10_000))
        for key in keys:
            self.runner.run(self.writer.put(key, b"leased", lease=lease))
        self.leases.append(lease)

    @precondition(lambda self: bool(self.leases))
    @rule()
    def expire_a_lease(self) -> None:
        self.writer.expire(self.leases.pop(0))

    @rule(share=st.floats(0, 1))
    def compact(self, share: float) -> None:
        keyspace = self.writer.keyspace
        revision = keyspace.compacted + round(share * (keyspace.revision - keyspace.compacted))
        if revision > keyspace.compacted:
            self.writer.compact(revision)

    @rule(down=st.booleans())
    def connection(self, down: bool) -> None:
        self.etcd.down = down

    @rule(lagging=st.booleans())
    def watch_lags(self, lagging: bool) -> None:
        self.etcd.lagging = lagging

    @rule()
    def ask_for_the_present_revision(self) -> None:
        """Even if the watch lags: what can be confirmed without it must be the truth."""
        waiting = self.mirror.wait_for(self.writer.keyspace.revision)
        self.runner.run(_tried(waiting))

    @rule(times=st.integers(1, 4), after=st.integers(0, 3))
    def lose_calls(self, times: int, after: int) -> None:
        self.etcd.fail_next(Fault.LOST, times=times, after=after)

    @rule(turns=st.integers(1, 5))
    def let_it_run_a_little(self, turns: int) -> None:
        for _ in range(turns):
            self.runner.run(asyncio.sleep(0))

    @rule(seconds=st.floats(0.01, 5))
    def let_time_pass(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    @rule()
    def look(self) -> None:
        snapshot = self.mirror.snapshot()
        self.shown.append((snapshot, dict(snapshot.items)))

    @rule()
    def come_to_rest(self) -> None:
        """Every revision asked for arrives, also one that touched nothing below the prefix, and it is the truth."""
        self.etcd.down = self.etcd.lagging = False
        truth = self.writer.keyspace.listing(PREFIX, 0)
        snapshot = self.runner.run(asyncio.wait_for(self.mirror.wait_for(truth.revision), 60))
        assert snapshot.revision == truth.revision
        assert sorted(snapshot.items.values()) == truth.items

    @invariant()
    def the_copy_is_exact_as_of_its_revision(self) -> None:
        keyspace, snapshot = self.writer.keyspace, self.mirror.snapshot()
        if self.mirror.loaded and snapshot.revision >= keyspace.compacted:
            assert sorted(snapshot.items.values()) == keyspace.listing(PREFIX, snapshot.revision).items

    @invariant()
    def snapshots_once_shown_never_change(self) -> None:
        assert all(dict(snapshot.items) == items for snapshot, items in self.shown)

    @invariant()
    def it_never_ends(self) -> None:
        assert not self.running.done()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


async def _tried(waiting: Awaitable[object]) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(waiting, 2)


TestMirror = MirrorMachine.TestCase
TestMirror.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
