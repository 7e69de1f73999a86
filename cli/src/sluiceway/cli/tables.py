"""Tables and descriptions as data: columns, rows of raw values, sections. Pure; `output` prints them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, object]


def plain(value: object) -> str:
    """Nothing as a dash, lists with commas."""
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: the title for people, the row's key, how people see the value. Numbers stand right."""

    title: str
    key: str
    show: Callable[[object], str] = plain
    wide: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Row]
    empty: str = "nothing found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a description: facts as pairs, or a table."""

    title: str
    key: str
    facts: Mapping[str, object] | None = None
    table: Table | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Everything about one thing: the facts first, then sections in order of interest."""

    facts: Mapping[str, object]
    sections: Sequence[Section] = ()

    def raw(self) -> dict[str, object]:
        """As one document, for machines."""
        document: dict[str, object] = dict(self.facts)
        for section in self.sections:
            document[section.key] = list(section.table.rows) if section.table is not None else dict(section.facts or {})
        return document
