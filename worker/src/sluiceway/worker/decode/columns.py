"""Parsed records to Arrow columns, with what doesn't fit set aside.

Role: takes records of any shape. Every value goes into its column or among the misfits; of those come the rescued
members of each row and the types that would have taken them, so that the schema can widen. Neighbours: `plain` (columns
without odd values, quickly), `values` (which value fits), `general` (which calls this). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parsing import Tally, is_tricky
from sluiceway.worker.decode.plain import plain_array, usual_types
from sluiceway.worker.decode.schema import Fields, Type, merge
from sluiceway.worker.decode.shapes import Cells, Gathered, Rows
from sluiceway.worker.decode.values import BIG_FLOAT, Misfit, Pairs, fit_to, infer, json_text

Rescued = dict[int, list[tuple[str, object]]]  # by row: members without a place in the columns
Misfits = dict[str, list[tuple[int, object]]]  # by field: values without a place in its column, with their rows


def fill(gathered: Gathered, layout: Layout, tally: Tally) -> tuple[list[pa.Array], Misfits]:
    """The layout's columns, and the values without a place; `tally` gets what was seen in all of them."""
    arrays: list[pa.Array] = []
    misfits: Misfits = {}
    tally.tricky = is_tricky(gathered.known) or is_tricky(gathered.unknown)
    for name, arrow in zip(layout.fields, layout.arrow.types, strict=True):
        column = gathered.known.get(name)
        if column is None:
            arrays.append(pa.nulls(gathered.count, arrow))
            continue
        array, odd = _fit_column(column.cells, gathered.rows_of(column), layout.fields[name], arrow, tally)
        arrays.append(gathered.spread(array, column))
        if odd:
            misfits[name] = odd
    for name, values in gathered.unknown.items():
        misfits[name] = values
        _look_at(values, tally)
    return arrays, misfits


def rescue(misfits: Misfits, rescued: Rescued, layout: Layout) -> Fields:
    """Adds all misfits to the rescued members, and gives the types that would have taken them.

    The types aren't merged with the layout's and are no more than could have columns. The result doesn't depend on the
    order of the misfits.
    """
    wanted: Fields = {}
    ordered = {name: sorted(values, key=_row) if len(values) > 1 else values for name, values in misfits.items()}
    known = [name for name in layout.fields if name in ordered]
    unknown = [name for name in ordered if name not in layout.fields]
    for name in [*known, *sorted(unknown, key=lambda name: ordered[name][0][0])]:
        set_aside(name, (entry for entry in ordered[name] if entry[1] is not None), rescued)
        if name in layout.fields or (len(wanted) <= layout.limits.max_columns and layout.has_room_for(name)):
            _want(name, (value for _, value in ordered[name]), wanted)
    return wanted


def fit_cells(cells: Cells, kind: Type) -> tuple[list[object], list[tuple[int, object]]]:
    """The values to store, None where one doesn't fit, and those that don't with their places."""
    return _fit_all(cells, range(len(cells)), kind)


def set_aside(name: str, values: Iterable[tuple[int, object]], rescued: Rescued) -> None:
    """Adds values of one field, with their rows, to the rescued members."""
    for row, value in values:
        rescued.setdefault(row, []).append((name, value))


def rescued_column(rescued: Rescued, rows: int) -> pa.Array:
    """The `_rescued` column: JSON text of an object, or null."""
    if not rescued:
        return pa.nulls(rows, pa.string())
    texts: list[str | None] = [None] * rows
    for row, members in rescued.items():
        record = dict(members)
        texts[row] = json_text(record if len(record) == len(members) else Pairs(members))
    return pa.array(texts, pa.string())


def _fit_column(
    cells: Cells, rows: Rows, kind: Type, arrow: pa.DataType, tally: Tally
) -> tuple[pa.Array, list[tuple[int, object]]]:
    plain = Tally()
    array = plain_array(cells, rows, kind, arrow, plain)
    if array is not None:
        tally.add(plain)
        return array, []
    usual = usual_types(kind)
    odd = [place for place, cell in enumerate(cells) if type(cell) not in usual]
    fitted, misfits = _fit_all(cells, odd, kind)
    plain = Tally()
    array = plain_array(fitted, rows, kind, arrow, plain) if odd else None
    if array is None:
        odd = list(range(len(cells)))
        fitted, misfits = _fit_all(cells, odd, kind)
        array = pa.array(fitted, arrow)
    else:
        tally.add(plain)
    _look_at([(int(rows[place]), cells[place]) for place in odd], tally)
    return array, [(int(rows[place]), value) for place, value in misfits]


def _fit_all(cells: Cells, places: Iterable[int], kind: Type) -> tuple[list[object], list[tuple[int, object]]]:
    fit, fitted, misfits = fit_to(kind), list(cells), []
    for place in places:
        try:
            fitted[place] = fit(cells[place])
        except Misfit:
            fitted[place] = None
            misfits.append((place, cells[place]))
    return fitted, misfits


def _look_at(values: Iterable[tuple[int, object]], tally: Tally) -> None:
    for row, value in values:
        if type(value) is float:
            if not -BIG_FLOAT < value < BIG_FLOAT:
                tally.odd.add(row)
        elif type(value) is dict or type(value) is list:
            tally.look_at(row, value)


def _want(name: str, values: Iterable[object], wanted: Fields) -> None:
    for value in values:
        kind, known = infer(value), wanted.get(name)
        if kind is None or kind == known:
            continue
        wider = kind if known is None else merge(known, kind)
        if wider is not None:
            wanted[name] = wider


def _row(entry: tuple[int, object]) -> int:
    return entry[0]
