"""JSON values and column types: which type a value asks for, and whether a value fits a type.

Role: the rules of the general path, one value at a time. Neighbours: `schema` (the lattice), `parsing` (bytes to
values), `columns` (values to Arrow). Pure.

A value fits when the column gives it back: integers beyond int64 and integers that a double can't hold exactly don't
fit, nor do objects with members that the struct doesn't know. Null fits everywhere and means the same as a missing
field. A number in a string column is its text (see `number_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import orjson

from sluiceway.worker.decode.schema import (
    MAX_NAME_CHARS,
    MAX_TYPE_DEPTH,
    Fields,
    ListType,
    StructType,
    Type,
    merge,
)

EXACT_FLOAT: Final = 2**53  # every integer up to here has its own double
BIG_FLOAT: Final = 2.0**63  # a double from here on may have been an integer that lost digits when it was parsed
MAX_DEPTH: Final = 200  # levels of nesting in a record; what is deeper can't be written as JSON again everywhere


class Pairs(list[tuple[str, object]]):
    """An object with a repeated member, all members kept in order. Fits no column, so it is rescued as it was."""


class Misfit(Exception):
    """The value doesn't fit the type; it belongs into `_rescued`."""


Fit = Callable[[object], object]


@lru_cache(maxsize=4096)
def fit_to(kind: Type) -> Fit:
    """A function that gives the value to store in a column of this type, or raises Misfit."""
    if isinstance(kind, ListType):
        return _fit_list(fit_to(kind.item))
    if isinstance(kind, StructType):
        return _fit_struct({name: fit_to(item) for name, item in kind.fields})
    return {"bool": _fit_bool, "int64": _fit_int, "float64": _fit_float, "string": _fit_string}[kind]


def infer(value: object, depth: int = 0) -> Type | None:
    """The narrowest type of a value; None where it asks for no type: null, empty, contradictory or too deep."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int64" if -(2**63) <= value < 2**63 else None
        case float():
            return "float64"
        case str():
            return "string"
        case Pairs():
            return None
        case list() if depth < MAX_TYPE_DEPTH:
            return _infer_list(value, depth)
        case dict() if depth < MAX_TYPE_DEPTH:
            return _infer_struct(value, depth)
    return None


def number_text(value: float) -> str:
    """The text of a number in a string column, the same for all numbers that are equal: 5 and 5.0 are `5`."""
    if type(value) is float and value.is_integer() and abs(value) <= EXACT_FLOAT:
        return str(int(value))
    return str(value) if type(value) is int else orjson.dumps(value).decode()


def number_texts(values: Sequence[float]) -> list[str]:
    """The `number_text` of many numbers, quickly where most have no other text than the usual."""
    try:
        texts = orjson.dumps(values)[1:-1].decode().split(",")
    except TypeError:  # integers beyond 64 bits
        return [number_text(value) for value in values]
    return [
        number_text(value) if "e" in text or text.endswith(".0") else text
        for value, text in zip(values, texts, strict=True)
    ]


def json_text(value: object) -> str:
    """A value as compact JSON text, with integers of any size and repeated members."""
    try:
        return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_SUBCLASS).decode()
    except TypeError:  # integers beyond 64 bits, repeated members
        return _write(value)


def _fit_bool(value: object) -> object:
    if value is None or type(value) is bool:
        return value
    raise Misfit


def _fit_int(value: object) -> object:
    if value is None or (type(value) is int and -(2**63) <= value < 2**63):
        return value
    raise Misfit


def _fit_float(value: object) -> object:
    if value is None or type(value) is float:
        return value
    if type(value) is int and -EXACT_FLOAT <= value <= EXACT_FLOAT:
        return float(value)
    raise Misfit


def _fit_string(value: object) -> object:
    if value is None or type(value) is str:
        return value
    if type(value) is int or type(value) is float:
        return number_text(value)
    raise Misfit


def _fit_list(item: Fit) -> Fit:
    def fit(value: object) -> object:
        if value is None:
            return None
        if type(value) is not list:
            raise Misfit
        return [item(element) for element in value]

    return fit


def _fit_struct(members: dict[str, Fit]) -> Fit:
    def fit(value: object) -> object:
        if value is None:
            return None
        if type(value) is not dict:
            raise Misfit
        fitted = {}
        for name, element in value.items():
            member = members.get(name)
            if member is not None:
                fitted[name] = member(element)
            elif element is not None:
                raise Misfit
        return fitted

    return fit


def _infer_list(items: list[object], depth: int) -> Type | None:
    found: Type | None = None
    for item in items:
        kind = infer(item, depth + 1)
        if kind is None or kind == found:
            continue
        found = kind if found is None else merge(found, kind)
        if found is None:
            return None
    return None if found is None else ListType(found)


def _infer_struct(members: dict[str, object], depth: int) -> Type | None:
    fields: Fields = {}
    taken: set[str] = set()
    for name, value in members.items():
        kind = infer(value, depth + 1)
        folded = name.lower()
        if kind is not None and folded not in taken and 0 < len(name) <= MAX_NAME_CHARS and "\0" not in name:
            fields[name] = kind
            taken.add(folded)
    return StructType(tuple(fields.items())) if fields else None


def _write(value: object) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json_text(name)}:{_write(member)}" for name, member in value) + "}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_text(name)}:{_write(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    return str(value) if type(value) is int else orjson.dumps(value).decode()
