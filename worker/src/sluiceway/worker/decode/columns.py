"""Parsed records to Arrow columns, with what doesn't fit set aside.

Role: takes records of any shape. Every value goes into its column or into the row's rescued members, and the types that
would have taken the rescued ones are reported, so that the schema can widen. Neighbours: `plain` (columns without odd
values, quickly), `values` (which value fits), `general` (which calls this). Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import pyarrow as pa

from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parsing import Record, Seen, is_tricky, survey
from sluiceway.worker.decode.plain import Cells, plain_array
from sluiceway.worker.decode.schema import Fields, Type, merge
from sluiceway.worker.decode.values import Misfit, Pairs, fit_to, infer, json_text

Columns = Sequence[pa.Array | pa.ChunkedArray]
Rescued = dict[int, list[tuple[str, object]]]  # by row: members without a place in the columns


@dataclass(frozen=True, slots=True)
class Gathered:
    """Records column by column. `known` has the layout's fields that any record has, with None where one is missing;
    `unknown` has the others by row, since a single record can have any number of them."""

    rows: int
    known: Mapping[str, Cells]
    unknown: Mapping[str, list[tuple[int, object]]]


def gather(records: Sequence[Record], layout: Layout) -> Gathered:
    """The records column by column."""
    rows, first = len(records), records[0] if records else {}
    if len(first) > 1 and first.keys() <= layout.fields.keys() and sum(map(len, records)) == rows * len(first):
        try:
            cells = zip(*map(itemgetter(*first), records), strict=True)
            return Gathered(rows, dict(zip(first, cells, strict=True)), {})
        except KeyError:
            pass  # as many fields, but others
    known: defaultdict[str, list[object]] = defaultdict(lambda: [None] * rows)  # quicker than a get for each cell
    unknown: defaultdict[str, list[tuple[int, object]]] = defaultdict(list)
    for row, record in enumerate(records):
        for name, value in record.items():
            if name in layout.fields:
                known[name][row] = value
            else:
                unknown[name].append((row, value))
    return Gathered(rows, known, unknown)


def plain_columns(gathered: Gathered, layout: Layout) -> tuple[dict[str, pa.Array], Seen]:
    """The columns whose values all have the very type, and what was seen in all the columns on the way."""
    arrays, seen = {}, Seen(tricky=is_tricky(gathered.known) or is_tricky(gathered.unknown))
    for name, cells in gathered.known.items():
        inside = Seen()
        array = plain_array(cells, layout.fields[name], layout.arrow.field(name).type, inside)
        if array is not None:
            arrays[name] = array
        seen.add(_look_at(cells) if array is None else inside)
    for values in gathered.unknown.values():
        seen.add(_look_at([value for _, value in values]))
    return arrays, seen


def fill(
    gathered: Gathered, arrays: dict[str, pa.Array], layout: Layout, rescued: Rescued
) -> tuple[list[pa.Array], Fields]:
    """The layout's columns, and the types that the values would need which went to `rescued` instead.

    `arrays` are the plain columns; `rescued` gets the values without a place; the types aren't merged with the layout's
    and are no more than could have columns.
    """
    filled: list[pa.Array] = []
    wanted: Fields = {}
    for name, arrow in zip(layout.fields, layout.arrow.types, strict=True):
        array = arrays.get(name)
        if array is None and name in gathered.known:
            fitted, misfits = fit_cells(gathered.known[name], layout.fields[name])
            array = pa.array(fitted, arrow)
            set_aside(name, misfits, rescued)
            _want(name, (value for _, value in misfits), wanted)
        filled.append(pa.nulls(gathered.rows, arrow) if array is None else array)
    for name, values in gathered.unknown.items():
        set_aside(name, (entry for entry in values if entry[1] is not None), rescued)
        if len(wanted) <= layout.limits.max_columns and layout.has_room_for(name):
            _want(name, (value for _, value in values), wanted)
    return filled, wanted


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


def rescued_column(rescued: Rescued, rows: int) -> pa.Array:
    """The `_rescued` column: JSON text of an object, or null."""
    if not rescued:
        return pa.nulls(rows, pa.string())
    texts: list[str | None] = [None] * rows
    for row, members in rescued.items():
        record = dict(members)
        texts[row] = json_text(record if len(record) == len(members) else Pairs(members))
    return pa.array(texts, pa.string())


def _look_at(cells: Cells) -> Seen:
    seen = Seen()
    if set(map(type, cells)) & {dict, list, float}:
        for cell in cells:
            if type(cell) in (dict, list, float):
                seen.add(survey(cell))
    return seen


def _want(name: str, values: Iterable[object], wanted: Fields) -> None:
    for value in values:
        kind, known = infer(value), wanted.get(name)
        if kind is None or kind == known:
            continue
        wider = kind if known is None else merge(known, kind)
        if wider is not None:
            wanted[name] = wider
