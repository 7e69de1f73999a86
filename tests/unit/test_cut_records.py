"""The commit protocol's pure functions on records."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.common.errors import SinkUnfit
from sluiceway.common.records import CutObject, ProgressRecord
from sluiceway.worker.sinks import cuts
from sluiceway.worker.sinks.cuts import Outcome
from sluiceway.worker.sinks.marks import Mark, State
from sluiceway.worker.sinks.ranges import clipped, merged, of_offsets, size, without

DATA, DEAD = "data/x.parquet", "_dead_letters/x.parquet"
WRITTEN, ABORTED = State.DATA, State.ABORTED


def opened(progress: ProgressRecord, end: int, dead: list[tuple[int, int]]) -> ProgressRecord:
    """Progress with a cut up to `end` open, whose dead letters have the ranges `dead`."""
    alive = without(cuts.undelivered(progress, end), dead)
    objects = [CutObject(key=DATA, ranges=alive), CutObject(key=DEAD, ranges=dead, role="dead_letters")]
    return cuts.journalled(progress, cuts.plan_cut(progress, cut_id="c", token=8, end=end, objects=objects))


def settled(progress: ProgressRecord, data: State, dead: State) -> ProgressRecord:
    outcomes = {
        DATA: Outcome(data, 17 if data is WRITTEN else 0),
        DEAD: Outcome(dead, 3 if dead is WRITTEN else 0),
    }
    return cuts.settled(progress, outcomes, token=9, at=1.5)


START = ProgressRecord(next_offset=100, token=7, delivered=90, dead_letters=10)


def test_a_cut_whose_objects_are_all_written_moves_progress_to_its_end_and_counts_their_rows() -> None:
    assert settled(opened(START, 120, [(103, 105), (110, 111)]), WRITTEN, WRITTEN) == ProgressRecord(
        next_offset=120, token=9, committed_at=1.5, delivered=107, dead_letters=13
    )


def test_a_cut_whose_objects_are_all_aborted_leaves_progress_where_it_was() -> None:
    after = settled(opened(START, 120, [(103, 105)]), ABORTED, ABORTED)
    assert after == msgspec.structs.replace(START, token=9, committed_at=1.5)


def test_a_partly_aborted_cut_leaves_exactly_the_aborted_ranges_pending() -> None:
    after = settled(opened(START, 120, [(103, 105), (110, 111)]), WRITTEN, ABORTED)
    assert after == ProgressRecord(
        next_offset=103,
        token=9,
        pending=[(103, 105), (110, 111)],
        pending_end=120,
        committed_at=1.5,
        delivered=107,
        dead_letters=10,
    )
    assert cuts.undelivered(after, 130) == [(103, 105), (110, 111), (120, 130)]


def test_what_is_pending_can_be_delivered_in_smaller_cuts_than_before() -> None:
    after = settled(opened(START, 120, [(103, 105), (110, 111)]), WRITTEN, ABORTED)
    smaller = settled(opened(after, 107, [(104, 105)]), WRITTEN, WRITTEN)
    assert (smaller.next_offset, smaller.pending, smaller.pending_end) == (110, [(110, 111)], 120)
    assert settled(opened(smaller, 125, [(124, 125)]), WRITTEN, WRITTEN).next_offset == 125


def test_aborted_offsets_at_the_end_are_not_pending_but_ahead() -> None:
    after = settled(opened(START, 120, [(103, 120)]), WRITTEN, ABORTED)
    assert (after.next_offset, after.pending, after.pending_end) == (103, [], 0)


def test_a_range_without_records_is_passed_without_a_cut() -> None:
    assert cuts.passed(START, 105, token=9, at=1.5).next_offset == 105
    with pytest.raises(ValueError, match="at least one offset"):
        cuts.passed(START, 100, token=9, at=1.5)


PENDING = msgspec.structs.replace(START, pending=[(100, 101), (110, 112)], pending_end=120)


def test_skipping_past_what_was_pending_counts_exactly_the_undelivered_as_lost() -> None:
    after = cuts.skipped(PENDING, 150, token=9, at=1.5)
    assert after == msgspec.structs.replace(START, next_offset=150, lost=33, token=9, committed_at=1.5)


@pytest.mark.parametrize(("to", "lost"), [(100, 0), (105, 1), (110, 1)])
def test_skipping_to_before_the_pending_end_delivers_nothing_twice(to: int, lost: int) -> None:
    after = cuts.skipped(PENDING, to, token=9, at=1.5)
    assert cuts.undelivered(after, 130) == [*([] if lost else [(100, 101)]), (110, 112), (120, 130)]
    assert after.lost == lost


@pytest.mark.parametrize(
    ("end", "ranges", "complaint"),
    [
        (100, [], "empty cut"),
        (110, [[(100, 109)]], "exactly once"),
        (110, [[(100, 111)]], "exactly once"),
        (110, [[(100, 106)], [(105, 110)]], "exactly once"),
    ],
)
def test_a_cut_that_does_not_hold_each_offset_once_is_refused(
    end: int, ranges: list[list[tuple[int, int]]], complaint: str
) -> None:
    objects = [CutObject(key=str(number), ranges=held) for number, held in enumerate(ranges)]
    with pytest.raises(ValueError, match=complaint):
        cuts.plan_cut(START, cut_id="c", token=8, end=end, objects=objects)


def test_nothing_is_planned_or_skipped_while_a_cut_is_open() -> None:
    progress = opened(START, 120, [(103, 105)])
    with pytest.raises(ValueError, match="cut c is open"):
        cuts.plan_cut(progress, cut_id="d", token=8, end=130, objects=[])
    with pytest.raises(ValueError, match="cut c is open"):
        cuts.skipped(progress, 200, token=8, at=0)


def test_an_object_of_something_else_is_not_taken_for_ours() -> None:
    cut = opened(START, 120, [(103, 105)]).cut
    assert cut is not None
    item = cut.objects[0]
    mark = Mark.of(State.DATA, cut=cut, item=item, partition="p/t@0/1", rows=18, token=8)
    assert cuts.outcome(cut, item, mark.metadata()) == Outcome(State.DATA, 18)
    assert Mark.parse(mark.footer()) == mark
    for foreign in ({}, {**mark.metadata(), "sluiceway-cut": "other"}):
        with pytest.raises(SinkUnfit, match="url of its own"):
            cuts.outcome(cut, item, foreign)


offsets = st.frozensets(st.integers(0, 40))


@given(offsets, offsets, st.integers(0, 40), st.integers(0, 40))
def test_ranges_are_sets_of_offsets(left: frozenset[int], right: frozenset[int], start: int, end: int) -> None:
    def held(ranges: list[tuple[int, int]]) -> set[int]:
        assert ranges == merged(ranges)
        assert size(ranges) == sum(1 for s, e in ranges for _ in range(s, e))
        return {offset for s, e in ranges for offset in range(s, e)}

    one, two = of_offsets(left), of_offsets(right)
    assert held(one) == left
    assert held(merged([*one, *two])) == left | right
    assert held(without(one, two)) == left - right
    assert held(clipped(one, start, end)) == {offset for offset in left if start <= offset < end}
