"""Objects to columns, shape by shape: objects with the same names in the same order are transposed together.

Role: what makes the general path quick, since even mixed topics have few shapes. A column holds only the values that
there are; `spread` puts them into their rows at the end. Neighbours: `columns` (whole records), `plain` (objects inside
of records). Pure.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

Cells = Sequence[Any]
Record = dict[str, object]
Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(slots=True)
class Column:
    """One field's values, and the shapes that they come from, in the same order."""

    cells: Cells
    shapes: list[int]


@dataclass(slots=True)
class Gathered:
    """Objects column by column. `known` are the fields that were asked for; `unknown` has the others' values by row,
    since a single object can have any number of them."""

    count: int
    rows: Sequence[Rows]  # of each shape's objects
    known: Mapping[str, Column]
    unknown: Mapping[str, list[tuple[int, object]]]
    _spots: dict[tuple[int, ...], pa.Array] = field(default_factory=dict)

    def rows_of(self, column: Column) -> Rows:
        """The row of each value."""
        if len(column.shapes) == 1:
            return self.rows[column.shapes[0]]
        return np.concatenate([self.rows[shape] for shape in column.shapes])

    def spread(self, array: pa.Array, column: Column) -> pa.Array:
        """The array of a column's values with each one in its row, and null in the rows that have none."""
        if len(self.rows) == 1:
            return array
        shapes = tuple(column.shapes)
        spots = self._spots.get(shapes)
        if spots is None:
            places = np.full(self.count, -1, np.int64)
            places[self.rows_of(column)] = np.arange(len(array))
            spots = self._spots[shapes] = pa.array(places, mask=places < 0)
        return array.take(spots)


def gather(records: Sequence[Record], names: Container[str]) -> Gathered:
    """The objects column by column; those with the same shape stand together in each column."""
    first = records[0] if records else {}
    if len(first) > 1 and sum(map(len, records)) == len(records) * len(first) and all(name in names for name in first):
        try:
            cells = zip(*map(itemgetter(*first), records), strict=True)
            known = {name: Column(column, [0]) for name, column in zip(first, cells, strict=True)}
            return Gathered(len(records), [np.arange(len(records))], known, {})
        except KeyError:
            pass  # as many fields, but others
    return _gather_shapes(records, names)


def _gather_shapes(records: Sequence[Record], names: Container[str]) -> Gathered:
    shapes: dict[tuple[str, ...], list[int]] = {}
    for row, record in enumerate(records):
        shape = tuple(record)
        try:
            shapes[shape].append(row)
        except KeyError:
            shapes[shape] = [row]
    parts: dict[str, tuple[list[Cells], list[int]]] = {}
    unknown: dict[str, list[tuple[int, object]]] = {}
    for number, (shape, rows) in enumerate(shapes.items()):
        for name, cells in zip(shape, zip(*[records[row].values() for row in rows], strict=True), strict=True):
            if name in names:
                chunks, numbers = parts.setdefault(name, ([], []))
                chunks.append(cells)
                numbers.append(number)
            else:
                unknown.setdefault(name, []).extend(zip(rows, cells, strict=True))
    known = {
        name: Column(chunks[0] if len(chunks) == 1 else list(chain.from_iterable(chunks)), numbers)
        for name, (chunks, numbers) in parts.items()
    }
    return Gathered(len(records), [np.array(rows, np.int64) for rows in shapes.values()], known, unknown)
