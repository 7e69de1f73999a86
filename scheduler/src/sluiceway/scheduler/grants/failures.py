"""What a partition's failures mean: how long to wait, where not to go, when to stop trying. Pure."""

from __future__ import annotations

from collections.abc import Set

from sluiceway.common.records import FailureKind, FailureRecord
from sluiceway.scheduler.placement.reasons import Reason, Why

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
LONGEST_OUTAGE_WAIT_S = 30.0  # for a source or sink that is down: it should be used soon after it is back
QUARANTINE_AFTER = 3  # distinct workers, or failures where there are fewer workers


def wait_s(failure: FailureRecord) -> float:
    """Seconds to wait after the failure was seen: doubling with each one, up to a limit."""
    longest = LONGEST_OUTAGE_WAIT_S if failure.kind.is_outage else LONGEST_WAIT_S
    return float(min(longest, FIRST_WAIT_S * 2.0 ** min(max(failure.count - 1, 0), 30)))


def avoided(failure: FailureRecord) -> frozenset[str]:
    """Workers that should not get it again while there are others. An outage is no worker's fault."""
    return frozenset() if failure.kind.is_outage else frozenset(failure.workers)


def quarantine_reason(failure: FailureRecord, takers: Set[str]) -> Reason | None:
    """Why the partition should be parked now, or None.

    After failures on three distinct workers; after three failures where every worker that could take it has failed; at
    once when its offsets are gone and the spec says to fail.
    """
    if failure.quarantined or failure.kind.is_outage:
        return None
    if failure.kind is FailureKind.OFFSET:
        return Reason(Why.QUARANTINED, f"offsets are gone: {failure.error}")
    failed = set(failure.workers)
    if len(failed) >= QUARANTINE_AFTER:
        return Reason(Why.QUARANTINED, f"failed on {len(failed)} workers, last with {failure.error}")
    if failure.count >= QUARANTINE_AFTER and failed and takers <= failed:
        return Reason(Why.QUARANTINED, f"failed {failure.count} times on every worker there is: {failure.error}")
    return None
