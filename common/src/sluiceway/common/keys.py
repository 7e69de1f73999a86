"""The etcd layout: one place that knows where everything lives.

`Keys("prod")` names keys below `/sluiceway/prod/`. Values are the records of `sluiceway.common.records`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sluiceway.common.ids import PartitionId


@dataclass(frozen=True, slots=True)
class Keys:
    """Builds and takes apart the keys of one fleet."""

    fleet: str

    @property
    def root(self) -> str:
        return f"/sluiceway/{self.fleet}/"

    @property
    def specs(self) -> str:
        return self.root + "spec/"

    def spec(self, kind: str, name: str) -> str:
        """`kind` is the plural of the spec's kind: clusters, topics, pipelines."""
        return f"{self.specs}{kind}/{name}"

    @property
    def spec_guard(self) -> str:
        """Written by every change of specs, so that two changes at once can't both pass their checks."""
        return self.root + "spec-guard"

    @property
    def retired(self) -> str:
        return self.root + "retired/"

    def retired_spec(self, kind: str, name: str) -> str:
        """The last spec of something deleted whose progress is kept: a successor must fit that progress."""
        return f"{self.retired}{kind}/{name}"

    @property
    def leader(self) -> str:
        """Held by the leading scheduler; its create_revision is the term."""
        return self.root + "scheduler/leader"

    @property
    def workers(self) -> str:
        return self.root + "workers/"

    def worker(self, worker: str) -> str:
        return self.workers + worker

    @property
    def cordons(self) -> str:
        return self.root + "cordons/"

    def cordon(self, worker: str) -> str:
        return self.cordons + worker

    @property
    def leases(self) -> str:
        return self.root + "leases/"

    def lease(self, partition: PartitionId) -> str:
        """The lease; its create_revision is the fencing token."""
        return f"{self.leases}{partition}"

    def inbox(self, worker: str) -> str:
        """What one worker watches: the prefix of the partitions it holds."""
        return f"{self.root}inbox/{worker}/"

    def inbox_entry(self, worker: str, partition: PartitionId) -> str:
        return f"{self.inbox(worker)}{partition}"

    @property
    def progress_of_all(self) -> str:
        return self.root + "progress/"

    def progress(self, partition: PartitionId) -> str:
        return f"{self.progress_of_all}{partition}"

    @property
    def failures(self) -> str:
        return self.root + "failures/"

    def failure(self, partition: PartitionId) -> str:
        return f"{self.failures}{partition}"

    @property
    def loads(self) -> str:
        return self.root + "load/"

    def load(self, worker: str) -> str:
        return self.loads + worker

    @property
    def schemas(self) -> str:
        return self.root + "schemas/"

    def schema(self, pipeline: str, topic: str) -> str:
        """The widening schema that all partitions of a pipeline's topic share."""
        return f"{self.schemas}{pipeline}/{topic}"

    @property
    def states(self) -> str:
        return self.root + "state/pipelines/"

    def state(self, pipeline: str) -> str:
        """The pipeline's condition as the leading scheduler sees it."""
        return self.states + pipeline

    @property
    def profiles(self) -> str:
        return self.root + "profiles/"

    def profile(self, pipeline: str, topic: str) -> str:
        return f"{self.profiles}{pipeline}/{topic}"

    @property
    def events(self) -> str:
        return self.root + "events/"

    def event(self, sequence: str) -> str:
        """Operators' acts and scheduler decisions, in order of their sequence text; bounded by the leader."""
        return self.events + sequence
