"""Prints tables and descriptions in the form that `-o` asks for: tables for people, raw values for machines."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

import msgspec
import orjson
import typer
import yaml
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from sluiceway.cli.tables import Description, Table, fact, flat


class Form(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


FormOption = Annotated[Form, typer.Option("--output", "-o", help="How to print the answer.")]

_COLOURS: Final = {
    "Running": "green",
    "Ready": "green",
    "granted": "green",
    "Paused": "cyan",
    "Pending": "yellow",
    "Cordoned": "yellow",
    "Draining": "yellow",
    "revoking": "yellow",
    "Degraded": "red",
    "SourceUnavailable": "red",
    "SinkUnavailable": "red",
    "quarantined": "red",
    "Absent": "red",
}


def print_table(table: Table, form: Form) -> None:
    if form in (Form.JSON, Form.YAML):
        print_raw({"items": list(table.rows)}, form)
    else:
        _print(_table(table, form))


def print_description(description: Description, form: Form) -> None:
    if form in (Form.JSON, Form.YAML):
        print_raw(description.raw(), form)
        return
    _print(_facts(description.facts))
    for section in description.sections:
        _print(Text(f"\n{section.title}", style="bold"))
        _print(_facts(section.facts or {}) if section.table is None else _table(section.table, form))


def print_raw(document: Mapping[str, object], form: Form) -> None:
    """A document for machines."""
    built = msgspec.to_builtins(document)
    if form is Form.YAML:
        typer.echo(yaml.safe_dump(built, sort_keys=False, allow_unicode=True), nl=False)
    else:
        typer.echo(orjson.dumps(built, option=orjson.OPT_INDENT_2).decode())


def _print(renderable: RenderableType) -> None:
    """As wide as the terminal; where there is none, nothing is folded and no line ends in blanks."""
    if sys.stdout.isatty():
        Console(highlight=False).print(renderable)
        return
    text = io.StringIO()
    Console(file=text, width=10_000, highlight=False).print(renderable)
    typer.echo("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def _table(table: Table, form: Form) -> RenderableType:
    if not table.rows:
        return Text(table.empty)
    columns = [column for column in table.columns if form is Form.WIDE or not column.wide]
    printed = RichTable(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        printed.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in table.rows:
        printed.add_row(*[_coloured(column.show(row.get(column.key))) for column in columns])
    return printed


def _facts(facts: Mapping[str, object]) -> RenderableType:
    if not facts:
        return Text("none")
    printed = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    printed.add_column(overflow="fold")
    printed.add_column(overflow="fold")
    for name, value in flat(facts):
        printed.add_row(Text(f"{name}:"), _coloured(fact(name, value)))
    return printed


def _coloured(shown: str) -> Text:
    return Text(shown, style=_COLOURS.get(shown, ""))
