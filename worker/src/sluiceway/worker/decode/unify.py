"""Blocks of several schema versions under one: what a sink writes into one file.

Role: the schema widens while blocks wait in a buffer; the older ones are brought to the newest version when they are
written. Neighbours: `schema` (what a widening is), `values` (which value fits). Pure.

The result is what decoding the records again would give, row by row: the few values that a widening can't take over
exactly (an integer beyond 2**53 in a column that became float64) go to `_rescued`, so there is always one table.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from sluiceway.common.records import SchemaRecord
from sluiceway.worker.decode.columns import Rescued, fit_cells, rescued_column, set_aside
from sluiceway.worker.decode.layout import Layout, layout_of, table_of
from sluiceway.worker.decode.parsing import parse_exact
from sluiceway.worker.decode.schema import RESCUED, Limits, Type
from sluiceway.worker.decode.values import EXACT_FLOAT


def unify(tables: Sequence[pa.Table], schema: SchemaRecord, limits: Limits) -> pa.Table:
    """The tables of decoded blocks, in order, as one table of `schema`, which none of them may be newer than.

    The tables must have the same origin columns. Nothing is copied of blocks that have this schema already.

    Raises:
        ValueError: no tables, or one with a column that the schema lacks (then etcd's history went back).
    """
    layout = layout_of(tuple(schema.fields.items()), limits)
    return pa.concat_tables([_widened(table, layout) for table in tables])


def _widened(table: pa.Table, layout: Layout) -> pa.Table:
    names = table.column_names
    data = names[: names.index(RESCUED)]
    if pa.schema([table.schema.field(name) for name in data]).equals(layout.arrow):
        return table
    if missing := set(data) - layout.fields.keys():
        raise ValueError(f"the schema has no columns {sorted(missing)}, which decoded records have")
    rescued: Rescued = {}
    arrays = [
        _cast(table[name], name, kind, layout.arrow.field(name).type, rescued)
        if name in data
        else pa.nulls(table.num_rows, layout.arrow.field(name).type)
        for name, kind in layout.fields.items()
    ]
    texts = _with_more(table[RESCUED], rescued) if rescued else table[RESCUED]
    return table_of(layout, arrays, texts, {name: table[name] for name in names[len(data) + 1 :]})


def _cast(column: pa.ChunkedArray, name: str, kind: Type, arrow: pa.DataType, rescued: Rescued) -> pa.ChunkedArray:
    if column.type.equals(arrow):
        return column
    if column.type.equals(pa.int64()) and kind == "float64" and _holds_exactly(column):
        return column.cast(arrow)
    fitted, misfits = fit_cells(column.to_pylist(), kind)
    set_aside(name, misfits, rescued)
    return pa.chunked_array([pa.array(fitted, arrow)])


def _holds_exactly(column: pa.ChunkedArray) -> bool:
    ends = pc.min_max(column).as_py()
    return ends["min"] is None or (ends["min"] >= -EXACT_FLOAT and ends["max"] <= EXACT_FLOAT)


def _with_more(texts: pa.ChunkedArray, rescued: Rescued) -> pa.Array:
    for row, text in enumerate(texts.to_pylist()):
        if text is not None:
            once, repeated = parse_exact(text.encode())
            rescued[row] = [*once.items(), *repeated, *rescued.get(row, [])]
    return rescued_column(rescued, len(texts))
