"""Columns without surprises: cells whose Python types are exactly those of the column's type, converted as a whole.

Role: what makes the general path quick where most of a column is in order. On the way it tallies what `parsing` needs
to prove that no member was repeated and no digit lost. Neighbours: `columns`, `shapes`. Pure.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

import numpy as np
import pyarrow as pa

from sluiceway.worker.decode.parsing import Tally, is_tricky
from sluiceway.worker.decode.schema import ListType, StructType, Type
from sluiceway.worker.decode.shapes import Cells, Rows, gather
from sluiceway.worker.decode.values import BIG_FLOAT, EXACT_FLOAT, number_texts

_NONE: Final = type(None)
_KINDS: Final[dict[Type, frozenset[type]]] = {
    "bool": frozenset({bool, _NONE}),
    "int64": frozenset({int, _NONE}),
    "float64": frozenset({float, int, _NONE}),
    "string": frozenset({str, int, float, _NONE}),
}
_OBJECTS: Final[frozenset[type]] = frozenset({dict, _NONE})
_LISTS: Final[frozenset[type]] = frozenset({list, _NONE})


def usual_types(kind: Type) -> frozenset[type]:
    """The Python types of values that a column of this type is for."""
    if isinstance(kind, StructType):
        return _OBJECTS
    return _LISTS if isinstance(kind, ListType) else _KINDS[kind]


def plain_array(cells: Cells, rows: Rows, kind: Type, arrow: pa.DataType, tally: Tally) -> pa.Array | None:
    """The column, or None where some value must be looked at; then `tally` is worth nothing.

    `rows` are the records that the cells belong to.
    """
    found = set(map(type, cells))
    if not found <= usual_types(kind):
        return None
    if isinstance(kind, StructType):
        return _struct(cells, rows, kind, arrow, tally)
    if isinstance(kind, ListType):
        return _list(cells, rows, kind, arrow, tally)
    if float in found and not _within(BIG_FLOAT, [cell for cell in cells if type(cell) is float]):
        tally.odd.update(rows[[type(cell) is float and abs(cell) >= BIG_FLOAT for cell in cells]].tolist())
    if (
        kind == "float64"
        and int in found
        and not _within(EXACT_FLOAT + 1, [cell for cell in cells if type(cell) is int])
    ):
        return None
    if kind == "string" and (int in found or float in found):
        texts = iter(number_texts([cell for cell in cells if type(cell) is int or type(cell) is float]))
        cells = [cell if type(cell) is str or cell is None else next(texts) for cell in cells]
    try:
        return pa.array(cells, arrow)
    except OverflowError:  # integers beyond 64 bits
        return None


def _within(bound: float, numbers: list[float]) -> bool:
    return -bound < min(numbers) and max(numbers) < bound


def _struct(cells: Cells, rows: Rows, kind: StructType, arrow: pa.DataType, tally: Tally) -> pa.Array | None:
    missing = None in cells
    objects = [cell or {} for cell in cells] if missing else cells
    types = dict(kind.fields)
    gathered = gather(objects, types)
    if gathered.unknown:
        return None  # some member has no place in the struct
    arrays = []
    for (name, item), field in zip(kind.fields, arrow, strict=True):
        column = gathered.known.get(name)
        if column is None:
            arrays.append(pa.nulls(len(cells), field.type))
            continue
        array = plain_array(column.cells, rows[gathered.rows_of(column)], item, field.type, tally)
        if array is None:
            return None
        arrays.append(gathered.spread(array, column))
    tally.members.append((rows, np.fromiter(map(len, objects), np.int64, len(objects))))
    tally.tricky = tally.tricky or is_tricky(types)
    mask = pa.array([cell is None for cell in cells]) if missing else None
    return pa.StructArray.from_arrays(arrays, fields=list(arrow), mask=mask)


def _list(cells: Cells, rows: Rows, kind: ListType, arrow: pa.DataType, tally: Tally) -> pa.Array | None:
    lists = [cell or () for cell in cells] if None in cells else cells
    lengths = np.fromiter(map(len, lists), np.int64, len(cells))
    items = list(chain.from_iterable(lists))
    array = plain_array(items, np.repeat(rows, lengths), kind.item, arrow.value_type, tally)
    if array is None:
        return None
    ends = np.zeros(len(cells) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:], dtype=np.int32)
    mask = pa.array([cell is None for cell in cells]) if lists is not cells else None
    return pa.ListArray.from_arrays(pa.array(ends), array, type=arrow, mask=mask)
