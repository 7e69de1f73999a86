"""The general path: parsed records to Arrow columns, with what doesn't fit set aside.

Role: takes records of any shape. Every value goes into its column or into the row's rescued members, and the types that
would have taken the rescued ones are reported, so that the schema can widen. Neighbours: `values` (which value fits),
`parsing` (bytes to records), `fast` (the quick way for records that fit). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pyarrow as pa

from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parsing import Record
from sluiceway.worker.decode.schema import Fields, Type, merge
from sluiceway.worker.decode.values import EXACT_FLOAT, Misfit, Pairs, fit_to, infer, json_text

Cells = list[object]
Columns = Sequence[pa.Array | pa.ChunkedArray]
Rescued = dict[int, list[tuple[str, object]]]  # by row: members without a place in the columns

_NONE: Final = type(None)
_PLAIN: Final[dict[Type, frozenset[type]]] = {
    "bool": frozenset({bool, _NONE}),
    "int64": frozenset({int, _NONE}),
    "float64": frozenset({float, _NONE}),
    "string": frozenset({str, _NONE}),
}


def gather(records: Sequence[Record]) -> dict[str, Cells]:
    """The records column by column: each field that any of them has, with None where it is missing."""
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record))
    return {name: [record.get(name) for record in records] for name in names}


def fill(columns: Mapping[str, Cells], rows: int, layout: Layout, rescued: Rescued) -> tuple[list[pa.Array], Fields]:
    """The layout's columns, and the types that the values would need which went to `rescued` instead.

    `rescued` gets those values; the returned fields are not merged with the layout's.
    """
    arrays: list[pa.Array] = []
    wanted: Fields = {}
    for name, kind in layout.fields.items():
        arrow = layout.arrow.field(name).type
        cells = columns.get(name)
        if cells is None:
            arrays.append(pa.nulls(rows, arrow))
            continue
        array = _plain(cells, kind, arrow)
        if array is None:
            fitted, misfits = fit_cells(cells, kind)
            array = pa.array(fitted, arrow)
            set_aside(name, misfits, rescued)
            _want(name, (value for _, value in misfits), wanted)
        arrays.append(array)
    for name in columns.keys() - layout.fields.keys():
        unknown = [(row, value) for row, value in enumerate(columns[name]) if value is not None]
        set_aside(name, unknown, rescued)
        if layout.has_room_for(name):
            _want(name, (value for _, value in unknown), wanted)
    return arrays, wanted


def rescued_column(rescued: Rescued, rows: int) -> pa.Array:
    """The `_rescued` column: JSON text of an object, or null."""
    if not rescued:
        return pa.nulls(rows, pa.string())
    texts: list[str | None] = [None] * rows
    for row, members in rescued.items():
        record = dict(members)
        texts[row] = json_text(record if len(record) == len(members) else Pairs(members))
    return pa.array(texts, pa.string())


def _plain(cells: Cells, kind: Type, arrow: pa.DataType) -> pa.Array | None:
    """The column where all values have the very type; None where they must be looked at one by one."""
    found = set(map(type, cells))
    if kind == "float64" and int in found and found <= {int, float, _NONE}:
        if any(type(cell) is int and not -EXACT_FLOAT <= cell <= EXACT_FLOAT for cell in cells):
            return None
    elif not found <= _PLAIN.get(kind, frozenset()):
        return None
    try:
        return pa.array(cells, arrow)
    except OverflowError:  # integers beyond 64 bits
        return None


def fit_cells(cells: Cells, kind: Type) -> tuple[Cells, list[tuple[int, object]]]:
    """The values to store, None where one doesn't fit, and those that don't with their rows."""
    fit, fitted, misfits = fit_to(kind), [], []
    for row, cell in enumerate(cells):
        try:
            fitted.append(fit(cell))
        except Misfit:
            fitted.append(None)
            misfits.append((row, cell))
    return fitted, misfits


def set_aside(name: str, values: Iterable[tuple[int, object]], rescued: Rescued) -> None:
    """Adds values of one field, with their rows, to the rescued members."""
    for row, value in values:
        rescued.setdefault(row, []).append((name, value))


def _want(name: str, values: Iterable[object], wanted: Fields) -> None:
    for value in values:
        kind = infer(value)
        if kind is None:
            continue
        known = wanted.get(name)
        wider = kind if known is None else merge(known, kind)
        if wider is not None:
            wanted[name] = wider
