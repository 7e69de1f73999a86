"""The general path: records of any shape, parsed one at a time and converted column by column.

Role: what `fast` leaves. Bad records become dead letters, odd values are set aside, and the rest is as it would have
come through the fast path. Neighbours: `parsing` (bytes to records), `columns` (records to Arrow). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from sluiceway.worker.decode.columns import Rescued, fill
from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parsing import Rejected, Tally, parse, parse_exact, suspects
from sluiceway.worker.decode.parts import Part
from sluiceway.worker.decode.shapes import Record, gather


@dataclass(slots=True)
class _Parsed:
    indexes: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    repeated: Rescued = field(default_factory=dict)
    rejected: dict[int, Rejected] = field(default_factory=dict)


def read(values: Sequence[bytes | None], indexes: Sequence[int], layout: Layout, max_record_bytes: int) -> list[Part]:
    """The records at these indexes, each one as a row of this layout or as rejected."""
    parsed, tally = _parse(values, indexes, max_record_bytes), Tally()
    part = _columns(parsed, layout, tally)
    odd = suspects(parsed.values, tally)
    if not odd:
        return [part]
    return [_without(part, sorted(odd)), _columns(_parse_exactly(parsed, sorted(odd)), layout, Tally())]


def _parse(values: Sequence[bytes | None], indexes: Sequence[int], max_record_bytes: int) -> _Parsed:
    parsed = _Parsed()
    for index in indexes:
        value = values[index]
        try:
            record = {} if value is None else parse(value, max_record_bytes)
        except Rejected as why:
            parsed.rejected[index] = why.bare()
            continue
        parsed.indexes.append(index)
        parsed.values.append(value or b"{}")  # a tombstone is a row of nulls
        parsed.records.append(record)
    return parsed


def _parse_exactly(parsed: _Parsed, rows: Sequence[int]) -> _Parsed:
    exact = _Parsed()
    for row in rows:
        index, value = parsed.indexes[row], parsed.values[row]
        try:
            record, repeated = parse_exact(value)
        except Rejected as why:
            exact.rejected[index] = why.bare()
            continue
        exact.indexes.append(index)
        exact.values.append(value)
        exact.records.append(record)
        if repeated:
            exact.repeated[index] = repeated
    return exact


def _columns(parsed: _Parsed, layout: Layout, tally: Tally) -> Part:
    gathered, indexes = gather(parsed.records, layout.fields), parsed.indexes
    arrays, misfits = fill(gathered, layout, tally)
    rows = np.arange(len(indexes))
    tally.members.append((rows, np.fromiter(map(len, parsed.records), np.int64, len(indexes))))
    return Part(
        arrays=arrays,
        indexes=np.array(indexes, np.int64),
        misfits={name: [(indexes[row], value) for row, value in values] for name, values in misfits.items()},
        repeated=parsed.repeated,
        rejected=parsed.rejected,
    )


def _without(part: Part, rows: Sequence[int]) -> Part:
    keep = np.delete(np.arange(len(part.indexes)), rows)
    gone = set(part.indexes[list(rows)].tolist())
    left = {name: [entry for entry in values if entry[0] not in gone] for name, values in part.misfits.items()}
    return Part(
        arrays=[array.take(pa.array(keep)) for array in part.arrays],
        indexes=part.indexes[keep],
        misfits={name: values for name, values in left.items() if values},
        rejected=part.rejected,
    )
