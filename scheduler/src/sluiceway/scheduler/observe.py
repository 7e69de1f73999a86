"""Joins what a replica sees (the mirror's keys and the clusters) into the view that decisions read.

Runs on every replica, leading or not, so that a new leader starts with warm estimates and knows for how long it has
been seeing each failure and each revoke. Pure: what is seen and the time are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sluiceway.common.etcd.api import KeyValue
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.scheduler.estimate.demand import Estimator
from sluiceway.scheduler.grants.sightings import Ages, Sightings
from sluiceway.scheduler.grants.view import View
from sluiceway.scheduler.grants.wanted import EPOCH, find_wanted
from sluiceway.scheduler.snapshot import FleetSnapshot, SnapshotReader
from sluiceway.scheduler.source_view import SourceView

DECISIVE = ("clusters", "topics", "pipelines", "workers", "cordons", "leases", "failures")


@dataclass(slots=True)
class Observer:
    """Learns from each look. One thread at a time."""

    keys: Keys
    estimator: Estimator = field(default_factory=Estimator)
    snapshot: FleetSnapshot = field(default_factory=FleetSnapshot)
    sources: SourceView = field(default_factory=SourceView)
    ages: Ages = field(default_factory=Ages)
    _reader: SnapshotReader = field(init=False)
    _sightings: Sightings = field(default_factory=Sightings)
    _reports: dict[str, int] = field(default_factory=dict)  # worker -> revision of the newest report learned from
    _log_ends_at_s: dict[str, float] = field(default_factory=dict)  # topic -> when the newest ends were seen
    _kept_for: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        self._reader = SnapshotReader(self.keys)

    def look(self, revision: int, items: Mapping[str, KeyValue], sources: SourceView, now_s: float) -> None:
        """Takes in the keys as of `revision` and the clusters, at `now_s` (monotonic seconds)."""
        self.snapshot = self._reader.read(revision, items)
        self.sources = sources
        self.ages = self._sightings.observe(self.snapshot, now_s)
        self._learn_log_ends()
        self._learn_usage(now_s)
        self._forget()

    def inputs(self) -> tuple[object, ...]:
        """Equal for two looks between which nothing happened that calls for a decision."""
        return (*(self.snapshot.versions.get(section, 0) for section in DECISIVE), self.sources.version)

    def view(self, *, now_s: float, refresh_counters: bool) -> View:
        """What to decide on; `now_s` is wall time, for people."""
        return View(
            keys=self.keys,
            snapshot=self.snapshot,
            sources=self.sources,
            estimator=self.estimator,
            ages=self.ages,
            now_s=now_s,
            refresh_counters=refresh_counters,
        )

    def _learn_usage(self, now_s: float) -> None:
        loads = self.snapshot.loads
        for worker, load in sorted(loads.items()):
            if self._reports.get(worker) == load.revision:
                continue
            self._reports[worker] = load.revision
            for text, usage in sorted(load.record.partitions.items()):
                try:
                    partition = PartitionId.parse(text)
                except ValueError:
                    self.estimator.rejected += 1
                    continue
                self.estimator.learn_usage(partition, usage, now_s)
        self._reports = {worker: revision for worker, revision in self._reports.items() if worker in loads}

    def _learn_log_ends(self) -> None:
        fresh = {
            topic: view
            for topic, view in self.sources.topics.items()
            if view.log_ends and self._log_ends_at_s.get(topic) != view.seen_at_s
        }
        for name, pipeline in sorted(self.snapshot.pipelines.items()):
            for topic in pipeline.topics:
                if topic not in fresh:
                    continue
                for number, end in enumerate(fresh[topic].log_ends):
                    partition = PartitionId(name, topic, EPOCH, number)
                    if end >= 0:
                        self.estimator.learn_log_end(partition, end, fresh[topic].seen_at_s)
                    progress = self.snapshot.progress.get(partition)
                    if progress is not None:
                        self.estimator.learn_position(partition, progress.next_offset)
        self._log_ends_at_s.update({topic: view.seen_at_s for topic, view in fresh.items()})

    def _forget(self) -> None:
        """Bounds what is remembered by what there is."""
        versions = self.snapshot.versions
        kept_for = (versions.get("pipelines", 0), versions.get("topics", 0), self.sources.version)
        if kept_for != self._kept_for:
            self._kept_for = kept_for
            wanted = find_wanted(self.snapshot, self.sources)
            self.estimator.forget_all_but(p for partitions in wanted.partitions.values() for p in partitions)
            self._log_ends_at_s = {t: at for t, at in self._log_ends_at_s.items() if t in self.sources.topics}
