"""What an error means for a lease."""

import pytest

from sluiceway.common.errors import AccessDenied, OffsetOutOfRange, SinkUnavailable, SinkUnfit, SourceUnavailable
from sluiceway.common.records import FailureKind
from sluiceway.scheduler.grants.failures import quarantine_reason
from sluiceway.worker.failures import DeadLetterRate, DeadLetterRateExceeded, Failure, SourceDenied, classify, record


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OffsetOutOfRange(5, 10, 20), FailureKind.OFFSET),
        (SourceUnavailable("down"), FailureKind.SOURCE),
        (SourceDenied("password"), FailureKind.SOURCE),
        (SinkUnavailable("down"), FailureKind.SINK),
        (SinkUnfit("no conditional writes"), FailureKind.SINK),
        (AccessDenied("keys"), FailureKind.SINK),
        (MemoryError(), FailureKind.RESOURCES),
        (ValueError("nobody foresaw this"), FailureKind.BUG),
    ],
)
def test_every_error_has_a_kind(error: Exception, kind: FailureKind) -> None:
    assert classify(error).kind is kind


def test_a_bug_keeps_its_traceback() -> None:
    try:
        raise ValueError("nobody foresaw this")
    except ValueError as error:
        failure = classify(error)
    assert failure.error == "ValueError: nobody foresaw this"
    assert "test_failures.py" in failure.traceback


def test_failures_count_on_and_name_each_worker_once() -> None:
    failure = Failure(kind=FailureKind.SINK, error="down")
    first = record(failure, before=None, worker="w1", at=1)
    second = record(failure, before=first, worker="w2", at=2)
    third = record(failure, before=second, worker="w1", at=3)
    assert (third.count, third.workers, third.last_at) == (3, ["w1", "w2"], 3)


def test_workers_that_failed_in_an_outage_are_not_held_against_the_partition_after_it() -> None:
    before = None
    for number in range(50):
        before = record(Failure(kind=FailureKind.SINK, error="down"), before=before, worker=f"w{number % 3}", at=number)
    after = record(Failure(kind=FailureKind.BUG, error="once"), before=before, worker="w0", at=50)
    assert (after.count, after.workers) == (1, ["w0"])
    assert quarantine_reason(after, {"w0", "w1", "w2"}) is None


def test_a_few_bad_records_are_dead_letters_but_mostly_bad_ones_are_a_wrong_spec() -> None:
    rate = DeadLetterRate(max_share=0.5, min_records=100)
    rate.count(records=99, dead=99, example="")
    rate.count(records=200, dead=0, example="")
    with pytest.raises(DeadLetterRateExceeded, match=r"400 of the last 600 .*offset 7: malformed"):
        rate.count(records=301, dead=301, example="offset 7: malformed")


def test_a_share_of_one_never_stops_a_partition() -> None:
    rate = DeadLetterRate(max_share=1, min_records=1)
    rate.count(records=10_000, dead=10_000, example="")
