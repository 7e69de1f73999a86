"""YAML text as plain values that know their line and column.

Reads events and builds the tree itself, so that hostile text costs no more than its limits: size, nodes (aliases count
as what they expand to) and depth. Tags are refused, a key given twice is a problem, scalars follow YAML 1.2's core
schema (`no` and `on` are text). `documents` gives the tree its meaning. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import yaml

MAX_BYTES: Final = 4 * 2**20
MAX_NODES: Final = 200_000
MAX_DEPTH: Final = 32

Scalar = str | int | float | bool | None

_WORDS: Final[Mapping[str, Scalar]] = {"": None, "~": None} | {
    spelling: value
    for word, value in {"null": None, "true": True, "false": False}.items()
    for spelling in (word, word.capitalize(), word.upper())
}
_INT: Final = re.compile(r"[-+]?[0-9]{1,18}|0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,5})?")
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands; line and column count from 1."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where, in which field (empty: the whole), and what was expected and found."""

    place: Place
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path}: {self.text}" if self.path else f"{self.place}: {self.text}"


@dataclass(slots=True, kw_only=True)
class Node:
    """A value and its place. `keys` has the places of a mapping's keys."""

    place: Place
    value: Scalar | list[Node] | dict[str, Node]
    keys: dict[str, Place] = field(default_factory=dict)
    size: int = 1
    depth: int = 1

    def plain(self) -> Any:
        """The value without places: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        """The value under a key or index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(step))
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            return self.value[step]
        return None


class _Stop(Exception):
    """The rest of the text can't be read."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read(source: str, text: bytes) -> tuple[list[Node], list[Problem]]:
    """The documents in `text` that could be read, and everything wrong with it. Never raises.

    Args:
        source: the file's name, for places.
        text: UTF-8.
    """
    builder = _Builder(source)
    try:
        for event in _events(source, text):
            builder.take(event)
    except _Stop as stop:
        builder.problems.append(stop.problem)
    return builder.documents, builder.problems


def _events(source: str, text: bytes) -> Iterator[Any]:
    start = Place(source, 1, 1)
    if len(text) > MAX_BYTES:
        raise _Stop(Problem(start, "", f"expected at most {MAX_BYTES:,} bytes, found {len(text):,}"))
    try:
        yield from yaml.parse(text.decode("utf-8-sig"), Loader=_LOADER)
    except UnicodeDecodeError as error:
        before = text[: error.start]
        place = Place(source, before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1)
        raise _Stop(Problem(place, "", f"expected UTF-8, found the byte 0x{text[error.start]:02x}")) from error
    except yaml.MarkedYAMLError as error:
        raise _Stop(Problem(_error_place(source, error), "", f"not YAML: {_told(error)}")) from error
    except yaml.YAMLError as error:
        raise _Stop(Problem(start, "", f"not YAML: {' '.join(str(error).split())}")) from error


def _error_place(source: str, error: yaml.MarkedYAMLError) -> Place:
    mark = error.problem_mark or error.context_mark
    return Place(source, mark.line + 1, mark.column + 1) if mark else Place(source, 1, 1)


def _told(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.problem, error.context) if part)


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been seen."""

    node: Node
    anchor: str | None
    key: tuple[str, Place] | None = None  # the key that waits for its value


class _Builder:
    """Builds trees from events without recursion."""

    def __init__(self, source: str) -> None:
        self.documents: list[Node] = []
        self.problems: list[Problem] = []
        self._source = source
        self._nodes = 0
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._anchors = {}
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._start(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            closed = self._open.pop()
            self._finish(closed.node, closed.anchor)

    def _place(self, event: Any) -> Place:
        return Place(self._source, event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            self.problems.append(Problem(self._place(event), "", f"expected no tag, found {_short(event.tag)}"))

    def _wants_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].node.value, dict) and self._open[-1].key is None

    def _scalar(self, event: Any) -> None:
        self._refuse_tag(event)
        place = self._place(event)
        if self._wants_key():
            self._count(1, place)
            self._key(event.value, place)
            return
        value = _resolved(event.value) if event.implicit[0] else event.value
        self._finish(Node(place=place, value=value), event.anchor)

    def _key(self, key: str, place: Place) -> None:
        mapping = self._open[-1]
        earlier = mapping.node.keys.get(key)
        if earlier is not None:
            said = f"expected each key once, found {_short(key)} again (first in line {earlier.line})"
            self.problems.append(Problem(place, "", said))
        mapping.key = (key, place)

    def _alias(self, event: Any) -> None:
        place = self._place(event)
        anchored = self._anchors.get(event.anchor)
        if self._wants_key() or anchored is None:
            reason = "aliases can't be keys" if anchored else f"no anchor &{_short(event.anchor)} stands before it"
            raise _Stop(Problem(place, "", f"the alias *{_short(event.anchor)} can't be used: {reason}"))
        self._count(anchored.size - 1, place)
        self._finish(replace(anchored, place=place), None)

    def _start(self, event: Any) -> None:
        self._refuse_tag(event)
        place = self._place(event)
        if self._wants_key():
            raise _Stop(Problem(place, "", "expected a key that is text, found a list or mapping as key"))
        if len(self._open) >= MAX_DEPTH:
            raise _Stop(Problem(place, "", f"expected at most {MAX_DEPTH} levels of nesting"))
        empty: list[Node] | dict[str, Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._open.append(_Open(Node(place=place, value=empty), event.anchor))

    def _finish(self, node: Node, anchor: str | None) -> None:
        """Puts a complete value where it belongs."""
        self._count(1, node.place)
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self.documents.append(node)
            return
        parent = self._open[-1]
        parent.node.size += node.size
        parent.node.depth = max(parent.node.depth, node.depth + 1)
        if len(self._open) + node.depth > MAX_DEPTH:
            raise _Stop(Problem(node.place, "", f"expected at most {MAX_DEPTH} levels of nesting"))
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
        elif isinstance(parent.node.value, dict) and parent.key is not None:
            key, place = parent.key
            parent.key = None
            parent.node.value.setdefault(key, node)
            parent.node.keys.setdefault(key, place)

    def _count(self, nodes: int, place: Place) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _Stop(Problem(place, "", f"expected at most {MAX_NODES:,} values, aliases counted as what they mean"))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _resolved(text: str) -> Scalar:
    """A plain scalar's value; what would be infinite or too long stays text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text
