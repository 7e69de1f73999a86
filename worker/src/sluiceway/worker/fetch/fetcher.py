"""Keeps the open partitions of one cluster fetched.

Each lane is a task with one request under way; the router is the task that finds leaders, checks positions that a
broker refused, and moves partitions between lanes. A partition that is slow, stuck or failing is simply not asked for:
its neighbours never wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from sluiceway.common.errors import OffsetOutOfRange, SluicewayError, SourceUnavailable
from sluiceway.common.kafka import Leader, TopicLayout, TopicPartition, failures
from sluiceway.common.kafka.protocol import EpochAsked, Fetched, FetchRequest, Wanted
from sluiceway.common.kafka.wire import NO_UUID
from sluiceway.worker.budget import ByteBudget
from sluiceway.worker.fetch.cluster import Cluster
from sluiceway.worker.fetch.feed import Feed
from sluiceway.worker.fetch.lanes import Candidate, FetchLimits, LanePolicy, asks, backoff_s, hot_partitions, lane_name


class _Lane:
    """A connection to one broker with the partitions that travel over it."""

    def __init__(self, node: int, name: str) -> None:
        self.node = node
        self.name = name
        self.feeds: dict[TopicPartition, Feed] = {}
        self.wake = asyncio.Event()
        self.turn = 0
        self.task: asyncio.Task[None] | None = None


class Fetcher:
    """Opens feeds on partitions of one cluster. Everything it started ends with `close`."""

    def __init__(
        self,
        cluster: Cluster,
        budget: ByteBudget,
        *,
        limits: FetchLimits | None = None,
        policy: LanePolicy | None = None,
    ) -> None:
        self._cluster = cluster
        self._budget = budget
        self._limits = limits or FetchLimits()
        self._policy = policy or LanePolicy()
        self._feeds: dict[TopicPartition, Feed] = {}
        self._leaders: dict[TopicPartition, Leader] = {}
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._lost: set[TopicPartition] = set()  # no leader known
        self._refused: set[TopicPartition] = set()  # the position was out of range
        self._hot: frozenset[TopicPartition] = frozenset()
        self._routing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._router: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0

    async def open(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        topic_id: bytes = NO_UUID,
        leader_epoch: int = -1,
        give_up_after_s: float = 60.0,
    ) -> Feed:
        """A feed that begins at `offset`; returns at once, problems show in the feed.

        Args:
            topic: the physical topic.
            partition: its partition, which must not be open already.
            offset: the first offset wanted.
            topic_id: of the topic that the offset belongs to, when known: another one is OffsetOutOfRange.
            leader_epoch: of the last record before `offset`, when known: a truncation is noticed by it.
            give_up_after_s: a partition that can't be read for longer raises from `Feed.next`.
        """
        key = TopicPartition(topic, partition)
        assert key not in self._feeds, f"partition {key} is open already"
        feed = Feed(
            partition=key,
            offset=offset,
            topic_id=topic_id,
            leader_epoch=leader_epoch,
            give_up_after_s=give_up_after_s,
            block_bytes=min(self._limits.block_bytes, max(1, self._budget.limit // 8)),
            budget=self._budget,
            on_room=self._on_room,
            on_close=self._on_close,
        )
        self._feeds[key] = feed
        self._lose(feed)
        if self._router is None:
            self._router = self._spawn("fetch-router", self._route())
        return feed

    async def close(self) -> None:
        """Closes all feeds and ends all tasks. The cluster stays open."""
        for feed in list(self._feeds.values()):
            await feed.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- lanes --

    async def _run(self, lane: _Lane) -> None:
        """One request after another for the lane's partitions that have room."""
        while lane.feeds:
            await self._check_truncation(lane)
            wanted = self._wanted(lane)
            if wanted:
                await self._fetch(lane, wanted)
            else:
                await self._rest(lane)
        self._lanes.pop((lane.node, lane.name), None)
        await self._cluster.close_lane(lane.node, lane.name)

    async def _check_truncation(self, lane: _Lane) -> None:
        """A new leader may lack what an older one gave us: then its log ends our epoch below our position."""
        now = asyncio.get_running_loop().time()
        feeds = [feed for feed in lane.feeds.values() if feed.unchecked and not feed.in_flight and feed.retry_at <= now]
        asked = [
            EpochAsked(feed.partition, epoch, feed.leader_epoch)
            for feed in feeds
            if 0 <= feed.leader_epoch < (epoch := self._leaders[feed.partition].epoch)
        ]
        for feed in feeds:
            feed.unchecked = False
        if not asked:
            return
        try:
            ends = await self._cluster.epoch_ends(lane.node, asked, lane=lane.name)
        except SluicewayError as error:
            for feed in feeds:
                feed.trouble(error)
                self._lose(feed)
            return
        for feed in feeds:
            end = ends.get(feed.partition)
            if end is None or feed.closed:
                continue
            if end.error_code:
                feed.unchecked = True  # nothing is fetched from a log that may not be ours
                self._refuse(feed, end.error_code)
            elif 0 <= end.offset < feed.fetch_offset:
                feed.truncated_to(end.offset)

    def _wanted(self, lane: _Lane) -> list[Wanted]:
        now = asyncio.get_running_loop().time()
        ready = [
            feed for feed in lane.feeds.values() if not feed.in_flight and not feed.failed and feed.retry_at <= now
        ]
        buffer_bytes = self._buffer_bytes()
        candidates = [
            Candidate(
                partition=feed.partition,
                credit=feed.room(buffer_bytes),
                has_more=feed.stable_end > feed.fetch_offset,
                served=feed.served,
            )
            for feed in ready
        ]
        limits = self._limits
        share = limits.partition_bytes if len(lane.feeds) > 1 else limits.answer_bytes
        return [
            Wanted(
                partition,
                lane.feeds[partition].topic_id,
                self._leaders[partition].epoch,
                lane.feeds[partition].fetch_offset,
                size,
            )
            for partition, size in asks(candidates, max_partition_bytes=share)
        ]

    def _buffer_bytes(self) -> int:
        """A partition's share: all of them, stuck and full, leave half of what may be fetched to those that move."""
        fair = self._budget.fetch_limit // (2 * max(1, len(self._feeds)))
        return max(2**16, min(self._limits.buffer_bytes, fair))

    async def _rest(self, lane: _Lane) -> None:
        """Waits until a partition of the lane may be asked for again."""
        loop = asyncio.get_running_loop()
        retries = [feed.retry_at for feed in lane.feeds.values() if not feed.failed and feed.retry_at > loop.time()]
        try:
            async with asyncio.timeout_at(min(retries, default=None)):
                await lane.wake.wait()
        except TimeoutError:
            return
        lane.wake.clear()

    async def _fetch(self, lane: _Lane, wanted: Sequence[Wanted]) -> None:
        feeds = [lane.feeds[one.partition] for one in wanted]
        for feed in feeds:
            feed.in_flight = True
        try:
            throttle_ms = await self._ask(lane, feeds, wanted)
        except SluicewayError as error:
            throttle_ms = 0
            for feed in feeds:
                feed.trouble(error)
                self._lose(feed)
        finally:
            for feed in feeds:
                feed.in_flight = False
                self._on_room(feed)  # it may have changed lanes meanwhile
        if throttle_ms > 0:
            await asyncio.sleep(min(30.0, throttle_ms / 1000))

    async def _ask(self, lane: _Lane, feeds: Sequence[Feed], wanted: Sequence[Wanted]) -> int:
        """One request and its answer; returns for how long the broker throttles us, in milliseconds."""
        reserved = await self._reserve(feeds, wanted)
        try:
            request = FetchRequest(
                wanted=wanted,
                max_wait_ms=int(self._limits.max_wait_s * 1000),
                max_bytes=reserved,
                min_bytes=self._limits.min_bytes,
            )
            answer = await self._cluster.send(lane.node, request, lane=lane.name)
            if answer.error_code:
                raise failures.failure(answer.error_code, f"broker {lane.node}")
            lane.turn += 1
            self._deliver(lane, feeds, wanted, answer.partitions)
        finally:
            self._budget.release_fetched(reserved)
        return answer.throttle_ms

    async def _reserve(self, feeds: Sequence[Feed], wanted: Sequence[Wanted]) -> int:
        """Reserves for the answer: what is asked for, or a large batch where the last one was."""
        expected = sum(max(one.max_bytes, feed.oversize) for feed, one in zip(feeds, wanted, strict=True))
        size = max(1, min(expected, self._limits.answer_bytes, self._budget.fetch_limit // 2))
        await self._budget.reserve_fetch(size)
        return size

    def _deliver(
        self, lane: _Lane, feeds: Sequence[Feed], wanted: Sequence[Wanted], answered: Sequence[Fetched]
    ) -> None:
        asked = {one.partition: one for one in wanted}
        by_partition = {feed.partition: feed for feed in feeds}
        alone = sum(1 for one in answered if len(one.records)) <= 1
        for fetched in answered:
            feed, one = by_partition.get(fetched.partition), asked.get(fetched.partition)
            if feed is None or one is None or feed.closed or feed.fetch_offset != one.offset:
                continue
            if fetched.error_code:
                self._refuse(feed, fetched.error_code)
                continue
            if len(fetched.records):
                feed.served = lane.turn
            # A view keeps the whole answer in memory: copied unless the answer is this partition's alone.
            records = fetched.records if alone else memoryview(bytes(fetched.records))
            self._budget.take_fetched(len(records))
            feed.accept(fetched, records, one.max_bytes)

    def _refuse(self, feed: Feed, code: int) -> None:
        """Reacts to a broker's error about one partition."""
        if code == failures.OFFSET_OUT_OF_RANGE:
            self._refused.add(feed.partition)
            self._detach(feed)
            self._routing.set()
            return
        feed.trouble(failures.failure(code, f"partition {feed.partition}"))
        if code in failures.STALE_LEADER:
            self._lose(feed)

    def _on_room(self, feed: Feed) -> None:
        lane = self._lane_of(feed)
        if lane is not None:
            lane.wake.set()

    def _on_close(self, feed: Feed) -> None:
        self._detach(feed)
        self._feeds.pop(feed.partition, None)
        self._leaders.pop(feed.partition, None)
        self._lost.discard(feed.partition)
        self._refused.discard(feed.partition)

    def _lane_of(self, feed: Feed) -> _Lane | None:
        leader = self._leaders.get(feed.partition)
        if leader is None:
            return None
        return self._lanes.get((leader.node, lane_name(feed.partition, hot=feed.partition in self._hot)))

    def _detach(self, feed: Feed) -> None:
        lane = self._lane_of(feed)
        if lane is not None and lane.feeds.pop(feed.partition, None) is not None:
            lane.wake.set()

    def _attach(self, feed: Feed) -> None:
        """Puts a partition whose leader is known into its lane."""
        leader = self._leaders[feed.partition]
        name = lane_name(feed.partition, hot=feed.partition in self._hot)
        lane = self._lanes.get((leader.node, name))
        if lane is None:
            lane = self._lanes[leader.node, name] = _Lane(leader.node, name)
        lane.feeds[feed.partition] = feed
        if lane.task is None:
            lane.task = self._spawn(f"fetch-lane-{leader.node}-{name}", self._run(lane))
        lane.wake.set()

    def _lose(self, feed: Feed) -> None:
        """The leader is not known (any more): the router finds it."""
        if feed.closed:
            return
        self._detach(feed)
        self._leaders.pop(feed.partition, None)
        self._lost.add(feed.partition)
        self._routing.set()

    # -- the router --

    async def _route(self) -> None:
        attempts = 0
        while True:
            await self._until_work()
            try:
                await self._check_refused()
                await self._find_leaders()
                attempts = 0
            except SluicewayError as error:
                attempts += 1
                for partition in sorted(self._lost | self._refused):
                    self._feeds[partition].trouble(error)
                await asyncio.sleep(backoff_s(attempts))
            self._balance()

    async def _until_work(self) -> None:
        """Waits for a lost partition whose retry is due, or for the next look at rates or leaders."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            self._routing.clear()
            due = [self._feeds[partition].retry_at for partition in self._lost | self._refused]
            wake_at = min([*due, now + self._limits.balance_s])
            if wake_at <= now:
                return
            try:
                async with asyncio.timeout_at(wake_at):
                    await self._routing.wait()
            except TimeoutError:
                return

    async def _find_leaders(self) -> None:
        """Asks for the leaders of lost partitions; from time to time for all, to notice re-created topics."""
        now = asyncio.get_running_loop().time()
        is_refresh = now - self._refreshed_at >= self._limits.refresh_s
        wanted = sorted(self._feeds) if is_refresh else sorted(self._due(self._lost))
        if not wanted:
            return
        described = await self._cluster.describe({partition.topic for partition in wanted})
        if is_refresh:
            self._refreshed_at = now
        found = [feed for partition in wanted if (feed := self._feeds.get(partition)) is not None]
        for feed in found:
            if self._settle_leader(feed, described[feed.partition.topic]) and not feed.failed:
                self._lost.discard(feed.partition)
                self._attach(feed)

    def _due(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        now = asyncio.get_running_loop().time()
        for partition in list(partitions):
            if self._feeds[partition].failed:
                self._lost.discard(partition)
                self._refused.discard(partition)
        return [partition for partition in partitions if self._feeds[partition].retry_at <= now]

    def _settle_leader(self, feed: Feed, layout: TopicLayout | SluicewayError) -> bool:
        """Takes over what the cluster says; True when a lost partition has a leader now."""
        is_lost = feed.partition in self._lost
        if isinstance(layout, SluicewayError):
            if is_lost:
                feed.trouble(layout)
            return False
        if layout.topic_id != NO_UUID and feed.topic_id not in (NO_UUID, layout.topic_id):
            self._detach(feed)
            self._lost.discard(feed.partition)
            self._refused.add(feed.partition)
            return False
        feed.topic_id = layout.topic_id
        leader = layout.leaders.get(feed.partition.partition)
        if leader is None:
            if is_lost:
                feed.trouble(SourceUnavailable(f"partition {feed.partition} does not exist or has no leader now"))
            return False
        if is_lost:
            self._leaders[feed.partition] = leader
            feed.unchecked = True
        return is_lost

    async def _check_refused(self) -> None:
        """A refused position is out of range for good, or the broker was behind for a moment."""
        refused = sorted(self._due(self._refused))
        if not refused:
            return
        bounds = await self._cluster.offsets(refused, committed=False)
        described = await self._cluster.describe({partition.topic for partition in refused})
        for partition in refused:
            feed = self._feeds.get(partition)
            if feed is not None and partition in self._refused:
                self._judge(feed, bounds[partition], described[partition.topic])

    def _judge(
        self, feed: Feed, bounds: tuple[int, int] | SluicewayError, layout: TopicLayout | SluicewayError
    ) -> None:
        if isinstance(bounds, SluicewayError) or isinstance(layout, SluicewayError):
            feed.trouble(bounds if isinstance(bounds, SluicewayError) else SourceUnavailable(str(layout)))
            return
        self._refused.discard(feed.partition)
        earliest, latest = bounds
        is_recreated = layout.topic_id != NO_UUID and feed.topic_id not in (NO_UUID, layout.topic_id)
        if is_recreated or not earliest <= feed.fetch_offset <= latest:
            feed.fail(OffsetOutOfRange(feed.fetch_offset, earliest, latest, recreated=is_recreated))
        else:
            feed.trouble(SourceUnavailable(f"partition {feed.partition}: the leader is behind for the moment"))
            self._lose(feed)

    def _balance(self) -> None:
        """Moves partitions between lanes by their recent rates."""
        rates = {partition: feed.update_rate() for partition, feed in self._feeds.items()}
        hot = hot_partitions(rates, self._hot, self._policy)
        for partition in sorted(hot ^ self._hot):
            feed = self._feeds.get(partition)
            if feed is not None:
                self._detach(feed)
        self._hot, moved = hot, sorted(hot ^ self._hot)
        for partition in moved:
            if partition in self._leaders and partition not in self._lost | self._refused:
                self._attach(self._feeds[partition])

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that died of a bug takes its feeds along, loudly: their readers get the error."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        feeds: dict[TopicPartition, Feed] = {}
        if task is self._router:
            self._router, feeds = None, self._feeds  # the next feed that is opened starts another one
        for key, lane in self._lanes.items():
            if lane.task is task:
                feeds = self._lanes.pop(key).feeds
                break
        for feed in feeds.values():
            feed.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
