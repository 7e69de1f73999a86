"""Whatever comes in: nothing is lost, both paths agree, schemas only widen."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import EMPTY, assert_delivered, block_of, decode, general_decoder, new_decoder, schema_of
from sluiceway.common.records import SchemaRecord
from sluiceway.worker.batches import DecodedBlock
from sluiceway.worker.decode import fast
from sluiceway.worker.decode.json_records import Widening
from sluiceway.worker.decode.layout import layout_of
from sluiceway.worker.decode.restore import restore, same
from sluiceway.worker.decode.schema import (
    Fields,
    Limits,
    ListType,
    StructType,
    Type,
    covers,
    from_text,
    merge_fields,
    to_text,
)
from sluiceway.worker.decode.unify import unify
from sluiceway.worker.decode.values import number_text, number_texts

NAMES = st.sampled_from(["a", "b", "A", "user", "_offset", "_rescued", "é", '"q":', "back\\", "x:", "y ", "", "n\0l"])
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(["::1", 'x":1,"a":2', " : ", "2020-01-01T00:00:00Z", "NaN", "5", "true", "}{", '\\":', "\\"]),
)
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.integers(-(2**80), 2**80),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**63 - 1, -(2**63), 2**64]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
RECORDS = st.dictionaries(NAMES, VALUES, max_size=5)


@st.composite
def record_texts(draw: st.DrawFn) -> bytes:
    """A record's text in different layouts, now and then with a repeated member."""
    record = draw(RECORDS)
    style: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"separators": (",", ":")},
                {"separators": (" , ", " \t: ")},
                {"indent": 1},
                {"separators": (",", ":"), "ensure_ascii": False},
            ]
        )
    )
    text = json.dumps(record, **style)
    if record and draw(st.integers(0, 9)) == 0:
        name = draw(st.sampled_from(sorted(record)))
        text = f"{text.rstrip()[:-1]},{json.dumps(name)}:{json.dumps(draw(SCALARS))}}}"
    return draw(st.sampled_from([b"", b" ", b"\n"])) + text.encode()


STREAMS = st.lists(st.one_of(record_texts(), st.just(None)), max_size=12)
JUNK = st.one_of(
    st.binary(max_size=12),
    st.text(st.sampled_from(list('{}[]",:a1 \n\\tnN')), max_size=14).map(str.encode),
    st.sampled_from(
        [b'{"a":1}{"a":2}', b'{"a":{', b'{"a":"x}', b'{y"}', b'{"a":NaN}', b'{"a":"\xff"}', b'{"a":"\\ud800"}']
    ),
)
TYPES: st.SearchStrategy[Type] = st.recursive(
    st.sampled_from(["bool", "int64", "float64", "string"]),
    lambda inner: st.one_of(
        inner.map(ListType),
        st.dictionaries(NAMES.filter(bool), inner, min_size=1, max_size=3).map(lambda d: StructType(tuple(d.items()))),
    ),
    max_leaves=4,
)
FIELDS = st.dictionaries(NAMES, TYPES, max_size=4)
LIMITS = Limits(max_columns=6)


@given(STREAMS)
@settings(max_examples=300, deadline=None)
def test_every_record_comes_back_from_its_row(values: list[bytes | None]) -> None:
    block, _ = decode(values)
    assert not block.dead
    assert_delivered(values, block)


@given(st.lists(st.one_of(record_texts(), JUNK), max_size=8), FIELDS)
@settings(max_examples=300, deadline=None)
def test_bad_records_among_good_ones_are_dead_letters_and_nothing_is_lost(values: list[bytes], fields: Fields) -> None:
    block, schema = decode(values, schema_of(merge_fields({}, fields, new_decoder().limits)))
    assert_delivered(values, block)
    assert decode(values, schema, general_decoder())[0].table.equals(block.table)


def repeated_in(text: str | bytes) -> list[str]:
    """Every object in a text that repeats a member, at whatever depth, as text."""
    found: list[str] = []

    def note(members: list[tuple[str, object]]) -> object:
        if len(dict(members)) < len(members):
            found.append(
                json.dumps([member for member in members if [name for name, _ in members].count(member[0]) > 1])
            )
        return [[name, value] for name, value in members]

    json.loads(text, object_pairs_hook=note)
    return sorted(found)


@st.composite
def texts_with_repeats(draw: st.DrawFn, depth: int = 0) -> str:
    """An object's text whose few names are often repeated, with white space in odd places."""
    space = st.sampled_from(["", "", " ", "\n", "  "])
    name = st.sampled_from(["a", "b", "x:", "q[", "\\", '"', "", " ", '":', "\\:"])
    scalar = st.one_of(st.integers(0, 3), st.sampled_from(["::", ":", '":', '\\":', "", " :"])).map(json.dumps)
    value = scalar if depth == 2 else st.one_of(scalar, scalar, texts_with_repeats(depth + 1))
    members = [
        f"{draw(space)}{json.dumps(draw(name))}{draw(space)}:{draw(space)}{draw(value)}"
        for _ in range(draw(st.integers(0, 4)))
    ]
    return "{" + ",".join(members) + "}"


@given(st.lists(texts_with_repeats(), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_a_repeated_member_is_never_lost(texts: list[str]) -> None:
    values = [text.encode() for text in texts]
    block, _ = decode(values)
    assert_delivered(values, block)
    for text, rescued in zip(texts, block.table["_rescued"].to_pylist(), strict=True):
        assert repeated_in(text) == repeated_in(rescued or "{}")


@given(STREAMS, st.lists(JUNK, max_size=1))
@settings(max_examples=300, deadline=None)
def test_both_paths_give_the_same(values: list[bytes | None], junk: list[bytes]) -> None:
    _, schema = decode(values)
    mixed = new_decoder().decode(block_of([*values, *junk]), schema)
    general = general_decoder().decode(block_of([*values, *junk]), schema)
    if isinstance(mixed, Widening) or isinstance(general, Widening):
        assert isinstance(mixed, Widening)
        assert isinstance(general, Widening)
        assert mixed.fields == general.fields
    else:
        assert mixed.table.equals(general.table)
        assert mixed.dead == general.dead


CONFORMING = st.fixed_dictionaries(
    {},
    optional={
        "i": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "f": st.one_of(st.floats(-(2.0**53), 2.0**53, exclude_min=True, exclude_max=True), st.integers(-5, 5)),
        "s": TEXTS,
        "b": st.booleans(),
        "l": st.lists(st.one_of(st.none(), TEXTS), max_size=3),
        "o": st.fixed_dictionaries({}, optional={"x": st.integers(-9, 9), "l": st.lists(st.floats(-1, 1), max_size=2)}),
        "os": st.lists(st.fixed_dictionaries({}, optional={"y": TEXTS}), max_size=2),
    },
)
KNOWN = SchemaRecord(
    version=1,
    fields={
        "i": "int64",
        "f": "float64",
        "s": "string",
        "b": "bool",
        "l": "list<string>",
        "o": 'struct<"x":int64,"l":list<float64>>',
        "os": 'list<struct<"y":string>>',
    },
)


@given(
    st.lists(
        st.one_of(CONFORMING.map(lambda record: json.dumps(record).encode()), st.just(None)), min_size=1, max_size=8
    )
)
@settings(max_examples=300, deadline=None)
def test_records_that_fit_take_the_fast_path_and_give_what_the_general_one_gives(values: list[bytes | None]) -> None:
    decoder = new_decoder()
    quick, general = decoder.decode(block_of(values), KNOWN), general_decoder().decode(block_of(values), KNOWN)
    assert isinstance(quick, DecodedBlock)
    assert isinstance(general, DecodedBlock)
    assert not fast.read(values, layout_of(tuple(KNOWN.fields.items()), decoder.limits), 2**24).others
    assert quick.table.equals(general.table)
    assert_delivered(values, quick)


ODD = st.one_of(
    record_texts(),
    JUNK,
    st.sampled_from([b'{"i":"5"}', b'{"s":5}', b'{"f":9007199254740993}', b'{"o":{"z":1}}', b'{"new":1,"i":7,"i":8}']),
)


@given(
    st.lists(CONFORMING, min_size=1, max_size=4),
    st.dictionaries(st.integers(0, 2999), ODD, max_size=12),
    st.integers(1, 3000),
)
@settings(max_examples=60, deadline=None)
def test_odd_records_anywhere_among_many_good_ones_change_no_result(
    good: list[dict[str, object]], odd: dict[int, bytes], count: int
) -> None:
    texts = [json.dumps(record).encode() for record in good]
    values = [odd.get(index, texts[index % len(texts)]) for index in range(count)]
    mixed, general = new_decoder().decode(block_of(values), KNOWN), general_decoder().decode(block_of(values), KNOWN)
    if isinstance(mixed, Widening) or isinstance(general, Widening):
        assert isinstance(mixed, Widening)
        assert isinstance(general, Widening)
        assert list(mixed.fields.items()) == list(general.fields.items())
        mixed = new_decoder().decode(block_of(values), schema_of(general.fields))
        general = general_decoder().decode(block_of(values), schema_of(general.fields))
    assert isinstance(mixed, DecodedBlock)
    assert isinstance(general, DecodedBlock)
    assert mixed.table.equals(general.table)
    assert mixed.dead == general.dead
    assert_delivered(values, mixed)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_many_numbers_have_the_texts_that_each_one_has(numbers: list[float]) -> None:
    assert number_texts(numbers) == [number_text(number) for number in numbers]


@given(STREAMS, st.lists(st.integers(0, 12), max_size=3), st.lists(FIELDS, max_size=3))
@settings(max_examples=200, deadline=None)
def test_however_a_stream_is_split_and_whoever_widens_meanwhile_nothing_is_lost(
    values: list[bytes | None], cuts: list[int], others: list[Fields]
) -> None:
    decoder, schema, blocks = new_decoder(max_columns=6), EMPTY, []
    bounds = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    for start, end in pairwise(bounds):
        rounds = 0
        while isinstance(wish := decoder.decode(block_of(values[start:end], start), schema), Widening):
            known = {name: from_text(text) for name, text in schema.fields.items()}
            if others:  # another worker is faster
                known = merge_fields(known, others.pop(), decoder.limits)
            schema = schema_of(merge_fields(known, wish.fields, decoder.limits), schema.version + 1)
            rounds += 1
            assert rounds < 20
        assert_delivered(values[start:end], wish, start)
        blocks.append(wish)
    if blocks:
        table = unify([block.table for block in blocks], schema, decoder.limits)
        for value, row in zip(values, table.to_pylist(), strict=True):
            assert same({} if value is None else json.loads(value), restore(row))


@given(STREAMS, FIELDS)
@settings(max_examples=200, deadline=None)
def test_unifying_loses_nothing_whatever_the_schema_widened_to(values: list[bytes | None], fields: Fields) -> None:
    limits = new_decoder().limits
    block, schema = decode(values)
    known = {name: from_text(text) for name, text in schema.fields.items()}
    table = unify([block.table], schema_of(merge_fields(known, fields, limits)), limits)
    for value, row in zip(values, table.to_pylist(), strict=True):
        assert same({} if value is None else json.loads(value), restore(row))


@given(TYPES)
def test_the_text_of_a_type_is_the_type(kind: Type) -> None:
    assert from_text(to_text(kind)) == kind


@given(FIELDS, FIELDS)
def test_merging_keeps_every_field_only_widens_and_is_idempotent(old: Fields, new: Fields) -> None:
    start = merge_fields({}, old, LIMITS)
    merged = merge_fields(start, new, LIMITS)
    assert start.keys() <= merged.keys()
    assert all(covers(merged[name], kind) for name, kind in start.items())
    assert merge_fields(merged, new, LIMITS) == merge_fields(merge_fields(merged, new, LIMITS), new, LIMITS)
    assert merge_fields(merged, merged, LIMITS) == merged


@given(*[st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["int64", "float64", "string"]))] * 2)
def test_merging_commutes_where_types_agree(one: Fields, other: Fields) -> None:
    assert merge_fields(one, other, Limits()) == merge_fields(other, one, Limits())
