"""Looks at the Kafka clusters every few seconds: partition counts, log ends, and what is wrong.

One task a cluster, so that a dead one delays no other and never the cycle, which reads `view()` as it is. Errors are
data here: they end up in the pipelines' states. Neighbours: `common.kafka`; `grants.wanted` reads the view.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import structlog

from sluiceway.common.clock import Clock
from sluiceway.common.errors import SluicewayError
from sluiceway.common.kafka import TopicPartition
from sluiceway.common.specs.models import ClusterSpec, TopicSpec
from sluiceway.scheduler.source_view import SourceView, TopicView

log = structlog.get_logger(__name__)

FIRST_RETRY_S = 0.5


class ClusterClient(Protocol):
    """What is asked of one cluster; `sluiceway.common.kafka.KafkaCluster` is one."""

    async def partitions(self, topics: Iterable[str]) -> dict[str, int | SluicewayError]: ...

    async def offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int] | SluicewayError]: ...

    async def close(self) -> None: ...


Connect = Callable[[ClusterSpec], ClusterClient]


@dataclass(slots=True)
class _Watched:
    spec: ClusterSpec
    topics: dict[str, str]  # name of the topic's spec -> physical name
    task: asyncio.Task[None] | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)


class Sources:
    """Observes every cluster that a topic lives on, while `run()` runs."""

    def __init__(self, connect: Connect, clock: Clock, *, poll_s: float, on_change: Callable[[], None]) -> None:
        self._connect, self._clock, self._poll_s, self._on_change = connect, clock, poll_s, on_change
        self._clusters: dict[str, _Watched] = {}
        self._views: dict[str, TopicView] = {}
        self._version = 0
        self._followed: tuple[Mapping[str, ClusterSpec], Mapping[str, TopicSpec]] = ({}, {})
        self._refollow = asyncio.Event()

    def view(self) -> SourceView:
        """The newest picture."""
        return SourceView(topics=dict(self._views), version=self._version)

    def follow(self, clusters: Mapping[str, ClusterSpec], topics: Mapping[str, TopicSpec]) -> None:
        """Names what to observe from now on; returns at once."""
        if self._followed != (clusters, topics):
            self._followed = (clusters, topics)
            self._refollow.set()

    async def run(self) -> NoReturn:
        """Observes for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._refollow.wait()
                self._refollow.clear()
                await self._adopt(group)
        raise AssertionError("unreachable")

    async def _adopt(self, group: asyncio.TaskGroup) -> None:
        """Starts, ends and redirects the observers so that they fit what is followed."""
        clusters, topics = self._followed
        wanted: dict[str, dict[str, str]] = {}
        for name, topic in topics.items():
            wanted.setdefault(topic.cluster, {})[name] = topic.physical or name
        for name, watched in list(self._clusters.items()):
            if clusters.get(name) != watched.spec or name not in wanted:
                await _end(watched)
                del self._clusters[name]
        self._set({name: view for name, view in self._views.items() if name in topics})
        for cluster, named in sorted(wanted.items()):
            if cluster not in clusters:
                self._fail(named, f"cluster {cluster} has no spec: apply a Cluster of that name")
            elif cluster in self._clusters:
                self._clusters[cluster].topics = named
                self._clusters[cluster].asked.set()
            else:
                watched = self._clusters[cluster] = _Watched(clusters[cluster], named)
                watched.task = group.create_task(self._observe(cluster, watched), name=f"observe cluster {cluster}")

    async def _observe(self, cluster: str, watched: _Watched) -> None:
        """Polls one cluster until cancelled, sooner while it fails."""
        client: ClusterClient | None = None
        pause_s = FIRST_RETRY_S
        try:
            while True:
                watched.asked.clear()
                try:
                    client = client or self._connect(watched.spec)
                    complete = await self._look(client, dict(watched.topics))
                    pause_s = self._poll_s if complete else min(2 * pause_s, self._poll_s)
                except SluicewayError as error:
                    self._fail(watched.topics, f"cluster {cluster}: {error}")
                    pause_s = min(2 * pause_s, self._poll_s)
                except Exception as error:
                    # A bug that one cluster's odd answers bring out; every other cluster is observed and served on.
                    log.exception("observing_failed", cluster=cluster)
                    self._fail(watched.topics, f"cluster {cluster} can't be observed: {type(error).__name__}: {error}")
                    pause_s = self._poll_s
                await _either(watched.asked, pause_s)
        finally:
            if client is not None:
                await client.close()

    async def _look(self, client: ClusterClient, topics: Mapping[str, str]) -> bool:
        """One look at the topics of a cluster; False if some could not be seen."""
        counts = await client.partitions(topics.values())
        self._counted(topics, counts)
        seen = {p: n for p, n in counts.items() if not isinstance(n, SluicewayError)}
        offsets = await client.offsets(TopicPartition(p, number) for p, n in seen.items() for number in range(n))
        at_s = self._clock.monotonic()
        views: dict[str, TopicView] = {}
        for name, physical in topics.items():
            if physical in seen:
                bounds = [offsets.get(TopicPartition(physical, number)) for number in range(seen[physical])]
                views[name] = TopicView(
                    partitions=seen[physical],
                    log_ends=tuple(b[1] if isinstance(b, tuple) else -1 for b in bounds),
                    seen_at_s=at_s,
                    problem=next((str(b) for b in bounds if isinstance(b, SluicewayError)), ""),
                )
        self._set({**self._views, **views})
        return len(seen) == len(topics) and not any(view.problem for view in views.values())

    def _counted(self, topics: Mapping[str, str], counts: Mapping[str, int | SluicewayError]) -> None:
        """Publishes the counts before the offsets are asked for: placement need not wait for them."""
        views: dict[str, TopicView] = {}
        for name, physical in topics.items():
            before, count = self._views.get(name, TopicView()), counts[physical]
            if isinstance(count, SluicewayError):
                views[name] = _troubled(before, str(count))
            else:
                views[name] = TopicView(partitions=count, log_ends=before.log_ends, seen_at_s=before.seen_at_s)
        self._set({**self._views, **views})

    def _fail(self, topics: Iterable[str], problem: str) -> None:
        self._set({**self._views, **{name: _troubled(self._views.get(name, TopicView()), problem) for name in topics}})

    def _set(self, views: dict[str, TopicView]) -> None:
        before, self._views = self._views, views
        changed = {name for name in before.keys() | views.keys() if _gist(before.get(name)) != _gist(views.get(name))}
        if changed:
            self._version += 1
            for name in sorted(changed & views.keys()):
                log.info("source_changed", topic=name, partitions=views[name].partitions, problem=views[name].problem)
            self._on_change()


def _gist(view: TopicView | None) -> tuple[int | None, str] | None:
    """What decisions depend on at once, unlike the offsets."""
    return None if view is None else (view.partitions, view.problem)


def _troubled(view: TopicView, problem: str) -> TopicView:
    return TopicView(partitions=view.partitions, log_ends=view.log_ends, seen_at_s=view.seen_at_s, problem=problem)


async def _either(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


async def _end(watched: _Watched) -> None:
    if watched.task is not None:
        watched.task.cancel()
        await asyncio.wait([watched.task])
