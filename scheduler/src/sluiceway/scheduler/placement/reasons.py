"""Why things are placed, moved or left, as data. Reports and `describe` print these and derive nothing. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Why(StrEnum):
    """Of a grant, a revoke, a deletion, or a partition that is not placed."""

    # grants
    FITS = "fits"
    OVERCOMMITTED = "overcommitted"  # no worker that may hold it has room: the one that suffers least got it
    LARGER_THAN_ANY_WORKER = "larger_than_any_worker"
    # revokes
    DRAINING = "draining"
    PIPELINE_PAUSED = "pipeline_paused"
    PIPELINE_DELETED = "pipeline_deleted"
    PARTITION_GONE = "partition_gone"
    WORKER_UNSUITABLE = "worker_unsuitable"  # refuses the pipeline, or lacks its class or labels
    OVER_CAPACITY = "over_capacity"
    SPREAD = "spread"
    # deletions
    DEADLINE_PASSED = "deadline_passed"
    SESSION_GONE = "session_gone"
    # not placed
    QUARANTINED = "quarantined"
    BACKING_OFF = "backing_off"
    NO_WORKERS = "no_workers"
    NO_SUITABLE_WORKER = "no_suitable_worker"
    BEING_RELEASED = "being_released"


class Reason(NamedTuple):
    """A reason with the facts that make it checkable."""

    why: Why
    facts: str = ""

    def __str__(self) -> str:
        return f"{self.why}: {self.facts}" if self.facts else str(self.why)
