"""Which records of a cut go to which object, by size."""

from __future__ import annotations

import pyarrow as pa

from sluiceway.common.ids import PartitionId
from sluiceway.worker.batches import DecodedBlock
from sluiceway.worker.sinks.shares import share

PARTITION = PartitionId("p", "t", 0, 0)


def block(start: int, rows: int) -> DecodedBlock:
    return DecodedBlock(
        partition=PARTITION,
        start_offset=start,
        next_offset=start + rows,
        table=pa.table({"_offset": list(range(start, start + rows))}),
        dead=[],
        schema_version=1,
        rescued=0,
        size_bytes=rows,
    )


def test_blocks_join_one_object_while_they_are_small() -> None:
    shares = share([block(0, 10), block(10, 10)], [(0, 20)], offset_column="_offset", object_bytes=10_000)
    assert [(each.ranges, each.rows) for each in shares.data] == [([(0, 20)], 20)]


def test_rows_count_with_the_columns_that_they_will_have() -> None:
    """Many small records become large once the schema has many columns."""
    blocks = [block(0, 10), block(10, 10), block(20, 10)]
    shares = share(blocks, [(0, 30)], offset_column="_offset", row_bytes=500, object_bytes=10_000)
    assert [(each.ranges, each.rows) for each in shares.data] == [([(0, 20)], 20), ([(20, 30)], 10)]
