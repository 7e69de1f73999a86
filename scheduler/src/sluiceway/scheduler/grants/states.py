"""The condition of each pipeline, as `sluiceway get pipelines` shows it. Pure.

The first that applies: paused, source, sink, nothing leased yet, part of it failing, running.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import Condition, FailureKind, PipelineState
from sluiceway.scheduler.grants.view import View
from sluiceway.scheduler.grants.wanted import Wanted
from sluiceway.scheduler.placement.reasons import Reason
from sluiceway.scheduler.placement.suitable import Suitable
from sluiceway.scheduler.snapshot import Failure

SHOWN_UNPLACED = 100
_COUNTERS = {"lag_records": 0, "delivered": 0, "dead_letters": 0, "at": 0.0}


class _Counts(NamedTuple):
    leased: int
    quarantined: int
    lag_records: int
    delivered: int
    dead_letters: int


def changed_states(
    view: View, wanted: Wanted, suitable: Mapping[str, Suitable], unplaced: Mapping[PartitionId, Reason]
) -> dict[str, PipelineState]:
    """The states that differ from the recorded ones; a difference in counters alone counts when they may be written."""
    troubles = _troubles(view)
    reasons: dict[str, dict[PartitionId, Reason]] = {}
    for partition, reason in sorted(unplaced.items()):
        reasons.setdefault(partition.pipeline, {})[partition] = reason
    changed: dict[str, PipelineState] = {}
    for name in wanted.partitions:
        state = _state(view, name, wanted, suitable[name], reasons.get(name, {}), troubles.get(name, {}))
        before = view.snapshot.states.get(name)
        if before is None or _differs(before.record, state, view.refresh_counters):
            changed[name] = state
    return changed


def _differs(before: PipelineState, after: PipelineState, with_counters: bool) -> bool:
    if with_counters:
        return msgspec.structs.replace(before, at=0.0) != msgspec.structs.replace(after, at=0.0)
    return msgspec.structs.replace(before, **_COUNTERS) != msgspec.structs.replace(after, **_COUNTERS)


def _state(
    view: View,
    name: str,
    wanted: Wanted,
    suitable: Suitable,
    unplaced: Mapping[PartitionId, Reason],
    troubles: Mapping[FailureKind, str],
) -> PipelineState:
    partitions = wanted.partitions[name]
    counts = _count(view, partitions)
    condition, message = _condition(view, name, wanted, suitable, unplaced, troubles, counts)
    return PipelineState(
        condition=condition,
        message=message,
        partitions=len(partitions),
        leased=counts.leased,
        quarantined=counts.quarantined,
        unplaced={str(partition): str(reason) for partition, reason in list(unplaced.items())[:SHOWN_UNPLACED]},
        lag_records=counts.lag_records,
        delivered=counts.delivered,
        dead_letters=counts.dead_letters,
        at=view.now_s,
    )


def _condition(
    view: View,
    name: str,
    wanted: Wanted,
    suitable: Suitable,
    unplaced: Mapping[PartitionId, Reason],
    troubles: Mapping[FailureKind, str],
    counts: _Counts,
) -> tuple[Condition, str]:
    problems = wanted.problems[name]
    refuses = view.snapshot.workers and not suitable.holders and "refuses: " in suitable.refusals
    if view.snapshot.pipelines[name].paused:
        return Condition.PAUSED, f"{counts.leased} partitions are still being released" if counts.leased else ""
    if problems:
        return Condition.SOURCE_UNAVAILABLE, "; ".join(problems)
    if FailureKind.SOURCE in troubles:
        return Condition.SOURCE_UNAVAILABLE, troubles[FailureKind.SOURCE]
    if refuses or FailureKind.SINK in troubles:
        return Condition.SINK_UNAVAILABLE, suitable.refusals if refuses else troubles[FailureKind.SINK]
    if not counts.leased and not counts.quarantined:
        return Condition.PENDING, _summary(unplaced) or "waiting for the cluster to name the topics' partitions"
    if len(unplaced) or counts.quarantined:
        return Condition.DEGRADED, _summary(unplaced)
    return Condition.RUNNING, ""


def _summary(unplaced: Mapping[PartitionId, Reason]) -> str:
    """`3 x backing_off; 1 x quarantined`, with the facts of the first one."""
    if not unplaced:
        return ""
    kinds = Counter(reason.why for reason in unplaced.values())
    first = next(iter(unplaced.items()))
    ranked = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} x {why}" for why, count in ranked) + f" ({first[0]}: {first[1]})"


def _count(view: View, partitions: Iterable[PartitionId]) -> _Counts:
    snapshot, log_end = view.snapshot, view.estimator.log_end
    leased = quarantined = lag = delivered = dead_letters = 0
    for partition in partitions:
        leased += partition in snapshot.leases
        failure = snapshot.failures.get(partition)
        quarantined += failure is not None and failure.record.quarantined
        progress = snapshot.progress.get(partition)
        if progress is not None:
            delivered += progress.delivered
            dead_letters += progress.dead_letters
        lag += max(0, log_end(partition) - (progress.next_offset if progress is not None else 0))
    return _Counts(leased, quarantined, lag, delivered, dead_letters)


def _troubles(view: View) -> dict[str, dict[FailureKind, str]]:
    """By pipeline, the first outage that holders report: in failures that are not over yet, or while pausing."""
    found: dict[str, dict[FailureKind, str]] = {}
    for partition, failure in sorted(view.snapshot.failures.items()):
        if failure.record.kind in (FailureKind.SOURCE, FailureKind.SINK) and not _works_again(view, failure):
            found.setdefault(partition.pipeline, {}).setdefault(failure.record.kind, failure.record.error)
    for _, load in sorted(view.snapshot.loads.items()):
        for text, usage in sorted(load.record.partitions.items()):
            if usage.state == "paused":
                kind = FailureKind.SINK if usage.detail.startswith("sink") else FailureKind.SOURCE
                found.setdefault(text.partition("/")[0], {}).setdefault(kind, usage.detail)
    return found


def _works_again(view: View, failure: Failure) -> bool:
    """Whether a later holder is past the outage: it reads, and nothing that it read waits for the sink. A holder that
    has just begun to try again is not, or the condition would alternate with each try."""
    lease = view.snapshot.leases.get(failure.partition)
    load = view.snapshot.loads.get(lease.record.holder) if lease is not None else None
    usage = load.record.partitions.get(str(failure.partition)) if load is not None else None
    if usage is None or usage.state != "running" or usage.log_end < 0:
        return False
    progress = view.snapshot.progress.get(failure.partition)
    return failure.record.kind is FailureKind.SOURCE or progress is None or usage.position <= progress.next_offset
