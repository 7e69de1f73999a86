"""Decoding single records and blocks: rows, rescued members, dead letters."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from decoding import EMPTY, PARTITION, assert_delivered, block_of, decode, general_decoder, new_decoder, rows_of
from sluiceway.common.records import SchemaRecord
from sluiceway.common.specs.models import Origin
from sluiceway.worker.batches import DecodedBlock
from sluiceway.worker.decode import fast
from sluiceway.worker.decode.json_records import Widening
from sluiceway.worker.decode.layout import layout_of

GOOD = [b'{"a":%d}' % index for index in range(20)]


def rescued_of(block: DecodedBlock) -> list[str | None]:
    texts: list[str | None] = block.table["_rescued"].to_pylist()
    return texts


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"{", "malformed"),
        (b'{"a":1,}', "malformed"),
        (b'{"a":01}', "malformed"),
        (b'{"a":1}{"a":2}', "malformed"),
        (b'{"a":1}\n{"a":2}', "malformed"),
        (b'{"a":"x\ny"}', "malformed"),
        (b'\xef\xbb\xbf{"a":1}', "malformed"),
        (b"\x00\x01\x02\x03", "malformed"),
        (b'{"a":1}\x00', "malformed"),
        (b'{"a":"\xff"}', "not_utf8"),
        (b'{"a":"\xed\xa0\x80"}', "not_utf8"),
        (b'{"a":"\\ud800"}', "lone_surrogate"),
        (b'{"a":NaN}', "not_a_number"),
        (b'{"a":[1,-Infinity]}', "not_a_number"),
        (b'{"a":1e400}', "number_out_of_range"),
        (b'{"a":' + b"9" * 5000 + b"}", "number_out_of_range"),
        (b"[1]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"17", "not_an_object"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 50_000, "too_deep"),
        (b'{"a":' + b"[" * 150_000 + b"]" * 150_000 + b"}", "too_deep"),
        (b"[" * 2_000_000, "too_complex"),
        (b'{"a":' * 2_000_000, "too_complex"),
        (b'{"a":[' + b"{}," * 200_000 + b"{}]}", "too_complex"),
        (b'{"a":[' + b"1," * 200_000 + b"1]}", "too_complex"),
        (b'{"a":"' + b"x" * 500_000 + b'","b":[' + b"[1]," * 200_000 + b"1]}", "too_complex"),
        (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "too_deep"),
        (b'{"new":' * 300 + b"1" + b"}" * 300, "too_deep"),
    ],
)
@pytest.mark.parametrize("known", [{}, {"a": "int64"}, {"a": "float64"}, {"a": "string"}, {"a": "list<float64>"}])
def test_a_record_that_cannot_be_delivered_is_a_dead_letter_and_its_neighbours_are_rows(
    value: bytes, code: str, known: dict[str, str]
) -> None:
    values = [*GOOD[:10], value, *GOOD[10:]]
    block, _ = decode(values, SchemaRecord(version=1, fields=known))
    assert [(dead.offset, dead.error, dead.value, dead.key) for dead in block.dead] == [(10, code, value, b"k10\xff")]
    assert 0 < len(block.dead[0].detail) <= 500
    assert [row["a"] for row in rows_of(block)] in ([*range(20)], [str(number) for number in range(20)])


def test_an_oversized_record_is_a_dead_letter_before_any_parse() -> None:
    large = b'{"a":"' + b"x" * 50 * 2**20 + b'"}'
    for known in ({}, {"a": "int64"}):
        block, _ = decode([*GOOD, large], SchemaRecord(version=1, fields=known))
        assert [(dead.error, dead.value) for dead in block.dead] == [("too_large", large)]
        assert block.table.num_rows == 20


def test_a_record_as_large_as_allowed_is_delivered() -> None:
    large = b'{"a":"' + b"x" * 1000 + b'"}'
    assert_delivered([large], decode([large], decoder=new_decoder(max_record_bytes=len(large)))[0])
    assert decode([large], decoder=new_decoder(max_record_bytes=len(large) - 1))[0].dead[0].error == "too_large"


def test_two_broken_records_that_join_into_whole_ones_are_both_dead() -> None:
    schema = SchemaRecord(version=1, fields={"a": "int64", "b": "string"})
    for values in (
        [b'{"a":1}{"a":2}', b'{"b":{', b"}}"],
        [b'{"b":"x}', b'{y"}', b'{"a":1}{"a":2}'],
        [b'{"a":', b"1}", b"{}{}"],
        [b'{"a":1}{"a":2}{"a":3}', b'{"a":{}', b"{}}"],
    ):
        block, _ = decode(values, schema)
        assert len(block.dead) == 3
        assert_delivered(values, block)


def test_a_tombstone_is_a_row_of_nulls() -> None:
    for decoder in (new_decoder(), general_decoder()):
        block, _ = decode([b'{"a":1}', None, b'{"a":2}'], SchemaRecord(version=1, fields={"a": "int64"}), decoder)
        assert block.table["a"].to_pylist() == [1, None, 2]
        assert block.table["_offset"].to_pylist() == [0, 1, 2]


def test_repeated_members_are_rescued_with_every_value() -> None:
    values = [b'{"a":1,"b":2,"a":3}', b'{"a":1,"o":{"x":1,"x" \n:2}}', b'{"a\\\\":1,"a\\\\":2,"t":"\\":"}', b'{"a":5}']
    block, _ = decode(values)
    assert rescued_of(block) == ['{"a":1,"a":3}', '{"o":{"x":1,"x":2}}', '{"a\\\\":1,"a\\\\":2}', None]
    assert block.rescued == 3
    assert_delivered(values, block)


def test_text_that_looks_like_members_is_only_text() -> None:
    values = [
        b'{"a":"x\\":1, \\"a\\": 2","b":":"}',
        b'{"a":" : ","b":"\\\\\\":"}',
        b'{"a":"::1","b" : "::"}',
        b'{ "a" : "1" , "b"\n\t: "2" }',
    ]
    block, schema = decode(values)
    assert rescued_of(block) == [None] * 4
    assert schema.fields == {"a": "string", "b": "string"}
    assert_delivered(values, block)


def test_integers_beyond_64_bits_are_rescued_with_every_digit() -> None:
    values = [
        b'{"a":1,"n":123456789012345678901234567890}',
        b'{"a":2,"n":18446744073709551615}',
        b'{"a":[{"n":1e300}]}',
    ]
    block, _ = decode(values)
    assert rescued_of(block)[:2] == ['{"n":123456789012345678901234567890}', '{"n":18446744073709551615}']
    assert_delivered(values, block)


def test_an_integer_that_a_double_cannot_hold_is_rescued() -> None:
    values = [b'{"a":1.5}', b'{"a":9007199254740993}', b'{"a":9007199254740992}']
    for decoder in (new_decoder(), general_decoder()):
        block, schema = decode(values, SchemaRecord(version=1, fields={"a": "float64"}), decoder)
        assert schema.fields == {"a": "float64"}
        assert block.table["a"].to_pylist() == [1.5, None, 9007199254740992.0]
        assert rescued_of(block) == [None, '{"a":9007199254740993}', None]


def test_types_widen_from_int_to_float_to_string() -> None:
    block, schema = decode([b'{"a":1}'])
    assert (schema.fields, block.table["a"].to_pylist()) == ({"a": "int64"}, [1])
    block, schema = decode([b'{"a":2}', b'{"a":2.5}'], schema)
    assert (schema.fields, block.table["a"].to_pylist()) == ({"a": "float64"}, [2.0, 2.5])
    block, schema = decode([b'{"a":3}', b'{"a":"x"}', b'{"a":1e100}', b'{"a":-0.25}'], schema)
    assert (schema.fields, block.table["a"].to_pylist()) == ({"a": "string"}, ["3", "x", "1e+100", "-0.25"])


def test_a_value_of_another_kind_is_rescued() -> None:
    known = SchemaRecord(version=1, fields={"a": "string"})
    values = [b'{"a":true}', b'{"a":{"x":1}}', b'{"a":[1]}', b'{"a":null}', b'{"a":"x"}']
    block, schema = decode(values, known)
    assert schema.fields == known.fields
    assert rescued_of(block) == ['{"a":true}', '{"a":{"x":1}}', '{"a":[1]}', None, None]
    assert_delivered(values, block)


@pytest.mark.parametrize(
    "value", [b'{"a":[]}', b'{"a":{}}', b'{"a":[null]}', b'{"a":[[],[]]}', b'{"a":{"b":{},"c":1}}']
)
def test_values_without_a_type_survive(value: bytes) -> None:
    block, _ = decode([value, b'{"b":1}'])
    assert_delivered([value, b'{"b":1}'], block)
    assert block.rescued == 1


def test_fields_that_readers_could_mistake_for_another_are_rescued() -> None:
    names = ["User", "user", "_offset", "_KEY", "_rescued", "", "x" * 300, "a\0b"]
    value = json.dumps({name: index for index, name in enumerate(names)}).encode()
    block, schema = decode([value])
    assert schema.fields == {"User": "int64"}
    assert json.loads(rescued_of(block)[0] or "") == {name: index for index, name in enumerate(names) if index}


def test_dates_stay_strings() -> None:
    values = [b'{"a":"2020-01-01T00:00:00Z","b":"2020-01-01"}'] * 3
    for decoder in (new_decoder(), general_decoder()):
        block, schema = decode(values, decoder=decoder)
        assert schema.fields == {"a": "string", "b": "string"}
        assert_delivered(values, block)


def test_no_more_columns_than_allowed_and_the_rest_is_rescued() -> None:
    values = [json.dumps({f"f{index}": index for index in range(10)}).encode()]
    block, schema = decode(values, decoder=new_decoder(max_columns=4))
    assert list(schema.fields) == ["f0", "f1", "f2", "f3"]
    assert_delivered(values, block)


def test_a_record_with_a_hundred_thousand_fields_costs_no_column_each_and_is_rescued() -> None:
    members = {f"f{index}": index for index in range(100_000)}
    values = [*GOOD, json.dumps(members).encode()]
    block, schema = decode(values, decoder=new_decoder(max_columns=50))
    assert len(schema.fields) == 50
    assert_delivered(values, block)


def test_a_text_that_spans_windows_is_searched_as_a_whole() -> None:
    for padding in range(2**20 - 24, 2**20 + 4):
        values = [b'{"p":"%s","a" :1,"a" :2}' % (b"x" * padding)]
        assert rescued_of(decode(values)[0]) == ['{"a":1,"a":2}']


def test_columns_are_the_fields_then_rescued_then_the_origin() -> None:
    block, _ = decode([b'{"b":1,"a":"x"}', b'{"a":1}', b"{"], start=7)
    table = block.table
    assert table.column_names == [
        "b",
        "a",
        "_rescued",
        "_topic",
        "_epoch",
        "_partition",
        "_offset",
        "_timestamp",
        "_key",
    ]
    assert table.schema.types[3:] == [
        pa.dictionary(pa.int32(), pa.string()),
        pa.int32(),
        pa.int32(),
        pa.int64(),
        pa.timestamp("ms", tz="UTC"),
        pa.binary(),
    ]
    last = table.to_pylist()[-1]
    assert (last["_topic"], last["_epoch"], last["_partition"], last["_offset"]) == ("events", 0, 3, 8)
    assert (last["_timestamp"].timestamp(), last["_key"]) == (1.001, b"k1\xff")
    assert (block.start_offset, block.next_offset, block.partition) == (7, 10, PARTITION)


def test_origin_columns_can_be_renamed_and_left_out() -> None:
    origin = Origin(topic="", epoch="", partition="", key="", offset="o", timestamp="")
    block, _ = decode([b'{"O":1,"_offset":2}'], decoder=new_decoder(origin=origin))
    assert block.table.to_pylist() == [{"_offset": 2, "_rescued": '{"O":1}', "o": 0}]


def test_a_schema_widened_otherwise_by_another_worker_is_decoded_with() -> None:
    decoder, values = new_decoder(), [b'{"a":1,"b":[1]}', b'{"a":{"x":1}}']
    wish = decoder.decode(block_of(values), EMPTY)
    assert isinstance(wish, Widening)
    block, schema = decode(values, SchemaRecord(version=9, fields={"a": "bool", "c": "int64"}), decoder)
    assert schema.fields == {"a": "bool", "c": "int64", "b": "list<int64>"}
    assert_delivered(values, block)


def test_an_empty_block_is_an_empty_table() -> None:
    block, _ = decode([], SchemaRecord(version=1, fields={"a": "int64"}))
    assert (block.table.num_rows, block.table.column_names[:2]) == (0, ["a", "_rescued"])


def test_commas_and_brackets_in_a_large_text_are_not_members() -> None:
    value = json.dumps({"a": ',[{"\\' * 200_000, "b": [1, 2]}).encode()
    for known in ({}, {"a": "string", "b": "list<int64>"}):
        assert_delivered([*GOOD, value], decode([*GOOD, value], SchemaRecord(version=1, fields=known))[0])


def test_a_large_text_without_an_end_is_refused_in_little_time() -> None:
    for value in (b'{"a":"' + b'\\"' * 1_000_000, b'{"a":"' + b",[" * 300_000 + b"\\"):
        assert decode([value])[0].dead[0].error == "malformed"


def test_bad_records_are_left_out_of_the_fast_path_and_the_others_are_not() -> None:
    layout = layout_of((("a", "int64"),), new_decoder().limits)
    good = [b'{"a":%d}' % index for index in range(3000)]
    for bad in (b"{", b"", b'{"a":"x"}', b'{"a":1,"a":2}', b'{"a":"\xff"}', b'{"a":}', b"[1]"):
        for places in ([0], [2999], [1500], [7, 700, 1900, 2800]):
            values = [bad if index in places else value for index, value in enumerate(good)]
            assert fast.read(values, layout, 2**24).others == places


def test_cpu_time_is_reported() -> None:
    assert decode([b'{"a":"%d"}' % index for index in range(5000)])[0].cpu_s > 0
