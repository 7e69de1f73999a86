"""Bytes to JSON objects, with a stable code for each way in which a record can't be one.

Role: the parser of the general path. orjson is fast and strict, but keeps only the last of repeated members and turns
integers beyond 64 bits into doubles. `names_at_most` and `survey` prove cheaply that neither happened in a block; where
they can't, `suspects` finds the records and `parse_exact` reads them again with every member and digit. Neighbours:
`columns`, `json_records`. Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson

from sluiceway.worker.decode.values import BIG_FLOAT, MAX_DEPTH, Pairs

Record = dict[str, object]

_COLON, _QUOTE, _BACKSLASH, _SPACE = b':"\\ '
_MEMBER: Final = re.compile(rb'"[ \t\r\n]*:')
_REASONS = (
    ("depth limit", "too_deep"),
    ("infinity", "number_out_of_range"),
    ("surrogate", "lone_surrogate"),
    ("BOM", "malformed"),
)


class Rejected(Exception):
    """The record can't be delivered. `code` is stable; `detail` says what was expected and found."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail[:500]


def parse(value: bytes, max_bytes: int) -> Record:
    """One record as an object.

    Raises:
        Rejected: it isn't one JSON object in UTF-8 of at most `max_bytes`.
    """
    if len(value) > max_bytes:
        raise Rejected("too_large", f"{len(value)} bytes, at most {max_bytes} are allowed")
    if not value.strip(b" \t\r\n"):
        raise Rejected("empty", "expected a JSON object, found nothing")
    try:
        record: object = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _reason(value, error) from None
    if not isinstance(record, dict):
        raise Rejected("not_an_object", f"expected a JSON object, found {_kind(record)}")
    return record


def parse_exact(value: bytes) -> tuple[Record, list[tuple[str, object]]]:
    """A record that `parse` accepts, read with every digit of its integers, and with every repeated member.

    Returns the members that stand once at the top of the record, and those that are repeated there, in order. Objects
    inside of it that repeat a member are Pairs.

    Raises:
        Rejected: it nests more than MAX_DEPTH levels.
    """
    try:
        record = json.loads(value, object_pairs_hook=_pairs)
    except RecursionError:
        raise _too_deep() from None
    if survey(record)[1] > MAX_DEPTH:
        raise _too_deep()
    if type(record) is dict:
        return record, []
    counts = Counter(name for name, _ in record)
    once = {name: member for name, member in record if counts[name] == 1}
    return once, [(name, member) for name, member in record if counts[name] > 1]


def suspects(values: Sequence[bytes], records: Sequence[Record]) -> set[int]:
    """Indexes of the records that must be read again by `parse_exact`: all in which something may be lost, and more."""
    found = set()
    for index, (value, record) in enumerate(zip(values, records, strict=True)):
        members, depth, exact = survey(record)
        if not exact or depth > MAX_DEPTH or len(_MEMBER.findall(value)) != members:
            found.add(index)
    return found


def names_at_most(values: Sequence[bytes]) -> int:
    """How many members all these records have in their text, or some more.

    A member's name ends with a quote, white space and a colon. So when the parsed objects have as many members as
    this, none was repeated. Counted are colons after a quote that no backslash escapes, or after two white spaces.
    """
    text = np.frombuffer(b"\n".join(values), np.uint8)
    colons = np.flatnonzero(text == _COLON)
    before = text[colons - 1]
    after_space = text[colons[before <= _SPACE] - 2]
    spaced = np.count_nonzero((after_space == _QUOTE) | (after_space <= _SPACE))
    return int(spaced) + _unescaped(text, colons[before == _QUOTE] - 1)


def _unescaped(text: np.ndarray[Any, np.dtype[np.uint8]], quotes: np.ndarray[Any, np.dtype[np.intp]]) -> int:
    """How many of the quotes have an even number of backslashes before them."""
    count, left, even = 0, quotes, True
    while len(left):
        left = left - 1
        escaped = text[left] == _BACKSLASH
        count += int(np.count_nonzero(~escaped)) if even else 0
        left, even = left[escaped], not even
    return count


def survey(value: object) -> tuple[int, int, bool]:
    """Members of all objects in a value, levels of nesting, and whether all its numbers are surely exact."""
    members, depth, exact = 0, 0, True
    level: list[Any] = [value]
    while level:
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                members += len(item)
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind is Pairs:
                below.extend(member for _, member in item)
            elif kind is float and not -BIG_FLOAT < item < BIG_FLOAT:
                exact = False
        depth += 1
        level = below
    return members, depth - 1, exact


def _pairs(members: list[tuple[str, object]]) -> Record | Pairs:
    record = dict(members)
    return record if len(record) == len(members) else Pairs(members)


def _reason(value: bytes, error: orjson.JSONDecodeError) -> Rejected:
    try:
        value.decode()
    except UnicodeDecodeError as wrong:
        return Rejected("not_utf8", f"byte {wrong.start} is not UTF-8: {wrong.reason}")
    message = f"{error.msg} at character {error.pos}"
    if re.search(r"NaN|Inf", error.doc[error.pos : error.pos + 3]):
        return Rejected("not_a_number", f"JSON has no NaN and no infinity; found one at character {error.pos}")
    return Rejected(next((code for sign, code in _REASONS if sign in message), "malformed"), message)


def _too_deep() -> Rejected:
    return Rejected("too_deep", f"more than {MAX_DEPTH} levels of nesting")


def _kind(value: object) -> str:
    if value is None or type(value) is bool:
        return "null" if value is None else "a boolean"
    return "a string" if type(value) is str else "an array" if type(value) is list else "a number"
