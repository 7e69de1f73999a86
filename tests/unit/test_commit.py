"""Carrying plans out on the fake etcd: what the guards let through."""

from __future__ import annotations

import pytest

from scheduling import KEYS, partition
from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import LeaseLost
from sluiceway.common.etcd.election import Term
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.records import CordonRecord, EventRecord, InboxRecord, LeaseRecord, LeaseState, decode, encode
from sluiceway.common.resources import Resources
from sluiceway.scheduler.grants.commit import EVENTS_KEPT, EVENTS_TRIMMED_AT, Committer
from sluiceway.scheduler.grants.plan import Grant, Plan, Revoke
from sluiceway.scheduler.placement.reasons import Reason, Why
from sluiceway.scheduler.snapshot import FleetSnapshot, SnapshotReader

DEMAND = Resources(cpu=0.5)


async def committer(etcd: FakeEtcd) -> Committer:
    term = Term(key=KEYS.leader, number=await etcd.put(KEYS.leader, b"s1"))
    return Committer(etcd, KEYS, SystemClock(), term, "s1")


async def worker(etcd: FakeEtcd, name: str) -> tuple[int, int]:
    lease = await etcd.grant(60)
    return await etcd.put(KEYS.worker(name), b"{}", lease=lease), lease


def grant(number: int, name: str, session: tuple[int, int]) -> Grant:
    return Grant(partition(number), name, *session, DEMAND, Reason(Why.FITS))


async def snapshot(etcd: FakeEtcd) -> FleetSnapshot:
    listing = await etcd.list(KEYS.root)
    return SnapshotReader(KEYS).read(listing.revision, {item.key: item for item in listing.items})


async def test_a_grant_writes_lease_and_inbox_with_one_token_under_the_holders_session() -> None:
    etcd = FakeEtcd()
    session = await worker(etcd, "w")
    outcome = await (await committer(etcd)).commit(Plan(id="x", grants=(grant(0, "w", session),)), FleetSnapshot())
    lease, inbox = (
        etcd.keyspace.items[KEYS.lease(partition(0))],
        etcd.keyspace.items[KEYS.inbox_entry("w", partition(0))],
    )
    assert (outcome.granted, lease.create_revision, lease.lease) == (1, inbox.create_revision, inbox.lease)
    assert lease.lease == session[1]
    assert decode(LeaseRecord, lease.value).reason == "fits"
    assert decode(InboxRecord, inbox.value).demand == DEMAND


async def test_a_lost_compare_fails_its_own_change_only() -> None:
    etcd = FakeEtcd()
    good, stale, cordoned = await worker(etcd, "good"), await worker(etcd, "stale"), await worker(etcd, "cordoned")
    await etcd.put(KEYS.cordon("cordoned"), encode(CordonRecord(worker="cordoned")))
    await etcd.put(KEYS.lease(partition(3)), b"{}")
    plan = Plan(
        id="x",
        grants=(
            grant(0, "good", good),
            grant(1, "stale", (stale[0] - 1, stale[1])),
            grant(2, "cordoned", cordoned),
            grant(3, "good", good),
        ),
    )
    outcome = await (await committer(etcd)).commit(plan, FleetSnapshot())
    assert (outcome.granted, outcome.lost_compares) == (1, 3)


async def test_an_etcd_lease_that_is_gone_fails_its_own_change_only() -> None:
    etcd = FakeEtcd()
    good, odd = await worker(etcd, "good"), await worker(etcd, "odd")
    plan = Plan(id="x", grants=(grant(0, "odd", (odd[0], 424242)), grant(1, "good", good)))
    outcome = await (await committer(etcd)).commit(plan, FleetSnapshot())
    assert (outcome.granted, outcome.lost_compares) == (1, 1)


async def test_nothing_is_written_after_the_term() -> None:
    etcd = FakeEtcd()
    session, late = await worker(etcd, "w"), await committer(etcd)
    await etcd.delete(KEYS.leader)
    await etcd.put(KEYS.leader, b"s2")
    revision = etcd.keyspace.revision
    with pytest.raises(LeaseLost, match="term"):
        await late.commit(Plan(id="x", grants=(grant(0, "w", session),)), FleetSnapshot())
    with pytest.raises(LeaseLost, match="term"):
        await late.settle()
    assert etcd.keyspace.revision == revision


async def test_a_revoke_keeps_token_and_session_and_says_how_long() -> None:
    etcd = FakeEtcd()
    session, leader = await worker(etcd, "w"), await committer(etcd)
    await leader.commit(Plan(id="x", grants=(grant(0, "w", session),)), FleetSnapshot())
    seen = await snapshot(etcd)
    lease = seen.leases[partition(0)]
    await leader.commit(Plan(id="y", revokes=(Revoke(lease, 7.0, Reason(Why.DRAINING)),)), seen)
    after = (await snapshot(etcd)).leases[partition(0)]
    assert (after.token, after.etcd_lease) == (lease.token, session[1])
    assert (after.record.state, after.record.revoke_timeout_s) == (LeaseState.REVOKING, 7.0)
    inbox = etcd.keyspace.items[KEYS.inbox_entry("w", partition(0))]
    assert decode(InboxRecord, inbox.value).state is LeaseState.REVOKING


async def test_many_grants_go_out_in_batches_and_are_summed_up_in_the_event_log() -> None:
    etcd = FakeEtcd()
    session, leader = await worker(etcd, "w"), await committer(etcd)
    plan = Plan(id="x", grants=tuple(grant(number, "w", session) for number in range(1000)))
    assert (await leader.commit(plan, FleetSnapshot())).granted == 1000
    (event,) = (decode(EventRecord, item.value) for item in etcd.keyspace.listing(KEYS.events, 0).items)
    assert (event.action, event.subject, event.cause) == ("granted", "1000 partitions", "x")


async def test_the_event_log_is_trimmed_from_its_old_end() -> None:
    etcd = FakeEtcd()
    leader = await committer(etcd)
    count = EVENTS_TRIMMED_AT + 1
    for number in range(count - EVENTS_KEPT + 2):
        await etcd.put(KEYS.event(f"{number:05}"), b"{}")
    seen = FleetSnapshot(events={f"{number:05}": number for number in range(count)})
    await leader.commit(Plan(id="x"), seen)
    assert [item.key for item in etcd.keyspace.listing(KEYS.events, 0).items] == [
        KEYS.event(f"{number:05}") for number in (count - EVENTS_KEPT, count - EVENTS_KEPT + 1)
    ]
