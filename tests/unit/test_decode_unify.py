"""Blocks of several schema versions as one table."""

from __future__ import annotations

import pytest

from decoding import decode, new_decoder, rows_of
from sluiceway.common.records import SchemaRecord
from sluiceway.worker.decode.restore import restore
from sluiceway.worker.decode.unify import unify

LIMITS = new_decoder().limits


def schema(**fields: str) -> SchemaRecord:
    return SchemaRecord(version=2, fields=fields)


def test_blocks_of_the_newest_schema_are_not_copied() -> None:
    block, known = decode([b'{"a":1}'])
    assert unify([block.table], known, LIMITS).equals(block.table)


def test_missing_columns_are_null_and_numbers_become_their_text() -> None:
    old, _ = decode([b'{"a":1,"n":2}', b'{"a":null}'])
    new, _ = decode([b'{"a":"x","b":true,"n":2.5}'], schema(a="string", n="float64", b="bool"), start=2)
    table = unify([old.table, new.table], schema(a="string", n="float64", b="bool"), LIMITS)
    assert table.select(["a", "n", "b", "_offset"]).to_pylist() == [
        {"a": "1", "n": 2.0, "b": None, "_offset": 0},
        {"a": None, "n": None, "b": None, "_offset": 1},
        {"a": "x", "n": 2.5, "b": True, "_offset": 2},
    ]


def test_the_text_of_a_number_is_the_same_on_every_way_to_a_string_column() -> None:
    values = [b'{"a":%s}' % text for text in (b"5", b"5.0", b"-0.0", b"1e15", b"1e17", b"0.1", b"9007199254740992")]
    target = schema(a="string")
    direct, _ = decode(values, target)
    by_float, _ = decode(values, schema(a="float64"))
    assert unify([by_float.table], target, LIMITS)["a"].to_pylist() == direct.table["a"].to_pylist()


def test_an_integer_that_the_wider_column_cannot_hold_is_rescued_beside_what_was() -> None:
    values = [b'{"a":9007199254740993,"_key":1,"_key":2}', b'{"a":9007199254740993}', b'{"a":3}']
    old, _ = decode(values, schema(a="int64"))
    table = unify([old.table], schema(a="float64"), LIMITS)
    assert table["a"].to_pylist() == [None, None, 3.0]
    assert table["_rescued"].to_pylist() == [
        '{"_key":1,"_key":2,"a":9007199254740993}',
        '{"a":9007199254740993}',
        None,
    ]


def test_structs_and_lists_widen_inside() -> None:
    old, _ = decode([b'{"s":{"x":1},"l":[{"y":1},null,{}]}', b'{"s":{}}', b"{}"])
    table = unify(
        [old.table], schema(s='struct<"x":string,"z":list<bool>>', l='list<struct<"y":float64,"w":bool>>'), LIMITS
    )
    assert [restore(row) for row in table.to_pylist()] == [
        {"s": {"x": "1", "z": None}, "l": [{"y": 1.0, "w": None}, None, {"y": None, "w": None}]},
        {"s": {"x": None, "z": None}},
        {},
    ]
    assert rows_of(old)[2] == {}


def test_a_column_that_the_schema_lacks_is_never_dropped_silently() -> None:
    newer, _ = decode([b'{"a":1,"b":2}'])
    with pytest.raises(ValueError, match=r"no columns \['b'\]"):
        unify([newer.table], schema(a="int64"), LIMITS)
