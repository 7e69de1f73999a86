"""The general path: a block of records of any shape, one record at a time.

Role: what `fast` refuses. Bad records become dead letters, odd values are rescued, and the rest is as
it would have come through the fast path. Neighbours: `parsing` (bytes to records), `columns` (records to Arrow). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sluiceway.worker.decode.columns import Columns, Rescued, fill, gather, plain_columns
from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parsing import Record, Rejected, parse, parse_exact, suspects
from sluiceway.worker.decode.schema import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A block's rows: the data columns, the indexes of their records, and what found no place in the columns.

    `wanted` are types for what is rescued now, not merged with the layout's. `rejected` says by index why a record is
    not among the rows.
    """

    arrays: Columns
    kept: Sequence[int]
    rescued: Rescued
    rejected: dict[int, Rejected]
    wanted: Fields


@dataclass(slots=True)
class _Rows:
    indexes: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    rescued: Rescued = field(default_factory=dict)

    def add(self, index: int, value: bytes, record: Record) -> None:
        self.indexes.append(index)
        self.values.append(value)
        self.records.append(record)


def read(values: Sequence[bytes | None], layout: Layout, max_record_bytes: int) -> Outcome:
    """All the records, each one as a row of this layout or as rejected."""
    rejected: dict[int, Rejected] = {}
    rows = _parsed(values, max_record_bytes, rejected)
    gathered = gather(rows.records, layout)
    plain, seen = plain_columns(gathered, layout)
    seen.members += sum(map(len, rows.records))
    seen.depth += 1
    if not seen.surely_whole(rows.values) and (odd := suspects(rows.values, rows.records)):
        rows = _parsed_again(rows, odd, rejected)
        gathered = gather(rows.records, layout)
        plain, _ = plain_columns(gathered, layout)
    arrays, wanted = fill(gathered, plain, layout, rows.rescued)
    return Outcome(arrays=arrays, kept=rows.indexes, rescued=rows.rescued, rejected=rejected, wanted=wanted)


def _parsed(values: Sequence[bytes | None], max_record_bytes: int, rejected: dict[int, Rejected]) -> _Rows:
    rows = _Rows()
    for index, value in enumerate(values):
        if value is None:  # a tombstone
            rows.add(index, b"{}", {})
            continue
        try:
            rows.add(index, value, parse(value, max_record_bytes))
        except Rejected as why:
            rejected[index] = why.bare()
    return rows


def _parsed_again(rows: _Rows, odd: set[int], rejected: dict[int, Rejected]) -> _Rows:
    """The rows, with the odd ones read exactly. Members that are repeated at the top of a record are rescued."""
    again = _Rows()
    for row, (index, value) in enumerate(zip(rows.indexes, rows.values, strict=True)):
        if row not in odd:
            again.add(index, value, rows.records[row])
            continue
        try:
            record, repeated = parse_exact(value)
        except Rejected as why:
            rejected[index] = why.bare()
            continue
        if repeated:
            again.rescued[len(again.indexes)] = repeated
        again.add(index, value, record)
    return again
