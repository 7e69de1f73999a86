"""A plan: what one decision wants changed, each change with its reason. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import FailureRecord, PipelineState
from sluiceway.common.resources import Resources
from sluiceway.scheduler.placement.reasons import Reason
from sluiceway.scheduler.snapshot import Lease


class Grant(NamedTuple):
    """Give `partition` to `worker`, if its session is still the one that the plan saw."""

    partition: PartitionId
    worker: str
    session: int  # the worker key's create_revision
    etcd_lease: int
    demand: Resources
    reason: Reason


class Revoke(NamedTuple):
    """Ask for a lease back; delete it if it is not released within `timeout_s`."""

    lease: Lease
    timeout_s: float
    reason: Reason


class Deletion(NamedTuple):
    """Take a lease away: its deadline passed, or its session is gone."""

    lease: Lease
    reason: Reason


class Quarantine(NamedTuple):
    """Park a partition until an operator retries it. `revision` guards against a newer failure or a retry."""

    partition: PartitionId
    revision: int
    record: FailureRecord
    reason: Reason


class Forget(NamedTuple):
    """Remove a key that belongs to a deleted pipeline, if nobody wrote it since."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The changes in the order of their partitions, and what is known about the rest.

    `wake_in_s`: decide again after this long even if nothing changes (a back-off or a deadline ends), None for never.
    """

    id: str = ""
    deletions: tuple[Deletion, ...] = ()
    revokes: tuple[Revoke, ...] = ()
    grants: tuple[Grant, ...] = ()
    quarantines: tuple[Quarantine, ...] = ()
    states: Mapping[str, PipelineState] = field(default_factory=dict)
    forgets: tuple[Forget, ...] = ()
    unplaced: Mapping[PartitionId, Reason] = field(default_factory=dict)
    partitions: int = 0
    leased: int = 0
    wake_in_s: float | None = None

    @property
    def moves_something(self) -> bool:
        return bool(self.deletions or self.revokes or self.grants or self.quarantines)
