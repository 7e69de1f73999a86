"""What reading commands see of a fleet: records by name, with what follows from them.

`reading` fills it, `rendering` shows it; nothing is decided here. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sluiceway.common.records import (
    CordonRecord,
    EventRecord,
    FailureRecord,
    LeaseRecord,
    LoadReport,
    PartitionUsage,
    PipelineState,
    ProgressRecord,
    SpecRecord,
    WorkerRecord,
)


class Part(StrEnum):
    """What can be read."""

    SPECS = "specs"
    STATES = "states"
    WORKERS = "workers"
    CORDONS = "cordons"
    LEASES = "leases"
    PROGRESS = "progress"
    FAILURES = "failures"
    LOADS = "loads"
    EVENTS = "events"
    LEADER = "leader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A lease and its token."""

    record: LeaseRecord
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Records by the rest of their keys: partitions by their text, specs by `<plural>/<name>`."""

    now: float
    specs: Mapping[str, SpecRecord] = field(default_factory=dict)
    states: Mapping[str, PipelineState] = field(default_factory=dict)
    workers: Mapping[str, WorkerRecord] = field(default_factory=dict)
    cordons: Mapping[str, CordonRecord] = field(default_factory=dict)
    leases: Mapping[str, Held] = field(default_factory=dict)
    progress: Mapping[str, ProgressRecord] = field(default_factory=dict)
    failures: Mapping[str, FailureRecord] = field(default_factory=dict)
    loads: Mapping[str, LoadReport] = field(default_factory=dict)
    events: Mapping[str, EventRecord] = field(default_factory=dict)
    led: bool = True  # some scheduler is the leader

    def named(self, plural: str) -> dict[str, SpecRecord]:
        """The specs of one kind by name."""
        prefix = f"{plural}/"
        return {key.removeprefix(prefix): record for key, record in self.specs.items() if key.startswith(prefix)}

    def usage(self, partition: str) -> PartitionUsage | None:
        """What the holder reported last."""
        held = self.leases.get(partition)
        report = self.loads.get(held.record.holder) if held else None
        return report.partitions.get(partition) if report else None

    def lag(self, partition: str) -> int | None:
        """Records between what is delivered and the end of the log, where both are known."""
        usage, progress = self.usage(partition), self.progress.get(partition)
        if usage is None or usage.log_end < 0:
            return None
        return max(0, usage.log_end - (progress.next_offset if progress else usage.position))

    def partitions(self, pipeline: str) -> list[str]:
        """Every partition of a pipeline that some record tells of, in order of topic and number."""
        prefix = f"{pipeline}/"
        state = self.states.get(pipeline)
        known = {*self.leases, *self.progress, *self.failures, *(state.unplaced if state else {})}
        return sorted((each for each in known if each.startswith(prefix)), key=in_order)


def in_order(partition: str) -> tuple[str, int]:
    """Sorts partition 10 after partition 9."""
    head, _, number = partition.rpartition("/")
    return (head, int(number)) if number.isdigit() else (partition, 0)
