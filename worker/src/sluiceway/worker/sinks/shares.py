"""Which records of a cut go to which object. Pure; works on whole columns, never on single rows.

Neighbours: `parquet` asks, `cuts` checks the resulting ranges. Every undelivered offset of a cut belongs to exactly one
object, offsets without a record included, so that an aborted object names its offsets without looking at records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sluiceway.common.records import Range
from sluiceway.worker.batches import DeadRecord, DecodedBlock
from sluiceway.worker.sinks.ranges import clipped, of_offsets, without

OBJECT_BYTES: Final = 256 * 2**20  # of Arrow data in one object
DEAD_RUNS: Final = 2048  # of dead letters in one cut: its ranges must fit into one etcd record


@dataclass(frozen=True, slots=True, kw_only=True)
class DataShare:
    """The rows of one data object: tables in offset order."""

    ranges: list[Range]
    tables: list[pa.Table]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadShare:
    """The records of one dead-letter object, in offset order."""

    ranges: list[Range]
    records: list[DeadRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The objects of one cut; no object without a record."""

    data: list[DataShare]
    dead: DeadShare | None


def split(
    blocks: Sequence[DecodedBlock], *, offset_column: str, dead_runs: int = DEAD_RUNS
) -> Iterator[list[DecodedBlock]]:
    """Consecutive blocks as groups that one cut each may hold: usually one group of all."""
    group: list[DecodedBlock] = []
    runs = 0
    for block in blocks:
        rest = block
        for offset in _run_starts(block):
            if runs == dead_runs:
                head, rest = _cut_at(rest, offset, offset_column)
                yield [*group, head] if head is not None else group
                group, runs = [], 0
            runs += 1
        group.append(rest)
    if group:
        yield group


def share(
    blocks: Sequence[DecodedBlock],
    wanted: Sequence[Range],
    *,
    offset_column: str,
    row_bytes: int = 0,
    object_bytes: int = OBJECT_BYTES,
) -> Shares:
    """Distributes the records of one cut whose undelivered offsets are `wanted`.

    `row_bytes`: what a row takes at least once it has all columns of the newest schema, however little it holds.

    Raises:
        ValueError: a block has neither offsets nor an offset column.
    """
    dead = [record for block in blocks for record in _wanted_dead(block, wanted)]
    groups = _groups(blocks, wanted, offset_column, row_bytes, object_bytes)
    dead_ranges = of_offsets(record.offset for record in dead) if groups else list(wanted)
    alive = without(wanted, dead_ranges) if dead else list(wanted)
    data = []
    start = blocks[0].start_offset
    for number, (end, tables) in enumerate(groups, 1):
        bound = blocks[-1].next_offset if number == len(groups) else end
        rows = sum(table.num_rows for table in tables)
        data.append(DataShare(ranges=clipped(alive, start, bound), tables=tables, rows=rows))
        start = bound
    return Shares(data=data, dead=DeadShare(ranges=dead_ranges, records=dead) if dead else None)


def _groups(
    blocks: Sequence[DecodedBlock], wanted: Sequence[Range], offset_column: str, row_bytes: int, object_bytes: int
) -> list[tuple[int, list[pa.Table]]]:
    """Tables of about `object_bytes`, each group with the offset where it ends."""
    groups: list[tuple[int, list[pa.Table]]] = []
    tables: list[pa.Table] = []
    size = 0
    for block in blocks:
        selected = _wanted_rows(block, wanted, offset_column)
        rows = sum(table.num_rows for table in selected)
        # Not `nbytes`, which looks into every column and takes the event loop milliseconds a block.
        added = max(block.table.get_total_buffer_size() * rows // max(1, block.table.num_rows), rows * row_bytes)
        if tables and size + added > object_bytes:
            groups.append((block.start_offset, tables))
            tables, size = [], 0
        tables = [*tables, *selected]
        size += added
    if tables:
        groups.append((blocks[-1].next_offset, tables))
    return groups


def _wanted_rows(block: DecodedBlock, wanted: Sequence[Range], offset_column: str) -> list[pa.Table]:
    inside = clipped(wanted, block.start_offset, block.next_offset)
    if block.table.num_rows == 0 or not inside:
        return []
    if inside == [(block.start_offset, block.next_offset)]:
        return [block.table]
    bounds = np.searchsorted(_offsets(block, offset_column), np.array(inside, dtype=np.int64))
    return [block.table.slice(first, last - first) for first, last in bounds.tolist() if last > first]


def _wanted_dead(block: DecodedBlock, wanted: Sequence[Range]) -> list[DeadRecord]:
    inside = clipped(wanted, block.start_offset, block.next_offset)
    if inside == [(block.start_offset, block.next_offset)]:
        return block.dead
    return [record for record in block.dead if any(start <= record.offset < end for start, end in inside)]


def _offsets(block: DecodedBlock, offset_column: str) -> npt.NDArray[np.int64]:
    if block.offsets is not None:
        return np.asarray(block.offsets, dtype=np.int64)
    if offset_column not in block.table.column_names:
        raise ValueError(f"the block of {block.partition} has neither offsets nor a column {offset_column!r}")
    return np.asarray(block.table.column(offset_column).to_numpy(), dtype=np.int64)


def _run_starts(block: DecodedBlock) -> list[int]:
    """Where a run of neighbouring dead letters starts."""
    return [start for start, _ in of_offsets(record.offset for record in block.dead)]


def _cut_at(block: DecodedBlock, offset: int, offset_column: str) -> tuple[DecodedBlock | None, DecodedBlock]:
    """The block in two at an offset; no first half when it would be empty."""
    if offset <= block.start_offset:
        return None, block
    offsets = _offsets(block, offset_column)
    row = int(np.searchsorted(offsets, offset))
    left = replace(
        block,
        next_offset=offset,
        table=block.table.slice(0, row),
        dead=[record for record in block.dead if record.offset < offset],
        offsets=offsets[:row],
    )
    right = replace(
        block,
        start_offset=offset,
        table=block.table.slice(row),
        dead=[record for record in block.dead if record.offset >= offset],
        offsets=offsets[row:],
    )
    return left, right
