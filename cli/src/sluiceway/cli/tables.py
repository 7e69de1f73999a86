"""Tables and descriptions as data: columns, rows of raw values, sections. Pure; `output` prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sluiceway.cli.units import amount, count, instant

Row = Mapping[str, object]


def plain(value: object) -> str:
    """Nothing as a dash, lists with commas."""
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def flat(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Facts with the names of mappings inside of mappings joined by dots."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def fact(name: str, value: object) -> str:
    """A fact as people see it: times, spans and amounts by the unit that ends the name."""
    if value is None or value == {}:
        return "-"
    if name.endswith("_at") and isinstance(value, float):
        return instant(value) if value else "-"
    if name.endswith("_bytes") or name in ("memory", "network_in", "network_out"):
        return amount(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    return str(value).lower() if isinstance(value, bool) else plain(value)


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
