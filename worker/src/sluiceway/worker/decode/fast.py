"""The fast path: many records at once through Arrow's JSON reader, where that surely gives the general path's result.

Role: most records fit the schema; this path takes those and leaves the others. The reader refuses all of a text for one
record, but mostly names it: that one is left out and the text is tried again, in smaller pieces. Neighbours: `general`
takes what is left. Pure.

Why the guards are enough. The reader is given the whole schema and refuses unknown fields, so it never infers a type
and never nests deeper than the schema. It refuses repeated members, control characters in strings and numbers in string
columns. It doesn't check UTF-8, and it takes NaN and rounds integers in columns of doubles: both are checked here. It
reads a stream of objects and doesn't see records: but records are joined by a newline, which can't stand inside of a
string, and each one begins with `{` and ends with `}`. `}` newline `{` can only stand between two objects at the top.
So each record holds at least one whole object, and with as many rows as records it holds exactly one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parsing import MAX_SURE_BYTES
from sluiceway.worker.decode.parts import Part
from sluiceway.worker.decode.values import EXACT_FLOAT

_PIECE: Final = 512  # records to try at once; each time twice as many until the first failure, then this many
_CREDIT: Final = 4  # failures after which the rest isn't worth trying; a success makes up for two
_LARGE_BYTES: Final = 1000  # records from this size on cost the general path hardly more, so one failure is enough
_MAX_BYTES: Final = 2**31 - 2**16  # Arrow's reader counts a text's bytes in 32 bits


class _Refused(Exception):
    """The text can't be read this way; `place` is the record to blame, where that is known."""

    def __init__(self, place: int | None = None) -> None:
        super().__init__()
        self.place = place


@dataclass(frozen=True, slots=True)
class Reading:
    """`others` are the indexes of the records that were left, in order; `gave_up`: many of them untried."""

    part: Part | None
    others: Sequence[int]
    gave_up: bool = False


def read(values: Sequence[bytes | None], layout: Layout, max_record_bytes: int, *, whole: bool = False) -> Reading:
    """Takes those of the records that are surely read right at once. With `whole`, tries all of them together first:
    quicker where none is odd."""
    texts = _texts(values)
    likely = _likely(texts, max_record_bytes) if layout.fields else []
    taken: list[int] = []
    tables: list[pa.Table] = []
    most = credit = _CREDIT if sum(map(len, texts)) < len(texts) * _LARGE_BYTES else 1
    start, size, growth = 0, max(len(likely) if whole else 0, _PIECE), 2
    while start < len(likely) and credit:
        piece = likely[start : start + size]
        try:
            tables.append(_table(texts if len(piece) == len(texts) else [texts[index] for index in piece], layout))
        except _Refused as refused:
            credit -= 1
            if refused.place is not None:
                del likely[start + refused.place]
            elif size == _PIECE:
                start += size
            size, growth = _PIECE, 1
        else:
            credit = min(credit + 2, most)
            taken += piece
            start, size = start + size, growth * size
    if not tables:
        return Reading(None, range(len(values)), gave_up=not credit)
    others = np.delete(np.arange(len(values)), taken).tolist() if len(taken) < len(values) else []
    part = Part(arrays=pa.concat_tables(tables).columns, indexes=np.array(taken, np.int64))
    return Reading(part, others, gave_up=not credit)


def _texts(values: Sequence[bytes | None]) -> Sequence[bytes]:
    """The records' texts, none empty: a tombstone is a row of nulls, and no text is no record."""
    if all(values):
        return values  # type: ignore[return-value]
    return [b"{}" if value is None else value or b" " for value in values]


def _likely(texts: Sequence[bytes], max_record_bytes: int) -> list[int]:
    count = len(texts)
    sizes = np.fromiter(map(len, texts), np.int64, count)
    opened = np.fromiter(map(itemgetter(0), texts), np.uint8, count) == ord("{")
    closed = np.fromiter(map(itemgetter(-1), texts), np.uint8, count) == ord("}")
    fit = (sizes >= 2) & (sizes <= min(max_record_bytes, MAX_SURE_BYTES))
    return np.flatnonzero(fit & opened & closed).tolist()


def _table(values: Sequence[bytes], layout: Layout) -> pa.Table:
    text = b"\n".join(values)
    if len(text) > _MAX_BYTES:
        raise _Refused
    _check_utf8(text, values)
    try:
        table = pj.read_json(
            pa.BufferReader(text),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pj.ParseOptions(explicit_schema=layout.arrow, unexpected_field_behavior="error"),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        named = re.search(r" in row (\d{1,9})$", str(error))
        place = int(named[1]) if named else len(values)
        raise _Refused(place if place < len(values) else None) from None
    if table.num_rows != len(values) or not table.schema.equals(layout.arrow):
        raise _Refused
    if not all(_exact(chunk) for index in layout.floats for chunk in table.column(index).chunks):
        raise _Refused
    return table


def _check_utf8(text: bytes, values: Sequence[bytes]) -> None:
    if text.isascii():
        return
    try:
        text.decode()
    except UnicodeDecodeError as error:
        ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)) + 1)
        raise _Refused(int(np.searchsorted(ends, error.start, side="right"))) from None


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
