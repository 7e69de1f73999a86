"""How long this replica has been seeing things. Pure: time comes as an argument.

Deadlines and back-offs run on the scheduler's own monotonic clock from when it first saw the record, because times in
records come from other machines' clocks. Followers keep sightings too, so that a new leader goes on where the old one
was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import LeaseState
from sluiceway.scheduler.snapshot import FleetSnapshot

_Since = dict[PartitionId, tuple[int, float]]  # revision of what was seen, and when


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """Seconds since first sight, for revoking leases and for failures."""

    revoking: Mapping[PartitionId, float] = field(default_factory=dict)
    failures: Mapping[PartitionId, float] = field(default_factory=dict)


@dataclass(slots=True)
class Sightings:
    """Remembers first sights for as long as the thing is there."""

    _revoking: _Since = field(default_factory=dict)
    _failures: _Since = field(default_factory=dict)

    def observe(self, snapshot: FleetSnapshot, now_s: float) -> Ages:
        """Takes in a snapshot seen at `now_s` (monotonic seconds)."""
        revoking = (
            (lease.partition, lease.token)
            for lease in snapshot.leases.values()
            if lease.record.state is LeaseState.REVOKING
        )
        failures = ((failure.partition, failure.revision) for failure in snapshot.failures.values())
        self._revoking = _carried(self._revoking, revoking, now_s)
        self._failures = _carried(self._failures, failures, now_s)
        return Ages(
            revoking={partition: now_s - since for partition, (_, since) in self._revoking.items()},
            failures={partition: now_s - since for partition, (_, since) in self._failures.items()},
        )


def _carried(before: _Since, seen: Iterable[tuple[PartitionId, int]], now_s: float) -> _Since:
    after: _Since = {}
    for partition, revision in seen:
        known = before.get(partition)
        after[partition] = known if known is not None and known[0] == revision else (revision, now_s)
    return after
