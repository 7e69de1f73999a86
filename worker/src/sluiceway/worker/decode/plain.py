"""Columns without surprises: cells whose Python types are exactly those of the column's type, converted as a whole.

Role: what makes the general path quick where most of a block is in order. On the way it tallies what `parsing` needs to
prove that no member was repeated and no digit lost. Neighbours: `columns`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sluiceway.worker.decode.parsing import Seen, is_tricky
from sluiceway.worker.decode.schema import ListType, StructType, Type
from sluiceway.worker.decode.values import BIG_FLOAT, EXACT_FLOAT

Cells = Sequence[Any]

_NONE: Final = type(None)
_KINDS: Final[dict[Type, frozenset[type]]] = {
    "bool": frozenset({bool, _NONE}),
    "int64": frozenset({int, _NONE}),
    "float64": frozenset({float, int, _NONE}),
    "string": frozenset({str, _NONE}),
}


def plain_array(cells: Cells, kind: Type, arrow: pa.DataType, seen: Seen) -> pa.Array | None:
    """The column, or None where some value must be looked at; then `seen` is worth nothing."""
    found = set(map(type, cells))
    if isinstance(kind, StructType):
        return _struct(cells, kind, arrow, seen) if found <= {dict, _NONE} else None
    if isinstance(kind, ListType):
        return _list(cells, kind, arrow, seen) if found <= {list, _NONE} else None
    if not found <= _KINDS[kind] or (kind == "float64" and not _floats_fit(cells, found, seen)):
        return None
    try:
        return pa.array(cells, arrow)
    except OverflowError:  # integers beyond 64 bits
        return None


def _floats_fit(cells: Cells, found: set[type], seen: Seen) -> bool:
    if int in found and any(type(cell) is int and not -EXACT_FLOAT <= cell <= EXACT_FLOAT for cell in cells):
        return False
    if any(type(cell) is float and not -BIG_FLOAT < cell < BIG_FLOAT for cell in cells):
        seen.exact = False
    return True


def _struct(cells: Cells, kind: StructType, arrow: pa.DataType, seen: Seen) -> pa.Array | None:
    missing = None in cells
    objects = [cell or {} for cell in cells] if missing else cells
    members = sum(map(len, objects))
    arrays, known = [], 0
    for (name, item), field in zip(kind.fields, arrow, strict=True):
        known += sum(name in member for member in objects)
        array = plain_array([member.get(name) for member in objects], item, field.type, seen)
        if array is None:
            return None
        arrays.append(array)
    if known != members:
        return None  # some member has no place in the struct
    seen.members += members
    seen.tricky = seen.tricky or is_tricky(name for name, _ in kind.fields)
    mask = pa.array([cell is None for cell in cells]) if missing else None
    return pa.StructArray.from_arrays(arrays, fields=list(arrow), mask=mask)


def _list(cells: Cells, kind: ListType, arrow: pa.DataType, seen: Seen) -> pa.Array | None:
    lists = [cell or () for cell in cells] if None in cells else cells
    items = plain_array(list(chain.from_iterable(lists)), kind.item, arrow.value_type, seen)
    if items is None:
        return None
    ends = np.zeros(len(cells) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, lists), np.int64, len(cells)), out=ends[1:], dtype=np.int32)
    mask = pa.array([cell is None for cell in cells]) if lists is not cells else None
    return pa.ListArray.from_arrays(pa.array(ends), items, type=arrow, mask=mask)
