"""The condition of a pipeline while an outage is tried again."""

from __future__ import annotations

import pytest

from scheduling import KEYS, Fleet, partition
from sluiceway.common.records import Condition, FailureKind, LoadReport, PartitionUsage, PipelineState, ProgressRecord
from sluiceway.scheduler.grants.decide import Policy, decide

HELD = partition(0)
SINK_DOWN = "sink: bucket lake answers SlowDown"


def state_of(fleet: Fleet) -> PipelineState:
    return decide(fleet.view(), Policy()).states["p"]


def retried(kind: FailureKind, usage: PartitionUsage | None) -> Fleet:
    """A partition that failed once, delivered up to 10, and is held again by a worker that reports `usage`."""
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.lease(HELD, "a")
    fleet.failure(HELD, "a", kind=kind)
    fleet.put(KEYS.progress(HELD), ProgressRecord(next_offset=10))
    if usage is not None:
        report = LoadReport(worker="a", sequence=1, interval_s=1.0, partitions={str(HELD): usage})
        fleet.put(KEYS.load("a"), report, lease=fleet.session("a"))
    return fleet


def running(*, position: int, log_end: int = 20) -> PartitionUsage:
    return PartitionUsage(interval_s=1.0, state="running", position=position, log_end=log_end)


@pytest.mark.parametrize(
    ("kind", "usage"),
    [
        (FailureKind.SOURCE, None),
        (FailureKind.SOURCE, running(position=10, log_end=-1)),
        (FailureKind.SINK, None),
        (FailureKind.SINK, running(position=15)),
    ],
)
def test_an_outage_is_told_until_the_next_holder_is_past_it(kind: FailureKind, usage: PartitionUsage | None) -> None:
    unavailable = Condition.SOURCE_UNAVAILABLE if kind is FailureKind.SOURCE else Condition.SINK_UNAVAILABLE
    state = state_of(retried(kind, usage))
    assert (state.condition, state.message) == (unavailable, "boom")


@pytest.mark.parametrize(
    ("kind", "usage"),
    [(FailureKind.SOURCE, running(position=15)), (FailureKind.SINK, running(position=10))],
)
def test_a_holder_that_reads_and_has_nothing_waiting_is_past_the_outage(
    kind: FailureKind, usage: PartitionUsage
) -> None:
    assert state_of(retried(kind, usage)).condition is Condition.RUNNING


def test_a_sink_that_is_tried_again_within_a_lease_is_told() -> None:
    fleet = retried(FailureKind.BUG, PartitionUsage(interval_s=1.0, state="paused", detail=SINK_DOWN))
    state = state_of(fleet)
    assert (state.condition, state.message) == (Condition.SINK_UNAVAILABLE, SINK_DOWN)


def test_a_pipeline_whose_only_partition_is_quarantined_is_degraded() -> None:
    fleet = Fleet(partitions=1)
    fleet.worker("a")
    fleet.failure(HELD, "a", kind=FailureKind.OFFSET, quarantined=True)
    state = state_of(fleet)
    assert state.condition is Condition.DEGRADED
    assert "1 x quarantined" in state.message
