"""Sessions end on the local clock, and leadership with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sluiceway.common.errors import LeaseLost
from sluiceway.common.etcd.api import Txn
from sluiceway.common.etcd.election import Election
from sluiceway.common.etcd.fake import FakeEtcd, Fault
from sluiceway.common.etcd.session import Session
from virtual_time import LoopClock, run_virtual

KEY = "/leader"


@asynccontextmanager
async def running(session: Session) -> AsyncIterator[asyncio.Task[None]]:
    task: asyncio.Task[None] = asyncio.create_task(session.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def open_session(etcd: FakeEtcd) -> Session:
    return await Session.open(etcd, LoopClock(), ttl_s=9, margin_s=1.5)


def test_a_session_that_is_kept_alive_lasts_and_holds_its_keys() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        await etcd.put("/worker", b"", lease=session.id)
        async with running(session):
            await asyncio.sleep(1000)
            session.check()
            assert 4.5 <= session.remaining_s() <= 7.5
        assert await etcd.get("/worker") is not None

    run_virtual(scenario())


def test_the_deadline_is_the_ttl_less_the_margin_from_when_the_request_was_sent() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        assert session.remaining_s() == 7.5
        await asyncio.sleep(7.25)
        session.check()
        await asyncio.sleep(0.25)
        assert session.remaining_s() == 0
        with pytest.raises(LeaseLost):
            session.check()

    run_virtual(scenario())


class _SlowEtcd(FakeEtcd):
    """Acknowledges two seconds after it was asked."""

    async def keep_alive(self, lease: int) -> float:
        ttl_s = await super().keep_alive(lease)
        await asyncio.sleep(2)
        return ttl_s


def test_a_slow_answer_counts_from_when_the_request_was_sent() -> None:
    async def scenario() -> None:
        session = await open_session(_SlowEtcd(LoopClock()))
        async with running(session):
            await asyncio.sleep(5.001)  # sent at 3, acknowledged at 5: lasts until 3 + 7.5
            assert session.remaining_s() == pytest.approx(5.499)

    run_virtual(scenario())


class _TooLateEtcd(FakeEtcd):
    """Acknowledges after the deadline, and can't be cancelled sooner."""

    async def keep_alive(self, lease: int) -> float:
        LateClock.late_s = 30
        return await super().keep_alive(lease)


class LateClock(LoopClock):
    """A process that was stopped for a while in the middle of a call."""

    late_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.late_s


def test_an_answer_after_the_deadline_revives_nothing() -> None:
    async def scenario() -> None:
        LateClock.late_s = 0.0
        etcd = _TooLateEtcd(LoopClock())
        session = await Session.open(etcd, LateClock(), ttl_s=9, margin_s=1.5)
        async with running(session) as run:
            with pytest.raises(LeaseLost):
                await run
        assert session.remaining_s() == 0

    run_virtual(scenario())


def test_without_etcd_it_is_lost_at_the_deadline_and_stays_lost() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        async with running(session) as run:
            await asyncio.sleep(4)  # kept alive at 3
            etcd.down = True
            with pytest.raises(LeaseLost):
                await run
            assert LoopClock().monotonic() == pytest.approx(3 + 7.5)
        etcd.down = False
        with pytest.raises(LeaseLost):
            session.check()
        with pytest.raises(LeaseLost):
            await session.run()

    run_virtual(scenario())


def test_a_short_outage_is_survived() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        async with running(session):
            etcd.down = True
            await asyncio.sleep(7)
            etcd.down = False
            await asyncio.sleep(5)
            session.check()

    run_virtual(scenario())


def test_lost_answers_are_asked_for_again_soon() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        etcd.fail_next(Fault.APPLIED, times=5)
        async with running(session):
            await asyncio.sleep(4.6)  # five failed attempts from 3.0 to 4.2, a good one at 4.5
            assert session.remaining_s() == pytest.approx(7.4)

    run_virtual(scenario())


def test_it_is_lost_as_soon_as_etcd_says_that_the_lease_is_gone() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        async with running(session) as run:
            etcd.expire(session.id)
            with pytest.raises(LeaseLost, match="ended"):
                await run
            assert LoopClock().monotonic() == pytest.approx(3)

    run_virtual(scenario())


def test_etcd_ends_a_lease_only_after_the_local_deadline() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        await etcd.put("/worker", b"", lease=session.id)
        await asyncio.sleep(session.remaining_s())
        assert await etcd.get("/worker") is not None
        with pytest.raises(LeaseLost):
            session.check()
        await asyncio.sleep(1.5)
        assert await etcd.get("/worker") is None

    run_virtual(scenario())


def test_closing_deletes_its_keys_and_ends_it() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        await etcd.put("/worker", b"", lease=session.id)
        await session.close()
        assert await etcd.get("/worker") is None
        with pytest.raises(LeaseLost):
            session.check()

    run_virtual(scenario())


def test_closing_without_etcd_is_no_error() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        session = await open_session(etcd)
        etcd.down = True
        await session.close()

    run_virtual(scenario())


def test_a_margin_that_leaves_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="margin"):
        run_virtual(Session.open(FakeEtcd(LoopClock()), LoopClock(), ttl_s=5, margin_s=5))


async def candidate(etcd: FakeEtcd, name: str) -> tuple[Session, Election]:
    session = await open_session(etcd)
    return session, Election(etcd, session, key=KEY, candidate=name)


def test_one_of_two_leads_and_the_other_follows_with_a_higher_term() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        _, first = await candidate(etcd, "a")
        _, second = await candidate(etcd.connect(), "b")
        term = await first.campaign()
        waiting = asyncio.create_task(second.campaign())
        await asyncio.sleep(1)
        assert not waiting.done()
        await first.resign(term)
        later = await waiting
        assert later.number > term.number
        assert not (await etcd.txn(Txn([term.guard()], []))).succeeded
        assert (await etcd.txn(Txn([later.guard()], []))).succeeded

    run_virtual(scenario())


def test_a_dead_leader_is_followed_when_its_session_ends() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        dead, first = await candidate(etcd, "a")
        await first.campaign()
        alive, second = await candidate(etcd.connect(), "b")
        async with running(alive):
            await second.campaign()
            leader = await etcd.get(KEY)
            assert leader is not None
            assert leader.value == b"b"
            with pytest.raises(LeaseLost):
                dead.check()

    run_virtual(scenario())


def test_a_leader_whose_answer_was_lost_finds_that_it_leads() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        _, election = await candidate(etcd, "a")
        etcd.fail_next(Fault.APPLIED)
        term = await election.campaign()
        leader = await etcd.get(KEY)
        assert leader is not None
        assert term.number == leader.create_revision

    run_virtual(scenario())


def test_a_campaign_outlasts_an_outage_and_a_compaction() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        _, first = await candidate(etcd, "a")
        term = await first.campaign()
        other = etcd.connect()
        _, second = await candidate(other, "b")
        waiting = asyncio.create_task(second.campaign())
        await asyncio.sleep(1)
        other.down = True
        await first.resign(term)
        etcd.compact()
        await asyncio.sleep(1)
        other.down = False
        assert (await waiting).number > term.number

    run_virtual(scenario())


def test_a_neighbouring_key_decides_nothing() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        _, first = await candidate(etcd, "a")
        await first.campaign()
        _, second = await candidate(etcd, "b")
        waiting = asyncio.create_task(second.campaign())
        await etcd.put(KEY + "2", b"")
        await etcd.delete(KEY + "2")
        await asyncio.sleep(1)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])

    run_virtual(scenario())


def test_a_lost_session_ends_the_campaign() -> None:
    async def scenario() -> None:
        etcd = FakeEtcd(LoopClock())
        _, election = await candidate(etcd, "a")
        etcd.down = True
        with pytest.raises(LeaseLost):
            await election.campaign()

    run_virtual(scenario())
