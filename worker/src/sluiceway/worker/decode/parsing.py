"""Bytes to JSON objects, with a stable code for each way in which a record can't be one.

Role: the parser of the general path. orjson is fast and strict, but keeps only the last of repeated members and turns
integers beyond 64 bits into doubles. `Seen.surely_whole` proves cheaply that neither happened in a block; where
it can't, `suspects` finds the records and `parse_exact` reads them again with every member and digit. Neighbours:
`columns`, `json_records`. Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from sluiceway.worker.decode.values import BIG_FLOAT, MAX_DEPTH, Pairs

Record = dict[str, object]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Indexes = np.ndarray[Any, np.dtype[np.intp]]

_COLON, _QUOTE, _BACKSLASH, _SPACE = b':"\\ '
_MAX_STEPS: Final = 64
_WINDOW_BYTES: Final = 2**20
_BEFORE_OPENING: Final = frozenset(":,[{ ")
_MAY_OPEN = np.isin(np.arange(256), [ord(sign) for sign in _BEFORE_OPENING])
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

    def bare(self) -> Rejected:
        """The same without traceback and context, which would keep the record's bytes until cycles are collected."""
        return Rejected(self.code, self.detail)


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
    if survey(record).depth > MAX_DEPTH:
        raise _too_deep()
    if type(record) is dict:
        return record, []
    counts = Counter(name for name, _ in record)
    once = {name: member for name, member in record if counts[name] == 1}
    return once, [(name, member) for name, member in record if counts[name] > 1]


@dataclass(slots=True)
class Seen:
    """What was seen in parsed values: members of all objects, levels of nesting, whether all numbers are surely exact,
    and whether a name ends in a way that makes its closing quote look like an opening one."""

    members: int = 0
    depth: int = 0
    exact: bool = True
    tricky: bool = False

    def add(self, other: Seen) -> None:
        self.members += other.members
        self.depth = max(self.depth, other.depth)
        self.exact = self.exact and other.exact
        self.tricky = self.tricky or other.tricky

    def surely_whole(self, values: Sequence[bytes]) -> bool:
        """Whether no member was repeated, no digit lost, and nothing nests too deeply, in records with these texts."""
        return self.exact and self.depth <= MAX_DEPTH and _names_at_most(values, self.tricky) == self.members


def suspects(values: Sequence[bytes], records: Sequence[Record]) -> set[int]:
    """Indexes of the records that must be read again by `parse_exact`: all in which something may be lost, and more."""
    pairs = enumerate(zip(values, records, strict=True))
    return {index for index, (value, record) in pairs if not survey(record).surely_whole([value])}


def survey(value: object) -> Seen:
    """What there is in a value."""
    seen = Seen()
    level: list[Any] = [value]
    while level:
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                seen.members += len(item)
                seen.tricky = seen.tricky or is_tricky(item)
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind is Pairs:
                below.extend(member for _, member in item)
            elif kind is float and not -BIG_FLOAT < item < BIG_FLOAT:
                seen.exact = False
        if below:
            seen.depth += 1
        level = below
    return seen


def is_tricky(names: Iterable[str]) -> bool:
    """Whether a name ends with a sign that else only stands before an opening quote."""
    return any(name[-1:] in _BEFORE_OPENING for name in names)


def _names_at_most(values: Sequence[bytes], tricky: bool) -> int:
    """How many members all these records have in their text, or some more.

    A member's name ends with a quote, maybe white space, and a colon. So when the parsed objects have as many members
    as this, none was repeated: a repeated one has the name of a parsed one. Left out are escaped quotes and, unless the
    names are tricky, opening quotes, as in `"address":"::1"`. What is still counted too much is harmless.
    """
    text = np.frombuffer(b"\n".join(values), np.uint8)
    windows = range(0, len(text), _WINDOW_BYTES)  # the indexes of a whole text may take eight times its memory
    return sum(_names_between(text, start, start + _WINDOW_BYTES, tricky) for start in windows)


def _names_between(text: Bytes, start: int, end: int, tricky: bool) -> int:
    before = np.flatnonzero(text[start:end] == _COLON) + (start - 1)
    before, undecided = _step_back(text, before, before[text[before] <= _SPACE])
    quotes = before[text[before] == _QUOTE]
    if not tricky:
        quotes = quotes[~_MAY_OPEN[text[quotes - 1]]]
    return _unescaped(text, quotes) + undecided


def _step_back(text: Bytes, found: Indexes, spaces: Indexes) -> tuple[Indexes, int]:
    """The places in `found`, and the places before each run of white space that ends in `spaces`."""
    for _ in range(_MAX_STEPS):
        if not len(spaces):
            break
        spaces = spaces - 1
        found = np.concatenate([found, spaces])
        spaces = spaces[text[spaces] <= _SPACE]
    return found, len(spaces)


def _unescaped(text: Bytes, quotes: Indexes) -> int:
    """How many of the quotes have an even number of backslashes before them, or too many to count."""
    count, left = 0, quotes
    for step in range(_MAX_STEPS):
        left = left - 1
        escaped = text[left] == _BACKSLASH
        if step % 2 == 0:
            count += int(np.count_nonzero(~escaped))
        left = left[escaped]
        if not len(left):
            break
    return count + len(left)


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
