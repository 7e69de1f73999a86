"""The fast path: a whole block through Arrow's JSON reader at once, where that surely gives the general path's result.

Role: most blocks hold only records that fit the schema; this path takes those and refuses everything else, without
saying which record is to blame. Neighbours: `json_records` chooses the path, `general` is the other one.

Why the guards are enough. The reader is given the whole schema and refuses unknown fields, so it never infers a type
and never nests deeper than the schema. It refuses repeated members, control characters in strings and numbers in string
columns. It doesn't check UTF-8, and it takes NaN and rounds integers in columns of doubles: both are checked here. It
reads a stream of objects and doesn't see records: but records are joined by a newline, which can't stand inside of a
string, and each one begins with `{` and ends with `}`. `}` newline `{` can only stand between two objects at the top.
So each record holds at least one whole object, and with as many rows as records it holds exactly one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.values import EXACT_FLOAT

_OPEN, _CLOSE = ord("{"), ord("}")
_MAX_BYTES: Final = 2**31 - 2**16  # Arrow's reader counts a block's bytes in 32 bits


def read(values: Sequence[bytes | None], layout: Layout, max_record_bytes: int) -> list[pa.ChunkedArray] | None:
    """The data columns of these records, or None where one of them needs the general path."""
    try:
        sizes = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    except TypeError:  # tombstones
        return read([b"{}" if value is None else value for value in values], layout, max_record_bytes)
    joined = b"\n".join(values)  # type: ignore[arg-type]
    if sizes.max() > max_record_bytes or sizes.min() < 2 or len(joined) > _MAX_BYTES or not layout.fields:
        return None
    if not _one_object_each(joined, sizes) or not _is_utf8(joined):
        return None
    try:
        table = pj.read_json(
            pa.BufferReader(joined),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(joined) + 1),
            parse_options=pj.ParseOptions(explicit_schema=layout.arrow, unexpected_field_behavior="error"),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    if table.num_rows != len(values) or not table.schema.equals(layout.arrow):
        return None
    columns: list[pa.ChunkedArray] = table.columns
    return columns if all(_exact(chunk) for index in layout.floats for chunk in columns[index].chunks) else None


def _one_object_each(joined: bytes, sizes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
    text = np.frombuffer(joined, np.uint8)
    ends = np.cumsum(sizes + 1) - 1
    return bool((text[ends - 1] == _CLOSE).all() and (text[ends - sizes] == _OPEN).all())


def _is_utf8(joined: bytes) -> bool:
    if joined.isascii():
        return True
    try:
        joined.decode()
    except UnicodeDecodeError:
        return False
    return True


def _exact(column: pa.Array) -> bool:
    """Whether no double in the column is NaN, infinite, or so large that it may be a rounded integer."""
    if pa.types.is_struct(column.type):
        return all(_exact(column.field(index)) for index in range(column.type.num_fields))
    if pa.types.is_list(column.type):
        return _exact(column.values)
    if not pa.types.is_float64(column.type):
        return True
    numbers = np.frombuffer(column.buffers()[1], np.float64, len(column), column.offset * 8)
    return bool((np.abs(numbers) < EXACT_FLOAT).all())  # null slots hold zeros; anything else only costs time
