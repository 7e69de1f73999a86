"""Types, their texts, and what a widening is."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sluiceway.worker.decode.schema import (
    Limits,
    ListType,
    StructType,
    Type,
    from_text,
    merge,
    merge_fields,
    to_arrow,
    to_text,
)

POINT = StructType((("x", "int64"), ("y>,:\"'", ListType("float64"))))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("int64", "int64"),
        (ListType(ListType("string")), "list<list<string>>"),
        (POINT, 'struct<"x":int64,"y>,:\\"\'":list<float64>>'),
    ],
)
def test_a_type_is_its_text(kind: Type, text: str) -> None:
    assert to_text(kind) == text
    assert from_text(text) == kind


@pytest.mark.parametrize(
    "text", ["", "int", "int64x", "list<int64", "struct<>", 'struct<"a">', 'struct<"a":int64,>', "map"]
)
def test_what_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_text(text)


def test_a_type_has_an_arrow_type() -> None:
    assert to_arrow(POINT) == pa.struct([("x", pa.int64()), ("y>,:\"'", pa.list_(pa.float64()))])


@pytest.mark.parametrize(
    ("old", "new", "wider"),
    [
        ("int64", "float64", "float64"),
        ("string", "int64", "string"),
        ("bool", "int64", None),
        ("bool", "string", None),
        (ListType("int64"), "int64", None),
        (ListType("int64"), ListType("string"), ListType("string")),
        (ListType("int64"), ListType("bool"), None),
        (
            StructType((("a", "int64"), ("b", "bool"))),
            StructType((("c", "string"), ("b", "string"), ("a", "float64"), ("A", "bool"))),
            StructType((("a", "float64"), ("b", "bool"), ("c", "string"))),
        ),
    ],
)
def test_merging_gives_the_narrowest_type_for_both(old: Type, new: Type, wider: Type | None) -> None:
    assert merge(old, new) == wider


def test_names_are_taken_whatever_their_case_and_reserved_ones_are_never_columns() -> None:
    limits = Limits(reserved=frozenset({"_rescued", "_offset"}))
    merged = merge_fields(
        {"A": "int64"}, {"a": "bool", "b": "bool", "B": "bool", "_OFFSET": "int64", "": "bool"}, limits
    )
    assert merged == {"A": "int64", "b": "bool"}


def test_leaves_of_structs_count_as_columns() -> None:
    limits = Limits(max_columns=3)
    three = StructType((("x", "int64"), ("y", "int64"), ("z", "int64")))
    assert merge_fields({"a": "int64"}, {"s": three, "b": "bool", "c": "bool", "d": "bool"}, limits) == {
        "a": "int64",
        "b": "bool",
        "c": "bool",
    }


def test_the_text_of_a_schema_stays_small_enough_for_etcd() -> None:
    names = {f"{index:0200d}": "bool" for index in range(5000)}
    merged = merge_fields({}, names, Limits(max_columns=10**6))  # type: ignore[arg-type]
    assert 1000 < len(merged) < 2000
