"""How a fleet is doing, out of its keys in etcd. Pure.

Role: turns a snapshot of the mirror into what the demo shows and waits for. Neighbours: `fleet` starts what is watched,
`conductor` waits and acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sluiceway.common.etcd.api import KeyValue
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import LeaseRecord, LoadReport, PartitionUsage, PipelineState, ProgressRecord, decode


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """One moment. Offsets are Kafka's; `holders` has worker and token by partition."""

    holders: dict[PartitionId, tuple[str, int]] = field(default_factory=dict)
    progress: dict[PartitionId, ProgressRecord] = field(default_factory=dict)
    loads: dict[str, LoadReport] = field(default_factory=dict)
    states: dict[str, PipelineState] = field(default_factory=dict)

    @property
    def delivered(self) -> int:
        """Records delivered and committed, dead letters not included."""
        return sum(progress.delivered for progress in self.progress.values())

    @property
    def dead_letters(self) -> int:
        return sum(progress.dead_letters for progress in self.progress.values())

    def held_by(self, worker: str) -> list[PartitionId]:
        return sorted(partition for partition, (holder, _) in self.holders.items() if holder == worker)

    def usage(self, partition: PartitionId) -> PartitionUsage | None:
        """What the present holder reports of the partition."""
        holder = self.holders.get(partition)
        load = self.loads.get(holder[0]) if holder else None
        return load.partitions.get(str(partition)) if load else None

    def next_offset(self, partition: PartitionId) -> int:
        progress = self.progress.get(partition)
        return progress.next_offset if progress else 0


def observe(items: Mapping[str, KeyValue], keys: Keys) -> FleetView:
    """The view of a snapshot of everything below the fleet's root."""
    view = FleetView()
    for key, item in items.items():
        if key.startswith(keys.leases):
            partition = PartitionId.parse(key.removeprefix(keys.leases))
            view.holders[partition] = (decode(LeaseRecord, item.value).holder, item.create_revision)
        elif key.startswith(keys.progress_of_all):
            partition = PartitionId.parse(key.removeprefix(keys.progress_of_all))
            view.progress[partition] = decode(ProgressRecord, item.value)
        elif key.startswith(keys.loads):
            view.loads[key.removeprefix(keys.loads)] = decode(LoadReport, item.value)
        elif key.startswith(keys.states):
            view.states[key.removeprefix(keys.states)] = decode(PipelineState, item.value)
    return view


def behind(view: FleetView, pipeline: str, ends: Mapping[tuple[str, int], int]) -> int:
    """How many offsets of the topics' partitions (`ends` by topic and number) are not committed yet."""
    committed = {(p.topic, p.number): each.next_offset for p, each in view.progress.items() if p.pipeline == pipeline}
    return sum(max(0, end - committed.get(source, 0)) for source, end in ends.items())


def consumes(view: FleetView, partition: PartitionId, *, lost_by: int, end: int) -> bool:
    """Whether a partition is consumed again after the holder of token `lost_by` was lost.

    A later holder must run it and report that it took records from the topic, unless all up to `end` are delivered.
    """
    holder, usage = view.holders.get(partition), view.usage(partition)
    if holder is None or holder[1] <= lost_by or usage is None:
        return False
    committed = view.next_offset(partition)
    return usage.records > 0 or usage.position > committed or (usage.state == "running" and committed >= end)


@dataclass(slots=True)
class Moves:
    """Counts how often a partition went from one holder to another."""

    count: int = 0
    _last: dict[PartitionId, tuple[str, int]] = field(default_factory=dict)

    def see(self, view: FleetView) -> list[str]:
        """Takes a view; returns what moved since the last one."""
        moved = []
        for partition, (holder, token) in sorted(view.holders.items()):
            before, known_token = self._last.get(partition, (holder, token))
            if token != known_token and holder != before:
                self.count += 1
                moved.append(f"{partition.topic}/{partition.number}: {before} → {holder}")
            self._last[partition] = (holder, token)
        return moved
