"""The in-memory etcd and the real one keep the same promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from sluiceway.cli.stack.etcd import EtcdServer
from sluiceway.common.errors import Compacted, EtcdUnavailable, LeaseLost
from sluiceway.common.etcd.api import (
    Compare,
    Delete,
    Etcd,
    Event,
    Get,
    KeyValue,
    Op,
    Put,
    Relation,
    Target,
    Txn,
    TxnResult,
    WatchBatch,
    absent,
    created_at,
    modified_at,
)
from sluiceway.common.etcd.client import connect
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.settings import EtcdSettings


@dataclass(frozen=True)
class Served:
    """An etcd that nobody else uses, and how to compact it."""

    etcd: Etcd
    compact: Callable[[int], Awaitable[object]]
    another: Callable[[], Awaitable[Etcd]]


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(durable=False) as running:
        yield running


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.servers)])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    if request.param == "fake":
        fake = FakeEtcd()

        async def compact(revision: int) -> None:
            fake.compact(revision)

        async def another() -> Etcd:
            return fake.connect()

        yield Served(fake, compact, another)
        await fake.close()
        return
    server: EtcdServer = request.getfixturevalue("server")
    settings = EtcdSettings(endpoints=[server.endpoint])
    real = await connect(settings)
    await real.delete("", prefix=True)
    yield Served(
        real, lambda revision: asyncio.to_thread(server.ctl, "compaction", str(revision)), lambda: connect(settings)
    )
    await real.close()


@pytest.fixture
def etcd(served: Served) -> Etcd:
    return served.etcd


async def read(etcd: Etcd, prefix: str, start_revision: int, until: int) -> list[WatchBatch]:
    """The batches with events up to the revision `until`."""
    found = []
    async with asyncio.timeout(10), aclosing(etcd.watch(prefix, start_revision=start_revision)) as batches:
        async for batch in batches:
            if batch.events:
                found.append(batch)
            if batch.revision >= until:
                break
    return found


async def test_a_put_key_is_read_back_with_its_numbers(etcd: Etcd) -> None:
    first = await etcd.put("/k", b"one")
    second = await etcd.put("/k", b"two")
    assert await etcd.get("/k") == KeyValue("/k", b"two", first, second, 2, 0)
    assert second == first + 1


async def test_a_key_that_does_not_exist_is_none(etcd: Etcd) -> None:
    assert await etcd.get("/nothing") is None


async def test_a_deleted_and_created_key_starts_again_at_version_one(etcd: Etcd) -> None:
    await etcd.put("/k", b"one")
    assert await etcd.delete("/k") == 1
    assert await etcd.delete("/k") == 0
    revision = await etcd.put("/k", b"two")
    assert await etcd.get("/k") == KeyValue("/k", b"two", revision, revision, 1, 0)


async def test_deleting_a_prefix_counts_and_spares_its_neighbours(etcd: Etcd) -> None:
    for key in ("/a", "/a/1", "/a/2", "/a0", "/b"):
        await etcd.put(key, b"")
    assert await etcd.delete("/a/", prefix=True) == 2
    assert [item.key for item in (await etcd.list("")).items] == ["/a", "/a0", "/b"]


async def test_a_listing_is_sorted_and_as_of_one_revision(etcd: Etcd) -> None:
    await etcd.put("/l/b", b"1")
    revision = await etcd.put("/l/a", b"2")
    await etcd.put("/other", b"")
    listing = await etcd.list("/l/")
    assert [item.key for item in listing.items] == ["/l/a", "/l/b"]
    assert listing.revision == revision + 1


async def test_an_old_revision_is_listed_as_it_was(etcd: Etcd) -> None:
    first = await etcd.put("/l/a", b"1")
    await etcd.put("/l/a", b"2")
    await etcd.put("/l/b", b"3")
    await etcd.delete("/l/a")
    listing = await etcd.list("/l/", revision=first)
    assert listing.revision == first
    assert listing.items == [KeyValue("/l/a", b"1", first, first, 1, 0)]


async def test_a_compacted_revision_is_not_listed(served: Served) -> None:
    first = await served.etcd.put("/l/a", b"1")
    second = await served.etcd.put("/l/a", b"2")
    third = await served.etcd.put("/l/a", b"3")
    await served.compact(second)
    with pytest.raises(Compacted):
        await served.etcd.list("/l/", revision=first)
    assert [item.value for item in (await served.etcd.list("/l/", revision=second)).items] == [b"2"]
    assert (await served.etcd.list("/l/")).revision == third


async def test_newest_tells_count_and_newest_write_below_a_prefix(etcd: Etcd) -> None:
    assert (await etcd.newest("/n/")).count == 0
    await etcd.put("/n/a", b"")
    newest = await etcd.put("/n/b", b"")
    now = await etcd.put("/other", b"")
    found = await etcd.newest("/n/")
    assert (found.revision, found.count, found.mod_revision) == (now, 2, newest)


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (absent("/k"), False),
        (absent("/none"), True),
        (modified_at("/none", 0), True),
        (Compare("/k", Target.VERSION, 2), True),
        (Compare("/k", Target.VERSION, 2, Relation.GREATER), False),
        (Compare("/k", Target.VERSION, 3, Relation.LESS), True),
        (Compare("/k", Target.VERSION, 7, Relation.NOT_EQUAL), True),
        (Compare("/k", Target.LEASE, 0), True),
        (Compare("/none", Target.LEASE, 0), True),
        (Compare("/k", Target.VALUE, b"two"), True),
        (Compare("/k", Target.VALUE, b"one", Relation.GREATER), True),
        (Compare("/none", Target.VALUE, b""), False),
        (Compare("/none", Target.VALUE, b"x", Relation.NOT_EQUAL), False),
        (Compare("/none", Target.VERSION, 1, Relation.LESS), True),
    ],
)
async def test_a_compare_decides_which_branch_runs(etcd: Etcd, compare: Compare, holds: bool) -> None:
    await etcd.put("/k", b"one")
    await etcd.put("/k", b"two")
    result = await etcd.txn(Txn([compare], [Put("/then", b"")], [Put("/else", b"")]))
    assert result.succeeded is holds
    assert (await etcd.get("/then") is not None, await etcd.get("/else") is not None) == (holds, not holds)


async def test_guards_on_revisions_hold_until_the_key_changes(etcd: Etcd) -> None:
    created = await etcd.put("/k", b"1")
    modified = await etcd.put("/k", b"2")
    guards = [created_at("/k", created), modified_at("/k", modified)]
    assert (await etcd.txn(Txn(guards, [Put("/k", b"3")]))).succeeded
    assert not (await etcd.txn(Txn(guards, []))).succeeded
    assert (await etcd.txn(Txn(guards[:1], []))).succeeded


async def test_a_transaction_gives_one_result_an_operation_at_one_revision(etcd: Etcd) -> None:
    before = await etcd.put("/x/1", b"")
    await etcd.put("/x/2", b"")
    ops: list[Op] = [Put("/y", b"new"), Get("/y"), Get("/none"), Delete("/x/", prefix=True), Delete("/none")]
    result = await etcd.txn(Txn([], ops))
    revision = before + 2
    assert result == TxnResult(True, revision, [None, KeyValue("/y", b"new", revision, revision, 1, 0), None, 2, 0])


async def test_a_transaction_without_effect_takes_no_revision(etcd: Etcd) -> None:
    revision = await etcd.put("/k", b"")
    assert (await etcd.txn(Txn([absent("/k")], [Put("/k", b"")], [Get("/k")]))).revision == revision
    await etcd.delete("/none")
    assert (await etcd.list("")).revision == revision


async def test_one_lost_compare_of_nested_transactions_fails_that_one_only(etcd: Etcd) -> None:
    await etcd.put("/taken", b"old")
    result = await etcd.txn(
        Txn([], [Txn([absent(key)], [Put(key, b"new")], [Get(key)]) for key in ("/taken", "/free")])
    )
    taken, free = result.results
    assert isinstance(taken, TxnResult)
    assert isinstance(free, TxnResult)
    assert (taken.succeeded, free.succeeded) == (False, True)
    assert isinstance(taken.results[0], KeyValue)
    assert {item.key: item.value for item in (await etcd.list("")).items} == {"/taken": b"old", "/free": b"new"}
    assert {taken.revision, free.revision} == {result.revision}


async def test_nested_compares_see_the_state_before_the_transaction(etcd: Etcd) -> None:
    result = await etcd.txn(Txn([], [Put("/k", b""), Txn([absent("/k")], [Put("/was-absent", b"")])]))
    assert result.succeeded
    assert await etcd.get("/was-absent") is not None


async def test_gets_see_what_the_transaction_wrote_before_them(etcd: Etcd) -> None:
    result = await etcd.txn(Txn([], [Get("/k"), Put("/k", b"1"), Get("/k"), Txn([], [Get("/k")])]))
    before, _, after, nested = result.results
    assert before is None
    assert isinstance(after, KeyValue)
    assert isinstance(nested, TxnResult)
    assert nested.results == [after]


@pytest.mark.parametrize(
    "ops",
    [
        [Put("/k", b"1"), Put("/k", b"2")],
        [Put("/k", b"1"), Delete("/k")],
        [Delete("/", prefix=True), Put("/k", b"1")],
        [Put("/k", b"1"), Txn([], [Put("/k", b"2")])],
        [Txn([absent("/k")], [Put("/k", b"1")]), Txn([absent("/j")], [], [Put("/k", b"2")])],
        [Delete("/k"), Txn([], [Put("/k", b"2")])],
        [Txn([], [Delete("/k")]), Txn([], [Put("/k", b"2")])],
        [Txn([], [Delete("/k")]), Put("/k", b"2")],
    ],
)
async def test_a_key_written_twice_in_one_transaction_is_refused(etcd: Etcd, ops: list[Op]) -> None:
    revision = (await etcd.list("")).revision
    with pytest.raises(ValueError, match="duplicate key"):
        await etcd.txn(Txn([], ops))
    assert (await etcd.list("")).revision == revision


@pytest.mark.parametrize(
    "ops",
    [
        [Txn([absent("/k")], [Put("/k", b"1")], [Put("/k", b"2")])],
        [Delete("/k"), Delete("/k")],
        [Txn([], [Put("/k", b"2")]), Txn([], [Delete("/k")])],
        [Get("/k"), Put("/k", b"1"), Get("/k")],
    ],
)
async def test_what_etcd_does_not_count_as_written_twice_is_accepted(etcd: Etcd, ops: list[Op]) -> None:
    assert (await etcd.txn(Txn([], ops))).succeeded


def _nested(outer: int, inner: int) -> Txn:
    first = Txn([], [Put(f"/inner/{n}", b"") for n in range(inner)])
    return Txn([], [first, *(Put(f"/outer/{n}", b"") for n in range(outer - 1))])


@pytest.mark.parametrize(
    "txn",
    [
        Txn([], [Put(f"/{n}", b"") for n in range(128)]),
        Txn([absent(f"/{n}") for n in range(128)], []),
        _nested(28, 100),
    ],
)
async def test_transactions_up_to_the_limit_are_accepted(etcd: Etcd, txn: Txn) -> None:
    assert (await etcd.txn(txn)).succeeded


@pytest.mark.parametrize(
    "txn",
    [
        Txn([], [Put(f"/{n}", b"") for n in range(129)]),
        Txn([absent(f"/{n}") for n in range(129)], []),
        Txn([], [], [Put(f"/{n}", b"") for n in range(129)]),
        _nested(29, 100),
    ],
)
async def test_transactions_beyond_the_limit_are_refused(etcd: Etcd, txn: Txn) -> None:
    with pytest.raises(ValueError, match="too many operations"):
        await etcd.txn(txn)
    assert (await etcd.list("")).items == []


async def test_a_revoked_lease_takes_its_keys_with_it_at_one_revision(etcd: Etcd) -> None:
    lease = await etcd.grant(60)
    for key in ("/s/b", "/s/a", "/s/moved"):
        await etcd.put(key, b"", lease=lease)
    last = await etcd.put("/s/moved", b"")
    await etcd.revoke(lease)
    assert [item.key for item in (await etcd.list("/s/")).items] == ["/s/moved"]
    assert await read(etcd, "/s/", last + 1, last + 1) == [
        WatchBatch(last + 1, [Event("/s/a", last + 1, None), Event("/s/b", last + 1, None)])
    ]


async def test_a_lease_that_is_gone_is_neither_kept_alive_nor_an_error_to_revoke(etcd: Etcd) -> None:
    lease = await etcd.grant(60)
    assert await etcd.keep_alive(lease) == 60
    await etcd.revoke(lease)
    await etcd.revoke(lease)
    assert await etcd.keep_alive(lease) == 0


async def test_nothing_is_written_under_a_lease_that_is_gone(etcd: Etcd) -> None:
    lease = await etcd.grant(60)
    await etcd.revoke(lease)
    with pytest.raises(LeaseLost):
        await etcd.put("/k", b"", lease=lease)
    with pytest.raises(LeaseLost):
        await etcd.txn(Txn([], [Put("/other", b""), Txn([], [Put("/k", b"", lease=lease)])]))
    assert (await etcd.list("")).items == []


async def test_a_lease_that_is_gone_does_no_harm_in_a_branch_that_does_not_run(etcd: Etcd) -> None:
    lease = await etcd.grant(60)
    await etcd.put("/session", b"", lease=lease)
    await etcd.revoke(lease)
    guarded = Txn([Compare("/session", Target.CREATE, 0, Relation.GREATER)], [Put("/k", b"", lease=lease)])
    assert (await etcd.txn(Txn([], [guarded, Put("/other", b"")]))).succeeded
    assert [item.key for item in (await etcd.list("")).items] == ["/other"]


async def test_a_key_shows_its_lease(etcd: Etcd) -> None:
    lease = await etcd.grant(60)
    await etcd.put("/k", b"", lease=lease)
    item = await etcd.get("/k")
    assert item is not None
    assert item.lease == lease
    assert (await etcd.txn(Txn([Compare("/k", Target.LEASE, lease)], []))).succeeded


async def test_a_watch_gives_every_revision_from_its_start_whole_and_in_order(etcd: Etcd) -> None:
    first = await etcd.put("/w/a", b"1")
    await etcd.put("/other", b"")
    await etcd.txn(Txn([], [Put("/w/a", b"2"), Put("/w/b", b"3"), Put("/elsewhere", b"")]))
    last = first + 3
    assert await etcd.delete("/w/a") == 1
    batches = await read(etcd, "/w/", first, last)
    events = [event for batch in batches for event in batch.events]
    assert events == [
        Event("/w/a", first, KeyValue("/w/a", b"1", first, first, 1, 0)),
        Event("/w/a", first + 2, KeyValue("/w/a", b"2", first, first + 2, 2, 0)),
        Event("/w/b", first + 2, KeyValue("/w/b", b"3", first + 2, first + 2, 1, 0)),
        Event("/w/a", last, None),
    ]


async def test_a_watch_starts_exactly_at_its_revision(etcd: Etcd) -> None:
    await etcd.put("/w/a", b"1")
    second = await etcd.put("/w/a", b"2")
    batches = await read(etcd, "/w/", second, second)
    assert [event.mod_revision for batch in batches for event in batch.events] == [second]


async def test_a_watch_waits_for_what_is_still_to_come(etcd: Etcd) -> None:
    now = await etcd.put("/w/a", b"1")
    waiting = asyncio.create_task(read(etcd, "/w/", now + 1, now + 1))
    await asyncio.sleep(0)
    later = await etcd.put("/w/b", b"2")
    assert [event.mod_revision for batch in await waiting for event in batch.events] == [later]


async def test_a_watch_of_compacted_history_says_so(served: Served) -> None:
    first = await served.etcd.put("/w/a", b"1")
    await served.etcd.put("/w/a", b"2")
    last = await served.etcd.put("/w/a", b"3")
    await served.compact(last - 1)
    with pytest.raises(Compacted) as caught:
        await read(served.etcd, "/w/", first, last)
    assert caught.value.revision == last
    assert [batch.revision for batch in await read(served.etcd, "/w/", last, last)] == [last]


async def test_a_deletion_at_the_compacted_revision_is_never_silently_missed(served: Served) -> None:
    await served.etcd.put("/w/a", b"1")
    deleted = await served.etcd.put("/w/b", b"2") + 1
    await served.etcd.delete("/w/a")
    after = await served.etcd.put("/w/b", b"3")
    await served.compact(deleted)
    with pytest.raises(Compacted):
        await read(served.etcd, "/w/", deleted, after)


async def test_a_watch_from_a_revision_that_etcd_has_never_reached_says_that_history_is_gone(etcd: Etcd) -> None:
    now = await etcd.put("/w/a", b"")
    with pytest.raises(Compacted):
        await read(etcd, "/w/", now + 2, now + 2)


async def test_compaction_does_not_disturb_a_watch_that_has_seen_everything(served: Served) -> None:
    now = await served.etcd.put("/w/a", b"1")
    found: asyncio.Queue[WatchBatch] = asyncio.Queue()

    async def follow() -> None:
        async with aclosing(served.etcd.watch("/w/", start_revision=now)) as batches:
            async for batch in batches:
                await found.put(batch)

    following = asyncio.create_task(follow())
    assert (await found.get()).revision == now
    for number in range(3):
        await served.compact(await served.etcd.put("/other", str(number).encode()))
    later = await served.etcd.put("/w/a", b"2")
    assert (await asyncio.wait_for(found.get(), 10)).revision == later
    following.cancel()
    await asyncio.wait([following])


async def test_two_clients_see_each_other(served: Served) -> None:
    other = await served.another()
    revision = await other.put("/k", b"1")
    assert (await served.etcd.list("")).revision == revision
    await other.close()


async def test_a_closed_client_ends_its_watches_and_refuses_calls(served: Served) -> None:
    client = await served.another()
    now = await client.put("/w/a", b"")
    watching = asyncio.create_task(read(client, "/w/", now + 1, now + 1))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(EtcdUnavailable):
        await watching
    with pytest.raises(EtcdUnavailable):
        await client.get("/k")
    await client.close()
