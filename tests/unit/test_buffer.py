"""When buffered records become a cut."""

import pyarrow as pa
import pytest

from sluiceway.common.ids import PartitionId
from sluiceway.common.specs.models import CutPolicy
from sluiceway.worker.batches import DecodedBlock
from sluiceway.worker.buffer import Buffer, CutCause, relieve

POLICY = CutPolicy(max_bytes=2000, max_records=10, max_age_s=30)


def block(rows: int, size_bytes: int) -> DecodedBlock:
    return DecodedBlock(
        partition=PartitionId("p", "t", 0, 0),
        start_offset=0,
        next_offset=rows,
        table=pa.table({"a": list(range(rows))}),
        dead=[],
        schema_version=1,
        rescued=0,
        size_bytes=size_bytes,
    )


def test_nothing_buffered_is_never_due() -> None:
    buffer = Buffer(policy=POLICY)
    assert buffer.due(now=1e9, under_pressure=True) is None
    assert buffer.seconds_until_due(now=0) is None


@pytest.mark.parametrize(
    ("rows", "size_bytes", "now", "pressure", "cause"),
    [
        (1, 2000, 0, False, CutCause.BYTES),
        (10, 1, 0, False, CutCause.RECORDS),
        (1, 1, 30, False, CutCause.AGE),
        (1, 1, 0, True, CutCause.MEMORY),
        (1, 1, 29.9, False, None),
    ],
)
def test_a_cut_is_due_at_the_first_limit_reached(
    rows: int, size_bytes: int, now: float, pressure: bool, cause: CutCause | None
) -> None:
    buffer = Buffer(policy=POLICY)
    buffer.add(block(rows, size_bytes), at=0, held_bytes=8)
    assert buffer.due(now=now, under_pressure=pressure) == cause


def test_age_counts_from_the_oldest_block_and_starts_again_after_a_take() -> None:
    buffer = Buffer(policy=POLICY)
    buffer.add(block(1, 1), at=5, held_bytes=8)
    buffer.add(block(1, 1), at=25, held_bytes=8)
    assert buffer.seconds_until_due(now=25) == 10
    assert len(buffer.take()) == 2
    buffer.add(block(1, 1), at=40, held_bytes=8)
    assert buffer.seconds_until_due(now=40) == 30
    assert (buffer.size_bytes, buffer.held_bytes, buffer.records) == (1, 8, 1)


def test_memory_is_freed_by_the_fewest_and_largest_buffers() -> None:
    buffered = {"a": 10, "b": 70, "c": 0, "d": 70}
    assert relieve(buffered, held_bytes=150) == {"b", "d"}
    assert relieve(buffered, held_bytes=160) == {"b"}
    assert relieve({"c": 0}, held_bytes=0) == frozenset()


def test_no_cut_is_asked_for_while_half_is_being_written_already() -> None:
    assert relieve({"a": 10, "b": 70}, held_bytes=159) == {"b"}
    assert relieve({"a": 10, "b": 70}, held_bytes=160) == frozenset()
