"""Observing clusters: errors are data, and a dead cluster delays no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sluiceway.common.errors import AccessDenied, SluicewayError, SourceUnavailable
from sluiceway.common.kafka import TopicPartition
from sluiceway.common.specs.models import ClusterSpec, TopicSpec
from sluiceway.scheduler.source_view import TopicView
from sluiceway.scheduler.sources import Sources
from virtual_time import LoopClock, run_virtual

TOPIC = TopicSpec(cluster="up", physical="physical")


@dataclass
class Cluster:
    """A cluster in memory."""

    topics: dict[str, int | SluicewayError] = field(default_factory=dict)
    down: Exception | None = None
    hangs: bool = False
    closed: int = 0

    async def partitions(self, topics: Iterable[str]) -> dict[str, int | SluicewayError]:
        if self.hangs:
            await asyncio.sleep(1e6)
        if self.down is not None:
            raise self.down
        return {topic: self.topics.get(topic, SourceUnavailable(f"topic {topic} does not exist")) for topic in topics}

    async def offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int] | SluicewayError]:
        return {partition: (0, 10 + partition.partition) for partition in partitions}

    async def close(self) -> None:
        self.closed += 1


def spec(name: str) -> ClusterSpec:
    return ClusterSpec(bootstrap=[f"{name}:9092"])


@asynccontextmanager
async def observing(**clusters: Cluster) -> AsyncIterator[Sources]:
    by_address = {f"{name}:9092": cluster for name, cluster in clusters.items()}
    sources = Sources(lambda spec: by_address[spec.bootstrap[0]], LoopClock(), poll_s=5.0, on_change=lambda: None)
    task = asyncio.ensure_future(sources.run())
    try:
        yield sources
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert all(cluster.closed == 1 for cluster in clusters.values())


def test_a_topic_shows_its_partitions_and_log_ends() -> None:
    async def main() -> None:
        async with observing(up=Cluster({"physical": 3})) as sources:
            sources.follow({"up": spec("up")}, {"t": TOPIC})
            await asyncio.sleep(1)
            assert sources.view().topics == {"t": TopicView(partitions=3, log_ends=(10, 11, 12))}

    run_virtual(main())


def test_a_hanging_cluster_delays_no_other() -> None:
    async def main() -> None:
        async with observing(up=Cluster({"physical": 1}), down=Cluster(hangs=True)) as sources:
            sources.follow({"up": spec("up"), "down": spec("down")}, {"t": TOPIC, "u": TopicSpec(cluster="down")})
            await asyncio.sleep(1)
            assert list(sources.view().topics) == ["t"]

    run_virtual(main())


def test_an_outage_keeps_the_last_known_partitions_and_ends_by_itself() -> None:
    async def main() -> None:
        cluster = Cluster({"physical": 2})
        async with observing(up=cluster) as sources:
            sources.follow({"up": spec("up")}, {"t": TOPIC})
            await asyncio.sleep(1)
            before = sources.view().version
            cluster.down = AccessDenied("wrong password")
            await asyncio.sleep(10)
            view = sources.view().topics["t"]
            assert (view.partitions, view.problem) == (2, "cluster up: wrong password")
            assert sources.view().version == before + 1
            cluster.down = None
            await asyncio.sleep(10)
            assert sources.view().topics["t"].problem == ""

    run_virtual(main())


def test_a_bug_that_one_cluster_brings_out_is_its_own_problem_only() -> None:
    async def main() -> None:
        odd = Cluster({"physical": 2}, down=IndexError("odd answer"))
        async with observing(up=Cluster({"physical": 1}), odd=odd) as sources:
            sources.follow({"up": spec("up"), "odd": spec("odd")}, {"t": TOPIC, "u": TopicSpec(cluster="odd")})
            await asyncio.sleep(1)
            views = sources.view().topics
            assert (views["t"].partitions, views["t"].problem) == (1, "")
            assert views["u"].problem == "cluster odd can't be observed: IndexError: odd answer"

    run_virtual(main())


def test_missing_topics_and_clusters_are_named() -> None:
    async def main() -> None:
        async with observing(up=Cluster()) as sources:
            sources.follow({"up": spec("up")}, {"t": TOPIC, "u": TopicSpec(cluster="nowhere")})
            await asyncio.sleep(1)
            assert {name: view.problem for name, view in sources.view().topics.items()} == {
                "t": "topic physical does not exist",
                "u": "cluster nowhere has no spec: apply a Cluster of that name",
            }

    run_virtual(main())


def test_what_is_no_longer_followed_is_closed_and_forgotten() -> None:
    async def main() -> None:
        cluster = Cluster({"physical": 1})
        async with observing(up=cluster) as sources:
            sources.follow({"up": spec("up")}, {"t": TOPIC})
            await asyncio.sleep(1)
            sources.follow({}, {})
            await asyncio.sleep(1)
            assert (sources.view().topics, cluster.closed) == ({}, 1)

    run_virtual(main())
