"""Bytes to JSON objects, with a stable code for each way in which a record can't be one.

Role: the parser of the general path. orjson is fast and strict, but keeps only the last of repeated members and turns
integers beyond 64 bits into doubles. `suspects` proves cheaply that neither happened in a block, or finds the records
where it can't, and `parse_exact` reads those again with every member and digit. Neighbours: `columns`, `general`. Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from sluiceway.worker.decode.shapes import Record, Rows
from sluiceway.worker.decode.values import BIG_FLOAT, MAX_DEPTH, Pairs

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Indexes = np.ndarray[Any, np.dtype[np.intp]]

_COLON, _QUOTE, _BACKSLASH, _SPACE = b':"\\ '
MAX_PARTS: Final = 200_000  # members and items in one record
MAX_SURE_BYTES: Final = 2 * MAX_PARTS  # a record of this size can't have more parts: each takes two bytes at least

_TEXT: Final = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
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
        Rejected: it isn't one JSON object in UTF-8 of at most `max_bytes` with at most MAX_PARTS members and items.
    """
    if len(value) > MAX_SURE_BYTES:
        _check_size(value, max_bytes)
    elif len(value) > max_bytes:
        raise _too_large(value, max_bytes)
    try:
        record: object = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _reason(value, error) from None
    if type(record) is not dict:
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
    """What was seen in a parsed value: members of all objects, levels of nesting, whether all numbers are surely exact,
    and whether a name ends in a way that makes its closing quote look like an opening one."""

    members: int = 0
    depth: int = 0
    exact: bool = True
    tricky: bool = False


@dataclass(slots=True)
class Tally:
    """What was seen in many records: how many members in which rows, and the rows with inexact numbers or too deep."""

    members: list[tuple[Rows, Rows]] = field(default_factory=list)  # rows, and members of one object in each
    odd: set[int] = field(default_factory=set)
    tricky: bool = False

    def add(self, other: Tally) -> None:
        self.members += other.members
        self.odd |= other.odd
        self.tricky = self.tricky or other.tricky

    def look_at(self, row: int, value: object) -> None:
        """Adds one member's value, whatever it is."""
        seen = survey(value)
        if seen.members:
            self.members.append((np.array([row]), np.array([seen.members])))
        if not seen.exact or seen.depth >= MAX_DEPTH:
            self.odd.add(row)
        self.tricky = self.tricky or seen.tricky


def suspects(values: Sequence[bytes], tally: Tally) -> set[int]:
    """Rows of the records that must be read again by `parse_exact`: all in which something may be lost, and more."""
    if not values:
        return set()
    text = np.frombuffer(b"\n".join(values), np.uint8)
    windows = range(0, len(text), _WINDOW_BYTES)  # the indexes of a whole text may take eight times its memory
    names = [_names_between(text, start, start + _WINDOW_BYTES, tally.tricky) for start in windows]
    if sum(map(len, names)) == sum(int(counts.sum()) for _, counts in tally.members):
        return tally.odd
    found = np.zeros(len(values), np.int64)
    for rows, counts in tally.members:
        np.add.at(found, rows, counts)
    ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)) + 1)
    for places in names:
        found -= np.bincount(np.searchsorted(ends, places, side="right"), minlength=len(values))
    return tally.odd.union(np.flatnonzero(found).tolist())


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


def _names_between(text: Bytes, start: int, end: int, tricky: bool) -> Indexes:
    """Where in this window members' names may end: every place where one does, and maybe some more.

    A member's name ends with a quote, maybe white space, and a colon. So when the parsed objects have as many members
    as this, none was repeated: a repeated one has the name of a parsed one. Left out are escaped quotes and, unless the
    names are tricky, opening quotes, as in `"address":"::1"`. What is still counted too much is harmless.
    """
    before = np.flatnonzero(text[start:end] == _COLON) + (start - 1)
    before, undecided = _step_back(text, before, before[text[before] <= _SPACE])
    quotes = before[text[before] == _QUOTE]
    if not tricky:
        quotes = quotes[~_MAY_OPEN[text[quotes - 1]]]
    return np.concatenate([_unescaped(text, quotes), undecided])


def _step_back(text: Bytes, found: Indexes, spaces: Indexes) -> tuple[Indexes, Indexes]:
    """The places in `found`, and the places before each run of white space that ends in `spaces`; and the undecided."""
    for _ in range(_MAX_STEPS):
        if not len(spaces):
            break
        spaces = spaces - 1
        found = np.concatenate([found, spaces])
        spaces = spaces[text[spaces] <= _SPACE]
    return found, spaces


def _unescaped(text: Bytes, quotes: Indexes) -> Indexes:
    """The quotes that have an even number of backslashes before them, or too many to count."""
    escaped = text[quotes - 1] == _BACKSLASH
    whole, quotes = [quotes[~escaped]], quotes[escaped]
    for step in range(1, _MAX_STEPS):
        escaped = text[quotes - 1 - step] == _BACKSLASH
        if step % 2 == 0:
            whole.append(quotes[~escaped])
        quotes = quotes[escaped]
        if not len(quotes):
            break
    return np.concatenate([*whole, quotes])


def _pairs(members: list[tuple[str, object]]) -> Record | Pairs:
    record = dict(members)
    return record if len(record) == len(members) else Pairs(members)


def _check_size(value: bytes, max_bytes: int) -> None:
    if len(value) > max_bytes:
        raise _too_large(value, max_bytes)
    if _parts(value) > MAX_PARTS and (parts := _parts(_TEXT.sub(b"", value))) > MAX_PARTS:
        raise Rejected("too_complex", f"{parts} members and items, at most {MAX_PARTS} are allowed")


def _parts(value: bytes) -> int:
    return value.count(b",") + value.count(b"[") + value.count(b"{")  # at most one member or item begins after each


def _too_large(value: bytes, max_bytes: int) -> Rejected:
    return Rejected("too_large", f"{len(value)} bytes, at most {max_bytes} are allowed")


def _reason(value: bytes, error: orjson.JSONDecodeError) -> Rejected:
    if not value.strip(b" \t\r\n"):
        return Rejected("empty", "expected a JSON object, found nothing")
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
