"""The mirror follows its prefix through everything that can happen to etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

import pytest

from sluiceway.common.errors import AccessDenied
from sluiceway.common.etcd.api import Listing, Put, Txn
from sluiceway.common.etcd.fake import FakeEtcd, Fault
from sluiceway.common.etcd.mirror import Mirror
from virtual_time import LoopClock, run_virtual


@asynccontextmanager
async def following(mirror: Mirror) -> AsyncIterator[Mirror]:
    task = asyncio.create_task(mirror.run())
    try:
        yield mirror
    finally:
        task.cancel()
        await asyncio.wait([task])


def values(mirror: Mirror) -> dict[str, bytes]:
    return {key: item.value for key, item in mirror.snapshot().items.items()}


def test_it_loads_what_is_there_and_follows_what_comes() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        await etcd.put("/a/1", b"x")
        async with following(Mirror(etcd, "/a/")) as mirror:
            await mirror.wait_for(1)
            snapshot = await mirror.wait_for(await etcd.put("/a/2", b"y"))
            assert {key: item.value for key, item in snapshot.items.items()} == {"/a/1": b"x", "/a/2": b"y"}
            await mirror.wait_for(await etcd.put("/a/1", b"z"))
            await etcd.delete("/a/2")
            await mirror.wait_for(etcd.keyspace.revision)
            assert values(mirror) == {"/a/1": b"z"}
            assert (mirror.resyncs, mirror.events, mirror.loaded) == (0, 3, True)

    run_virtual(scenario())


def test_it_is_not_loaded_before_the_first_listing() -> None:
    mirror = Mirror(FakeEtcd(LoopClock()), "/a/")
    assert not mirror.loaded
    assert mirror.snapshot().revision == 0
    assert not mirror.snapshot().items


def test_a_snapshot_never_changes() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        async with following(Mirror(etcd, "/a/")) as mirror:
            before = await mirror.wait_for(await etcd.put("/a/1", b"x"))
            await mirror.wait_for(await etcd.put("/a/1", b"y"))
            assert before.items["/a/1"].value == b"x"
            assert mirror.snapshot().items["/a/1"].value == b"y"
            assert mirror.snapshot() is mirror.snapshot()
            with pytest.raises(TypeError):
                before.items["/a/1"] = None  # type: ignore[index]

    run_virtual(scenario())


def test_a_revision_that_touched_nothing_below_the_prefix_is_confirmed() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        async with following(Mirror(etcd, "/a/", confirm_after_s=0.5)) as mirror:
            await mirror.wait_for(await etcd.put("/a/1", b"x"))
            elsewhere = await etcd.put("/b/1", b"x")
            started_s = LoopClock().monotonic()
            assert (await mirror.wait_for(elsewhere)).revision == elsewhere
            assert LoopClock().monotonic() - started_s == pytest.approx(0.5)
            assert mirror.resyncs == 0

    run_virtual(scenario())


def test_a_key_that_came_and_went_before_a_confirmed_revision_never_shows_after_it() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        async with following(Mirror(etcd, "/a/")) as mirror:
            await mirror.wait_for(await etcd.put("/a/1", b"x"))
            etcd.lagging = True
            await etcd.put("/a/brief", b"x")
            await etcd.delete("/a/brief")
            await mirror.wait_for(etcd.keyspace.revision)
            etcd.lagging = False
            for _ in range(20):
                await asyncio.sleep(0)
                assert values(mirror) == {"/a/1": b"x"}

    run_virtual(scenario())


def test_confirming_goes_on_while_etcd_is_away() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        writer = etcd.connect()
        async with following(Mirror(etcd, "/a/")) as mirror:
            await mirror.wait_for(await etcd.put("/a/1", b"x"))
            etcd.down = True
            revision = await writer.put("/b/1", b"x")
            waiting = asyncio.create_task(mirror.wait_for(revision))
            await asyncio.sleep(60)
            assert not waiting.done()
            etcd.down = False
            assert (await waiting).revision == revision

    run_virtual(scenario())


def test_compaction_while_disconnected_makes_it_list_again() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        writer = etcd.connect()
        async with following(Mirror(etcd, "/a/")) as mirror:
            await etcd.put("/a/gone", b"x")
            await mirror.wait_for(await etcd.put("/a/kept", b"x"))
            etcd.down = True
            await writer.delete("/a/gone")
            last = await writer.put("/a/new", b"x")
            writer.compact()
            etcd.down = False
            await mirror.wait_for(last)
            assert values(mirror) == {"/a/kept": b"x", "/a/new": b"x"}
            assert mirror.resyncs == 1

    run_virtual(scenario())


def test_a_disconnection_without_compaction_needs_no_new_listing() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        writer = etcd.connect()
        async with following(Mirror(etcd, "/a/")) as mirror:
            await mirror.wait_for(await etcd.put("/a/1", b"x"))
            etcd.down = True
            last = await writer.put("/a/2", b"x")
            etcd.down = False
            await mirror.wait_for(last)
            assert mirror.resyncs == 0

    run_virtual(scenario())


def test_it_loads_when_etcd_comes_up_after_an_hour() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        last = await etcd.connect().put("/a/1", b"x")
        etcd.down = True
        async with following(Mirror(etcd, "/a/")) as mirror:
            await asyncio.sleep(3600)
            assert not mirror.loaded
            etcd.down = False
            started_s = LoopClock().monotonic()
            await mirror.wait_for(last)
            assert LoopClock().monotonic() - started_s <= 2.0

    run_virtual(scenario())


def test_it_follows_a_restored_backup_back() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        await etcd.put("/a/1", b"old")
        backup = deepcopy(etcd.keyspace)
        async with following(Mirror(etcd, "/a/")) as mirror:
            await etcd.put("/a/1", b"new")
            before = await mirror.wait_for(await etcd.put("/a/2", b"new"))
            etcd.restore(backup)
            after = await mirror.changed(before.revision)
            assert {key: item.value for key, item in after.items.items()} == {"/a/1": b"old"}
            assert after.revision == backup.revision

    run_virtual(scenario())


def test_a_waiter_wakes_for_a_change_below_the_prefix_only() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        async with following(Mirror(etcd, "/a/")) as mirror:
            snapshot = await mirror.wait_for(await etcd.put("/a/1", b"x"))
            waiting = asyncio.create_task(mirror.changed(snapshot.revision))
            await mirror.wait_for(await etcd.put("/b/1", b"x"))
            assert not waiting.done()
            await etcd.put("/a/2", b"x")
            assert (await waiting).items.keys() == {"/a/1", "/a/2"}

    run_virtual(scenario())


def test_a_change_before_the_call_returns_at_once() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        async with following(Mirror(etcd, "/a/")) as mirror:
            snapshot = await mirror.wait_for(await etcd.put("/a/1", b"x"))
            await mirror.wait_for(await etcd.put("/a/2", b"x"))
            assert (await mirror.changed(snapshot.revision)).items.keys() == {"/a/1", "/a/2"}

    run_virtual(scenario())


def test_all_keys_of_a_transaction_appear_together() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        async with following(Mirror(etcd, "/a/")) as mirror:
            seen = await mirror.wait_for(await etcd.put("/a/0", b""))
            await etcd.txn(Txn([], [Put(f"/a/{number}", b"") for number in range(1, 100)]))
            assert len((await mirror.changed(seen.revision)).items) == 100

    run_virtual(scenario())


def test_a_failed_listing_is_tried_again() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        last = await etcd.put("/a/1", b"x")
        etcd.fail_next(Fault.LOST, times=3)
        async with following(Mirror(etcd, "/a/")) as mirror:
            await mirror.wait_for(last)
            assert mirror.resyncs == 0

    run_virtual(scenario())


class _Forbidden(FakeEtcd):
    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        raise AccessDenied("etcd: permission denied")


def test_refused_access_ends_it() -> None:
    def run() -> Coroutine[Any, Any, None]:
        return Mirror(_Forbidden(LoopClock()), "/a/").run()

    with pytest.raises(AccessDenied):
        run_virtual(run())
