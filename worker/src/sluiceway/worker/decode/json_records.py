"""JSON records to Arrow: one decoder for each partition.

Role: takes one fetched block at a time and gives a table, dead letters, or the wish for a wider schema. Neighbours:
`fast` and `columns` are its two paths, which give the same table wherever both apply; `blocks` runs it on threads and
advances the schema. Must not do I/O: the schema comes as an argument and the wish goes out as a value.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import SchemaRecord
from sluiceway.common.specs.models import JsonFormat, Origin
from sluiceway.worker.batches import DeadRecord, DecodedBlock, RecordBlock
from sluiceway.worker.decode import fast
from sluiceway.worker.decode.columns import Columns, Rescued, fill, gather, plain_columns, rescued_column
from sluiceway.worker.decode.layout import Layout, layout_of, table_of
from sluiceway.worker.decode.origin import origin_columns, reserved_names
from sluiceway.worker.decode.parsing import Record, Rejected, names_at_most, parse, parse_exact, suspects
from sluiceway.worker.decode.plain import Cells
from sluiceway.worker.decode.schema import RESCUED, Fields, Limits, merge_fields

_MAX_PAUSE: Final = 64  # blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Widening:
    """The block needs a wider schema than it was decoded with: `fields` is that schema, merged already."""

    fields: Fields
    cpu_s: float


@dataclass(slots=True)
class _Rows:
    """The records of a block that are delivered, with their indexes in it; and why the others are not."""

    indexes: list[int]
    records: list[Record]
    columns: Mapping[str, Cells]
    plain: dict[str, pa.Array]
    rescued: Rescued
    rejected: dict[int, Rejected]


class JsonDecoder:
    """Decodes the blocks of one partition. `decode` may run on any thread, one call at a time.

    The only state is for how many blocks the fast path is left out after it failed: it never changes a result.
    """

    def __init__(self, partition: PartitionId, format: JsonFormat, origin: Origin) -> None:  # noqa: A002
        self._partition, self._format, self._origin = partition, format, origin
        self.limits = limits_of(format, origin)
        self._pause = self._left_out = 0

    def decode(self, block: RecordBlock, schema: SchemaRecord, *, final: bool = False) -> DecodedBlock | Widening:
        """The block as a table of this schema, or, unless `final`, the wider schema that it asks for.

        Every record becomes a row or a dead letter. With `final`, values without a place are rescued.
        """
        started = time.thread_time()
        layout = layout_of(tuple(schema.fields.items()), self.limits)
        arrays = self._read_fast(block, layout)
        if arrays is not None:
            return self._decoded(block, schema, layout, arrays, _all(block), started)
        rows = _parse(block, layout, self._format.max_record_bytes)
        filled, wanted = fill(rows.columns, rows.plain, len(rows.records), layout, rows.rescued)
        wider = layout.fields if final else merge_fields(layout.fields, wanted, self.limits)
        if wider != layout.fields:
            self._left_out = self._pause  # the block is decoded again, and may be fit for the fast path then
            return Widening(fields=wider, cpu_s=time.thread_time() - started)
        return self._decoded(block, schema, layout, filled, rows, started)

    def _read_fast(self, block: RecordBlock, layout: Layout) -> Columns | None:
        if self._left_out < self._pause or not block.values:
            self._left_out += 1
            return None
        columns = fast.read(block.values, layout, self._format.max_record_bytes)
        self._left_out = 0
        self._pause = 0 if columns is not None else min(2 * self._pause + 1, _MAX_PAUSE)
        return columns

    def _decoded(
        self, block: RecordBlock, schema: SchemaRecord, layout: Layout, arrays: Columns, rows: _Rows, started: float
    ) -> DecodedBlock:
        kept = rows.indexes if rows.rejected else None
        table = table_of(
            layout,
            arrays,
            rescued_column(rows.rescued, len(rows.indexes)),
            origin_columns(self._partition, self._origin, block, kept),
        )
        return DecodedBlock(
            partition=self._partition,
            start_offset=block.start_offset,
            next_offset=block.next_offset,
            table=table,
            dead=[_dead(block, index, why) for index, why in sorted(rows.rejected.items())],
            schema_version=schema.version,
            rescued=len(rows.rescued),
            size_bytes=block.size_bytes,
            cpu_s=time.thread_time() - started,
        )


def limits_of(format: JsonFormat, origin: Origin) -> Limits:  # noqa: A002
    """How far the schema of a pipeline may widen, and which names its data can't have."""
    return Limits(max_columns=format.max_columns, reserved=reserved_names(origin) | {RESCUED})


def _all(block: RecordBlock) -> _Rows:
    return _Rows(list(range(len(block.offsets))), [], {}, {}, {}, {})


def _parse(block: RecordBlock, layout: Layout, max_record_bytes: int) -> _Rows:
    rows = _Rows([], [], {}, {}, {}, {})
    values: list[bytes] = []
    for index, value in enumerate(block.values):
        try:
            record = {} if value is None else parse(value, max_record_bytes)
        except Rejected as why:
            rows.rejected[index] = why
            continue
        rows.indexes.append(index)
        rows.records.append(record)
        values.append(value or b"{}")
    rows.columns = gather(rows.records)
    rows.plain, seen = plain_columns(rows.columns, layout)
    if values and not (seen.exact and names_at_most(values) == seen.members + sum(map(len, rows.records))):
        rows = _parse_again(rows, values, layout)
    return rows


def _parse_again(rows: _Rows, values: list[bytes], layout: Layout) -> _Rows:
    """The rows with those records read once more that may have repeated members, lost digits or nest too deeply."""
    odd = suspects(values, rows.records)
    if not odd:
        return rows
    again = _Rows([], [], {}, {}, {}, rows.rejected)
    for row, (index, record) in enumerate(zip(rows.indexes, rows.records, strict=True)):
        repeated: list[tuple[str, object]] = []
        if row in odd:
            try:
                record, repeated = parse_exact(values[row])
            except Rejected as why:
                again.rejected[index] = why
                continue
        if repeated:
            again.rescued[len(again.indexes)] = repeated
        again.indexes.append(index)
        again.records.append(record)
    again.columns = gather(again.records)
    again.plain, _ = plain_columns(again.columns, layout)
    return again


def _dead(block: RecordBlock, index: int, why: Rejected) -> DeadRecord:
    return DeadRecord(
        offset=block.offsets[index],
        timestamp_ms=block.timestamps_ms[index],
        key=block.keys[index],
        value=block.values[index],
        headers=block.headers.get(index, []),
        error=why.code,
        detail=why.detail,
    )
