"""What an error means for a lease. Pure.

Role: from an exception to the record that a release leaves behind. Neighbours: `agent` writes it, the scheduler decides
on it.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import msgspec

from sluiceway.common.errors import (
    AccessDenied,
    EtcdUnavailable,
    OffsetOutOfRange,
    SinkUnavailable,
    SinkUnfit,
    SluicewayError,
    SourceUnavailable,
)
from sluiceway.common.records import FailureKind, FailureRecord


class DeadLetterRateExceeded(SluicewayError):
    """Too large a share of the records can't be delivered: the spec is wrong rather than the records."""


class SourceDenied(AccessDenied):
    """The cluster refuses our credentials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a holder gives a partition up."""

    kind: FailureKind
    error: str
    traceback: str = ""


_KINDS: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (OffsetOutOfRange, FailureKind.OFFSET),
    (DeadLetterRateExceeded, FailureKind.DEAD_LETTER_RATE),
    (SourceUnavailable, FailureKind.SOURCE),
    (SourceDenied, FailureKind.SOURCE),
    (SinkUnavailable, FailureKind.SINK),
    (SinkUnfit, FailureKind.SINK),
    (AccessDenied, FailureKind.SINK),
    (MemoryError, FailureKind.RESOURCES),
)


def classify(error: BaseException) -> Failure:
    """The failure that an error is; what nobody foresaw is a bug and keeps its traceback (last 4,000 characters)."""
    for kind, meaning in _KINDS:
        if isinstance(error, kind):
            return Failure(kind=meaning, error=(str(error) or kind.__name__)[:2000])
    text = "".join(traceback.format_exception(error))
    return Failure(kind=FailureKind.BUG, error=f"{type(error).__name__}: {error}"[:500], traceback=text[-4000:])


def is_etcd_outage(error: BaseException) -> bool:
    """etcd's own outages say nothing about a partition: the session's deadline decides."""
    return isinstance(error, EtcdUnavailable)


def record(failure: Failure, *, before: FailureRecord | None, worker: str, at: float) -> FailureRecord:
    """The failure record after one more failure: counts on, and names each worker once, oldest first.

    What failed during an outage says nothing about the partition: after one, other failures are counted anew.
    """
    if before is not None and before.kind.is_outage and not failure.kind.is_outage:
        before = msgspec.structs.replace(before, count=0, workers=[])
    workers = [*(before.workers if before else [])]
    if worker not in workers:
        workers.append(worker)
    return FailureRecord(
        count=(before.count if before else 0) + 1,
        kind=failure.kind,
        error=failure.error,
        workers=workers[-16:],
        last_at=at,
        quarantined=before.quarantined if before else False,
        traceback=failure.traceback,
    )


class DeadLetterRate:
    """Watches the share of dead letters among the last records of one lease."""

    def __init__(self, *, max_share: float, min_records: int) -> None:
        self._max_share, self._min_records = max_share, min_records
        self._records = self._dead = 0

    def count(self, *, records: int, dead: int, example: str) -> None:
        """Counts a block.

        Raises:
            DeadLetterRateExceeded: over at least `min_records` records the share is above `max_share`.
        """
        if self._records >= 10 * self._min_records:
            self._records //= 2
            self._dead //= 2
        self._records += records
        self._dead += dead
        if self._max_share < 1 and self._records >= self._min_records and self._dead > self._max_share * self._records:
            raise DeadLetterRateExceeded(
                f"{self._dead} of the last {self._records} records can't be delivered (for example {example}); "
                "check the pipeline's format, then `sluiceway retry` it"
            )
