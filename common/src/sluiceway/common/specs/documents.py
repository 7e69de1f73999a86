"""YAML texts as checked specs, or every problem at once.

`places` reads the text, `models` says what is right, `references` checks what documents say of each other. A problem
names file, line, column and field, what was expected and what was found; the values of secrets are never repeated.
Reading files is the caller's part (`files`). Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import ValidationError

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.records import SpecRecord
from sluiceway.common.specs import places, references
from sluiceway.common.specs.models import KINDS, SECRET_FORMAT, Document
from sluiceway.common.specs.places import Node, Place, Problem
from sluiceway.common.specs.references import Parsed, SpecKey
from sluiceway.common.specs.wording import quoted, suggestion

_TYPES: Final = {
    "string_type": "text (in quotes, if it looks like a number)",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_LIMITS: Final = {
    "greater_than": ("gt", "a number above"),
    "greater_than_equal": ("ge", "a number of at least"),
    "less_than": ("lt", "a number below"),
    "less_than_equal": ("le", "a number of at most"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One text with the name that places give: a path, or `<stdin>`."""

    name: str
    text: bytes


def parse(sources: Sequence[Source], applied: Mapping[SpecKey, SpecRecord]) -> list[Document]:
    """The specs in all sources, in their order.

    Args:
        applied: what the fleet has already; references may point there.

    Raises:
        SpecInvalid: everything that is wrong in all sources, ordered by place.
    """
    parsed, problems, broken = read(sources)
    problems += references.check(parsed, applied, broken)
    if not parsed and not problems:
        named = ", ".join(source.name for source in sources)
        raise SpecInvalid([f"{named or 'no .yaml or .yml file found'}: expected at least one document, found none"])
    if problems:
        raise SpecInvalid([str(problem) for problem in in_order(problems, sources)])
    return [each.document for each in parsed]


def read(sources: Iterable[Source]) -> tuple[list[Parsed], list[Problem], set[SpecKey]]:
    """The documents that are right by themselves, the problems of the others, and the names of those others."""
    parsed: list[Parsed] = []
    problems: list[Problem] = []
    broken: set[SpecKey] = set()
    for source in sources:
        nodes, found = places.read(source.name, source.text)
        problems += found
        for node in nodes:
            if node.value is None:
                continue
            document, found = _checked(node)
            problems += found
            if document is None:
                broken.add(_declared(node))
            else:
                parsed.append(Parsed(document, node))
    return parsed, problems, broken


def _declared(node: Node) -> SpecKey:
    """Kind and name that a wrong document gives itself: what refers to it is not wrong for that."""
    kind, metadata = node.child("kind"), node.child("metadata")
    name = metadata.child("name") if metadata else None
    return SpecKey(str(kind.value) if kind else "", str(name.value) if name else "")


def in_order(problems: Iterable[Problem], sources: Sequence[Source]) -> list[Problem]:
    """Problems by source, line and column; each once."""
    order = {source.name: number for number, source in enumerate(sources)}
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda each: (order.get(each.place.source, 0), each.place, each.path))


def canonical(document: Document) -> dict[str, object]:
    """The document with every default written out: what is stored, compared and hashed."""
    dumped: dict[str, object] = document.model_dump(mode="json", exclude_none=True)
    return dumped


def to_record(document: Document, *, at: float = 0.0, by: str = "") -> SpecRecord:
    """The record that etcd holds; the hash depends on the document only."""
    content = canonical(document)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return SpecRecord(
        kind=document.kind,
        name=document.metadata.name,
        hash=hashlib.sha256(text.encode()).hexdigest()[:16],
        document=content,
        applied_at=at,
        applied_by=by,
    )


def from_record(record: SpecRecord) -> Document:
    """The spec in a record.

    Raises:
        SpecInvalid: it was written by a version whose specs this one can't read.
    """
    try:
        return KINDS[record.kind].model_validate(record.document)
    except (KeyError, ValidationError) as error:
        raise SpecInvalid(
            [f"the applied {record.kind} {record.name} can't be read by this version: {error}"]
        ) from error


def _checked(node: Node) -> tuple[Document | None, list[Problem]]:
    if not isinstance(node.value, dict):
        said = f"expected a document (a mapping with kind, metadata and spec), found {_kind_of(node)}"
        return None, [Problem(node.place, "", said)]
    kind = node.child("kind")
    if kind is None:
        return None, [Problem(node.place, "kind", f"required, but missing: expected one of {', '.join(KINDS)}")]
    if not isinstance(kind.value, str) or kind.value not in KINDS:
        near = suggestion(str(kind.value), KINDS) if isinstance(kind.value, str) else ""
        said = f"expected one of {', '.join(KINDS)}, found {_found(kind)}{near}"
        return None, [Problem(kind.place, "kind", said)]
    try:
        return KINDS[kind.value].model_validate(node.plain(), strict=True), []
    except ValidationError as error:
        schema = _json_schema(kind.value)
        return None, [_problem(node, schema, each) for each in error.errors(include_url=False)]


@cache
def _json_schema(kind: str) -> dict[str, Any]:
    return KINDS[kind].model_json_schema()


def _problem(root: Node, schema: dict[str, Any], error: Mapping[str, Any]) -> Problem:
    steps: tuple[str | int, ...] = tuple(error["loc"])
    if steps and steps[-1] == "[key]":
        steps = steps[:-1]
    place, node = _locate(root, steps, at_key=error["type"] in ("extra_forbidden", "missing"))
    return Problem(place, _path(steps), _expectation(error, _Schema(schema).at(steps), node))


def _locate(root: Node, steps: Sequence[str | int], *, at_key: bool) -> tuple[Place, Node | None]:
    """The place of the deepest part of the path that exists, and the node if the whole path does."""
    node, place = root, root.place
    for step in steps:
        child = node.child(step)
        if child is None:
            return place, None
        key = node.keys.get(str(step))
        place = key if key is not None and (at_key or isinstance(child.value, dict)) else child.place
        node = child
    return place, node


def _path(steps: Sequence[str | int]) -> str:
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _expectation(error: Mapping[str, Any], schema: _Schema, node: Node | None) -> str:
    """What was expected, and what was found, for one of pydantic's errors."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"required, but missing{schema.told()}"
    if kind == "extra_forbidden":
        known = schema.parent_fields()
        return f"unknown field{suggestion(str(error['loc'][-1]), known) or '; known are ' + ', '.join(known)}"
    found = _found(node, secret=schema.is_secret())
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}{schema.told()}, found {found}"
    if kind == "literal_error":
        options = schema.options()
        near = suggestion(node.value, options) if node and isinstance(node.value, str) else ""
        return f"expected {_one_of(options)}, found {found}{near}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"expected {words} {context[name]:g}{schema.told()}, found {found}"
    if kind == "string_pattern_mismatch":
        told = schema.told().removeprefix(": ") or f"text that matches {context['pattern']}"
        return f"expected {told[0].lower()}{told[1:]}, found {found}"
    if kind == "too_short":
        return f"expected at least {context['min_length']} element(s), found {context['actual_length']}"
    if kind == "value_error":
        return str(context["error"])
    return f"{error['msg']}, found {found}"


def _one_of(options: Sequence[str]) -> str:
    return quoted(options[0]) if len(options) == 1 else f"one of {', '.join(map(quoted, options))}"


def _found(node: Node | None, *, secret: bool = False) -> str:
    if node is None:
        return "nothing"
    if isinstance(node.value, dict | list) or node.value is None:
        return _kind_of(node)
    return f"{_kind_of(node)} that is not shown" if secret else f"{_kind_of(node)} {quoted(node.value)}"


def _kind_of(node: Node) -> str:
    match node.value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case None:
            return "nothing"
        case bool():
            return "the truth value"
        case str():
            return "text"
        case _:
            return "the number"


class _Schema:
    """A place in a JSON Schema: what the published schema says of a field is what messages say."""

    def __init__(self, root: dict[str, Any], here: dict[str, Any] | None = None, parent: dict[str, Any] | None = None):
        self._root = root
        self._here = self._resolved(root if here is None else here)
        self._parent = parent or {}
        self._written = here or root

    def at(self, steps: Sequence[str | int]) -> _Schema:
        schema = self
        for step in steps:
            here = schema._here
            inner = here.get("items", {}) if isinstance(step, int) else here.get("properties", {}).get(step)
            if inner is None:
                extra = here.get("additionalProperties", {})
                inner = extra if isinstance(extra, dict) else {}
            schema = _Schema(self._root, inner, here)
        return schema

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        for option in schema.get("anyOf", []):
            if option.get("type") != "null":
                return self._resolved(option)
        if "$ref" in schema:
            target: dict[str, Any] = self._root["$defs"][schema["$ref"].rpartition("/")[2]]
            return target
        return schema

    def told(self) -> str:
        """`: ` and the description, if there is one."""
        text = str(self._written.get("description") or self._here.get("description") or "").rstrip(".")
        return f": {' '.join(text.split())}" if text else ""

    def parent_fields(self) -> list[str]:
        return list(self._parent.get("properties", {}))

    def options(self) -> list[str]:
        return [str(option) for option in self._here.get("enum", [self._here.get("const")])]

    def is_secret(self) -> bool:
        return bool(self._here.get("format") == SECRET_FORMAT)
