"""A schema version made ready for decoding: parsed types, the Arrow schema, and which names are taken.

Neighbours: `fast` and `columns` fill tables of this layout. Pure; built once for each schema version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from sluiceway.worker.decode.schema import (
    RESCUED,
    Fields,
    Limits,
    ListType,
    StructType,
    Type,
    from_text,
    may_be_column,
    to_arrow,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`arrow` holds the data columns only, in the order of `fields`; `floats` are the columns with doubles in them."""

    fields: Fields
    arrow: pa.Schema
    floats: list[int]
    taken: frozenset[str]  # the fields' names in lower case
    limits: Limits

    def has_room_for(self, name: str) -> bool:
        """Whether a field without a column could get one: no rule about names forbids it."""
        return may_be_column(name, self.limits.reserved) and name.lower() not in self.taken


@lru_cache(maxsize=64)
def layout_of(fields: tuple[tuple[str, str], ...], limits: Limits) -> Layout:
    """The layout of a schema's fields as they are kept in etcd: name and type text.

    Names that are reserved now (an origin column was renamed) are left out: their values are rescued.
    """
    types = {name: from_text(text) for name, text in fields if may_be_column(name, limits.reserved)}
    return Layout(
        fields=types,
        arrow=pa.schema([pa.field(name, to_arrow(kind)) for name, kind in types.items()]),
        floats=[index for index, kind in enumerate(types.values()) if _has_floats(kind)],
        taken=frozenset(name.lower() for name in types),
        limits=limits,
    )


def _has_floats(kind: Type) -> bool:
    if isinstance(kind, ListType):
        return _has_floats(kind.item)
    if isinstance(kind, StructType):
        return any(_has_floats(item) for _, item in kind.fields)
    return kind == "float64"


def table_of(
    layout: Layout, arrays: Sequence[pa.Array | pa.ChunkedArray], rescued: pa.Array, origin: dict[str, pa.Array]
) -> pa.Table:
    """The table of a decoded block: data columns, `_rescued`, origin columns."""
    schema = layout.arrow.append(pa.field(RESCUED, pa.string()))
    for name, column in origin.items():
        schema = schema.append(pa.field(name, column.type))
    return pa.Table.from_arrays([*arrays, rescued, *origin.values()], schema=schema)
