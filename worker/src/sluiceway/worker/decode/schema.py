"""Inferred column types: what they are, how they are written, and how they widen.

Role: the lattice int64 → float64 → string, with bool, lists and structs beside it, and schemas made of it. Strings stay
strings: no dates are guessed. Neighbours: `values` infers types from values and fits values to types; `registry` keeps
the result in etcd as text. Pure: no I/O, no state.

Promises of `merge_fields`, which every reader of older files and every other worker depends on: a field never goes, a
type only widens, merging twice changes nothing, and the result stays within `Limits`, whatever comes in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import pyarrow as pa

RESCUED: Final = "_rescued"
MAX_TYPE_DEPTH: Final = 16  # deeper values are rescued: readers of Parquet recurse over types
MAX_NAME_CHARS: Final = 200
MAX_SCHEMA_CHARS: Final = 400_000  # the schema is one etcd value, which may have 1.5 MB


class ListType(NamedTuple):
    item: Type


class StructType(NamedTuple):
    fields: tuple[tuple[str, Type], ...]  # never empty


Scalar = Literal["bool", "int64", "float64", "string"]
Type = Scalar | ListType | StructType
Fields = dict[str, Type]

_WIDTH: dict[Type, int] = {"int64": 0, "float64": 1, "string": 2}
_ARROW: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a schema may grow to.

    `max_columns` counts leaves: each scalar inside of a struct is a column of a Parquet file. `reserved` are names in
    lower case that data may not use, because Sluiceway's own columns have them.
    """

    max_columns: int = 2000
    reserved: frozenset[str] = frozenset({RESCUED})


def to_text(kind: Type) -> str:
    """The text of a type: `int64`, `list<string>`, `struct<"a":int64,"b":list<bool>>`."""
    if isinstance(kind, ListType):
        return f"list<{to_text(kind.item)}>"
    if isinstance(kind, StructType):
        return f"struct<{','.join(f'{json.dumps(name)}:{to_text(item)}' for name, item in kind.fields)}>"
    return kind


def from_text(text: str) -> Type:
    """The inverse of `to_text`.

    Raises:
        ValueError: not the text of a type.
    """
    kind, end = _parse(text, 0)
    if end != len(text):
        raise ValueError(f"not a column type: {text!r} (unexpected text at character {end})")
    return kind


def to_arrow(kind: Type) -> pa.DataType:
    """The Arrow type that columns of this type have."""
    if isinstance(kind, ListType):
        return pa.list_(to_arrow(kind.item))
    if isinstance(kind, StructType):
        return pa.struct([pa.field(name, to_arrow(item)) for name, item in kind.fields])
    return _ARROW[kind]


def merge(old: Type, new: Type) -> Type | None:
    """The narrowest type that holds the values of both, or None where the lattice has none.

    Inside of structs a conflict keeps the old field, so that a single odd field doesn't stop the others from widening.
    """
    if old == new:
        return old
    if isinstance(old, ListType) and isinstance(new, ListType):
        item = merge(old.item, new.item)
        return None if item is None else ListType(item)
    if isinstance(old, StructType) and isinstance(new, StructType):
        return StructType(tuple(_merge_names(dict(old.fields), new.fields).items()))
    if old in _WIDTH and new in _WIDTH:
        return max(old, new, key=_WIDTH.__getitem__)
    return None


def merge_fields(old: Mapping[str, Type], new: Mapping[str, Type], limits: Limits) -> Fields:
    """`old` widened by `new`, field by field, as far as `limits` allow."""
    merged = dict(old)
    if not new:
        return merged
    taken = {name.lower(): name for name in old}
    leaves, chars = _size(old.items())
    for name, kind in new.items():
        if not may_be_column(name, limits.reserved) or taken.setdefault(name.lower(), name) != name:
            continue
        before = merged.get(name)
        if before is None and leaves >= limits.max_columns:
            continue
        wider = kind if before is None else merge(before, kind)
        if wider is None or wider == before:
            continue
        more_leaves, more_chars = _growth(name, before, wider)
        if leaves + more_leaves <= max(limits.max_columns, leaves) and chars + more_chars <= MAX_SCHEMA_CHARS:
            merged[name] = wider
            leaves, chars = leaves + more_leaves, chars + more_chars
    return merged


def may_be_column(name: str, reserved: frozenset[str]) -> bool:
    """Whether a field may have a column at all: many readers know neither empty names nor NUL nor letter case."""
    return 0 < len(name) <= MAX_NAME_CHARS and "\0" not in name and name.lower() not in reserved


def covers(wide: Type, narrow: Type) -> bool:
    """Whether `wide` is `narrow` or a widening of it."""
    return merge(wide, narrow) == wide


def _merge_names(merged: Fields, new: Iterable[tuple[str, Type]]) -> Fields:
    taken = {name.lower(): name for name in merged}
    for name, kind in new:
        if taken.setdefault(name.lower(), name) != name:
            continue
        wider = merge(merged[name], kind) if name in merged else kind
        if wider is not None:
            merged[name] = wider
    return merged


def _size(fields: Iterable[tuple[str, Type]]) -> tuple[int, int]:
    leaves = chars = 0
    for name, kind in fields:
        more_leaves, more_chars = _growth(name, None, kind)
        leaves, chars = leaves + more_leaves, chars + more_chars
    return leaves, chars


def _growth(name: str, before: Type | None, after: Type) -> tuple[int, int]:
    if before is None:
        return _leaves(after), len(json.dumps(name)) + len(to_text(after))
    return _leaves(after) - _leaves(before), len(to_text(after)) - len(to_text(before))


def _leaves(kind: Type) -> int:
    if isinstance(kind, ListType):
        return _leaves(kind.item)
    if isinstance(kind, StructType):
        return sum(_leaves(item) for _, item in kind.fields)
    return 1


def _parse(text: str, at: int) -> tuple[Type, int]:
    if text.startswith("list<", at):
        item, at = _parse(text, at + 5)
        return ListType(item), _expect(text, at, ">")
    if text.startswith("struct<", at):
        return _parse_struct(text, at + 7)
    for name in ("bool", "int64", "float64", "string"):
        if text.startswith(name, at):
            return name, at + len(name)
    raise ValueError(f"not a column type: {text!r} (unknown type at character {at})")


def _parse_struct(text: str, at: int) -> tuple[Type, int]:
    fields: list[tuple[str, Type]] = []
    while True:
        name, at = json.JSONDecoder().raw_decode(text, at)
        item, at = _parse(text, _expect(text, at, ":"))
        fields.append((str(name), item))
        if not text.startswith(",", at):
            return StructType(tuple(fields)), _expect(text, at, ">")
        at += 1


def _expect(text: str, at: int, sign: str) -> int:
    if not text.startswith(sign, at):
        raise ValueError(f"not a column type: {text!r} (expected {sign!r} at character {at})")
    return at + 1
