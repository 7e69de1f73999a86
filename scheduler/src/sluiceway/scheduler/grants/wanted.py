"""Which partitions there should be, and what is wrong with their sources. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from sluiceway.common.ids import PartitionId
from sluiceway.scheduler.snapshot import FleetSnapshot
from sluiceway.scheduler.source_view import SourceView

EPOCH = 0  # an existing physical topic has one epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """By pipeline: every known partition, and the problems of its topics. `uncounted` topics were never seen on their
    cluster by this scheduler: what is leased of them is left alone."""

    partitions: Mapping[str, tuple[PartitionId, ...]]
    counts: Mapping[tuple[str, str], int]  # by pipeline and topic
    problems: Mapping[str, tuple[str, ...]]
    uncounted: frozenset[str]

    def has(self, partition: PartitionId) -> bool:
        """Whether the partition should be held by someone, as far as is known."""
        count = self.counts.get((partition.pipeline, partition.topic))
        if count is None:
            return False
        return partition.epoch == EPOCH and (partition.number < count or partition.topic in self.uncounted)


def find_wanted(snapshot: FleetSnapshot, sources: SourceView) -> Wanted:
    """The partitions of all pipelines, also the paused ones."""
    uncounted = _uncounted(snapshot, sources)
    remembered = _remembered(snapshot, uncounted)
    counts: dict[tuple[str, str], int] = {}
    partitions: dict[str, tuple[PartitionId, ...]] = {}
    problems: dict[str, tuple[str, ...]] = {}
    for name, pipeline in sorted(snapshot.pipelines.items()):
        known: tuple[PartitionId, ...] = ()
        wrong: list[str] = []
        for topic in pipeline.topics:
            if topic not in snapshot.topics:
                wrong.append(f"topic {topic} has no spec: apply a Topic of that name")
                continue
            view = sources.topics.get(topic)
            count = view.partitions if view is not None else None
            counts[name, topic] = remembered.get((name, topic), 0) if count is None else count
            known += _numbered(name, topic, counts[name, topic])
            if view is not None and view.problem:
                named = view.problem.startswith(f"topic {topic} ")
                wrong.append(view.problem if named else f"topic {topic}: {view.problem}")
        partitions[name] = known
        problems[name] = tuple(wrong)
    return Wanted(partitions=partitions, counts=counts, problems=problems, uncounted=uncounted)


def _uncounted(snapshot: FleetSnapshot, sources: SourceView) -> frozenset[str]:
    return frozenset(
        topic for topic in snapshot.topics if (view := sources.topics.get(topic)) is None or view.partitions is None
    )


def _remembered(snapshot: FleetSnapshot, uncounted: frozenset[str]) -> dict[tuple[str, str], int]:
    """Partition counts as earlier leaders left them in progress and leases, for topics whose cluster has not answered
    yet: a new leader places them at once."""
    counts: dict[tuple[str, str], int] = {}
    if uncounted:
        for partition in (*snapshot.progress, *snapshot.leases):
            if partition.topic in uncounted:
                key = (partition.pipeline, partition.topic)
                counts[key] = max(counts.get(key, 0), partition.number + 1)
    return counts


@lru_cache(maxsize=10_000)
def _numbered(pipeline: str, topic: str, count: int) -> tuple[PartitionId, ...]:
    return tuple(PartitionId(pipeline, topic, EPOCH, number) for number in range(count))
