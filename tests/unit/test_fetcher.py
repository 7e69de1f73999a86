"""The fetcher on a made-up cluster: what real brokers can't be asked to do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

import pytest

from record_batches import Sample, batch
from sluiceway.common.errors import AccessDenied, OffsetOutOfRange, SluicewayError, SourceUnavailable
from sluiceway.common.kafka import Leader, TopicLayout, TopicPartition
from sluiceway.common.kafka.protocol import EpochAsked, EpochEnd, FetchAnswer, Fetched, FetchRequest, Wanted
from sluiceway.common.kafka.wire import NO_UUID, Request
from sluiceway.worker.budget import ByteBudget
from sluiceway.worker.fetch.feed import Feed
from sluiceway.worker.fetch.fetcher import Fetcher

AnswerT = TypeVar("AnswerT")
ZERO, ONE = TopicPartition("t", 0), TopicPartition("t", 1)
FIRST_LEADER = Leader(1, 0)
LIMIT_S = 20.0


@dataclass
class MadeUpCluster:
    """One topic of two partitions; `broken` says what is wrong with a partition at an offset, once each."""

    logs: dict[TopicPartition, list[bytes]]
    leader: Leader = FIRST_LEADER
    broken: dict[tuple[TopicPartition, int], object] = field(default_factory=dict)
    epoch_end: int = -1
    down: bool = False
    bug: bool = False
    bugs_of_router: int = 0
    epoch_errors: list[int] = field(default_factory=list)
    sent: list[tuple[int, list[TopicPartition]]] = field(default_factory=list)

    async def describe(self, topics: Iterable[str]) -> dict[str, TopicLayout | SluicewayError]:
        if self.bugs_of_router:
            self.bugs_of_router -= 1
            raise KeyError("a bug")
        layout = TopicLayout(name="t", topic_id=NO_UUID, leaders={0: self.leader, 1: self.leader})
        return dict.fromkeys(topics, layout)

    async def offsets(
        self, partitions: Iterable[TopicPartition], *, committed: bool = True
    ) -> dict[TopicPartition, tuple[int, int] | SluicewayError]:
        return {partition: (0, len(self.logs[partition])) for partition in partitions}

    async def epoch_ends(
        self, node: int, asked: Sequence[EpochAsked], *, lane: str = ""
    ) -> dict[TopicPartition, EpochEnd]:
        code = self.epoch_errors.pop() if self.epoch_errors else 0
        return {one.partition: EpochEnd(code, one.epoch, -1 if code else self.epoch_end) for one in asked}

    async def close_lane(self, node: int, lane: str) -> None:
        pass

    async def send(self, node: int, request: Request[AnswerT], *, lane: str = "") -> AnswerT:
        assert isinstance(request, FetchRequest)
        self.sent.append((node, [one.partition for one in request.wanted]))
        await asyncio.sleep(0.001)
        if self.bug:
            raise KeyError("a bug")
        if self.down:
            raise SourceUnavailable("broker 1 can't be reached")
        answer = FetchAnswer(0, 0, [self._fetched(one) for one in request.wanted])
        return cast(AnswerT, answer)

    def _fetched(self, one: Wanted) -> Fetched:
        log = self.logs[one.partition]
        wrong = self.broken.pop((one.partition, one.offset), b"")
        if isinstance(wrong, int):
            return Fetched(one.partition, wrong, -1, -1, -1, [], memoryview(b""))
        assert isinstance(wrong, bytes)
        samples = [Sample(offset=one.offset + n, value=value) for n, value in enumerate(log[one.offset :][:2])]
        raw = batch(samples, base=one.offset, end=samples[-1].offset + 1, epoch=self.leader.epoch) if samples else b""
        if wrong:
            raw = raw.replace(wrong, b"?" * len(wrong))
        return Fetched(one.partition, 0, len(log), len(log), 0, [], memoryview(raw))


def logs(count: int) -> dict[TopicPartition, list[bytes]]:
    return {one: [b"%d-%d" % (one.partition, number) for number in range(count)] for one in (ZERO, ONE)}


@asynccontextmanager
async def fetching(cluster: MadeUpCluster) -> AsyncIterator[tuple[Fetcher, ByteBudget]]:
    budget = ByteBudget(2**20)
    fetcher = Fetcher(cluster, budget)
    async with asyncio.timeout(LIMIT_S):
        try:
            yield fetcher, budget
        finally:
            await fetcher.close()
    assert budget.used == 0


async def take(feed: Feed, budget: ByteBudget, until: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    while feed.position < until:
        block = await feed.next()
        budget.release(block.size_bytes)
        values += block.values
    return values


async def test_a_corrupt_batch_is_fetched_again_and_its_sibling_flows() -> None:
    cluster = MadeUpCluster(logs(6), broken={(ZERO, 2): b"0-3"})
    async with fetching(cluster) as (fetcher, budget):
        feeds = [await fetcher.open("t", number, 0) for number in (0, 1)]
        for feed in feeds:
            assert await take(feed, budget, 6) == cluster.logs[feed.partition]
    assert cluster.broken == {}


async def test_a_batch_that_stays_corrupt_is_given_up_with_its_place() -> None:
    cluster = MadeUpCluster(logs(6))
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0, give_up_after_s=0.0)
        await take(feed, budget, 2)
        cluster.broken[ZERO, feed.fetch_offset] = b"0-"
        with pytest.raises(SourceUnavailable, match=r"partition t/0: the record batch at offset \d is corrupt"):
            await take(feed, budget, 7)


@pytest.mark.parametrize("code", [3, 5, 6, 74, 75, 100])
async def test_a_leader_that_moved_is_found_again(code: int) -> None:
    cluster = MadeUpCluster(logs(6), broken={(ZERO, 2): code})
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0)
        assert await take(feed, budget, 2) == cluster.logs[ZERO][:2]
        cluster.leader = Leader(2, 1)
        assert await take(feed, budget, 6) == cluster.logs[ZERO][2:]
        assert feed.problem is None
    assert cluster.sent[-1][0] == 2


async def test_a_new_leader_that_lost_records_we_took_is_out_of_range() -> None:
    cluster = MadeUpCluster(logs(6), broken={(ZERO, 6): 6}, epoch_end=4)
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0)
        await take(feed, budget, 6)
        cluster.leader = Leader(2, 1)
        with pytest.raises(OffsetOutOfRange) as raised:
            await take(feed, budget, 7)
    assert (raised.value.wanted, raised.value.latest) == (6, 4)


async def test_denied_access_ends_the_one_feed() -> None:
    cluster = MadeUpCluster(logs(6), broken={(ZERO, 0): 29})
    async with fetching(cluster) as (fetcher, budget):
        denied, other = [await fetcher.open("t", number, 0) for number in (0, 1)]
        with pytest.raises(AccessDenied):
            await denied.next()
        assert await take(other, budget, 6) == cluster.logs[ONE]


async def test_an_unreachable_leader_shows_as_a_problem_until_it_is_back() -> None:
    cluster = MadeUpCluster(logs(6), down=True)
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0)
        while feed.problem is None:
            await asyncio.sleep(0)
        assert "can't be reached" in feed.problem
        cluster.down = False
        assert await take(feed, budget, 6) == cluster.logs[ZERO]


async def test_an_unreachable_leader_is_given_up_after_the_limit() -> None:
    async with fetching(MadeUpCluster(logs(6), down=True)) as (fetcher, _):
        feed = await fetcher.open("t", 0, 0, give_up_after_s=0.15)
        with pytest.raises(SourceUnavailable, match="can't be reached"):
            await feed.next()


async def test_a_bug_in_a_task_reaches_the_readers() -> None:
    async with fetching(MadeUpCluster(logs(6), bug=True)) as (fetcher, _):
        feed = await fetcher.open("t", 0, 0)
        with pytest.raises(KeyError, match="a bug"):
            await feed.next()


async def test_after_a_bug_in_the_router_partitions_can_be_opened_again() -> None:
    cluster = MadeUpCluster(logs(6), bugs_of_router=1)
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0)
        with pytest.raises(KeyError, match="a bug"):
            await feed.next()
        await feed.close()
        again = await fetcher.open("t", 0, 0)
        assert await take(again, budget, 6) == cluster.logs[ZERO]


async def test_a_truncation_is_noticed_though_the_first_question_about_it_failed() -> None:
    cluster = MadeUpCluster(logs(6), broken={(ZERO, 6): 6}, epoch_end=4, epoch_errors=[7])
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0)
        await take(feed, budget, 6)
        cluster.leader = Leader(2, 1)
        with pytest.raises(OffsetOutOfRange):
            await take(feed, budget, 7)


async def test_a_partition_without_room_is_not_asked_for() -> None:
    cluster = MadeUpCluster(logs(1000))
    cluster.logs[ZERO] = [b"x" * 40_000] * 100
    async with fetching(cluster) as (fetcher, budget):
        await fetcher.open("t", 0, 0)
        flowing = await fetcher.open("t", 1, 0)
        await take(flowing, budget, 1000)
        assert all(partitions == [ONE] for _, partitions in cluster.sent[-100:])


async def test_cancelling_a_wait_loses_nothing() -> None:
    cluster = MadeUpCluster(logs(6), down=True)
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0)
        waiting = asyncio.ensure_future(feed.next())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        cluster.down = False
        assert await take(feed, budget, 6) == cluster.logs[ZERO]


async def test_a_closed_feed_is_not_fetched_and_can_be_opened_again() -> None:
    cluster = MadeUpCluster(logs(6))
    async with fetching(cluster) as (fetcher, budget):
        feed = await fetcher.open("t", 0, 0)
        await take(feed, budget, 2)
        await feed.close()
        with pytest.raises(SourceUnavailable, match="closed"):
            await feed.next()
        again = await fetcher.open("t", 0, 3)
        assert await take(again, budget, 6) == cluster.logs[ZERO][3:]
