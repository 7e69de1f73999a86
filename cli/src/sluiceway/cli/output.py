"""Prints tables and descriptions in the form that `-o` asks for: tables for people, raw values for machines."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
import orjson
import typer
import yaml
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sluiceway.cli.tables import Column, Description, Table, plain


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
    elif table.rows:
        _console().print(_rich(table, wide=form is Form.WIDE))
    else:
        typer.echo(table.empty)


def print_description(description: Description, form: Form) -> None:
    if form in (Form.JSON, Form.YAML):
        print_raw(description.raw(), form)
        return
    console = _console()
    console.print(_facts(description.facts))
    for section in description.sections:
        console.print(Text(f"\n{section.title}", style="bold"))
        if section.table is None:
            console.print(_facts(section.facts or {}))
        elif section.table.rows:
            console.print(_rich(section.table, wide=form is Form.WIDE))
        else:
            console.print(Text(f"  {section.table.empty}"))


def print_raw(document: Mapping[str, object], form: Form) -> None:
    """A document for machines."""
    built = msgspec.to_builtins(document)
    if form is Form.YAML:
        typer.echo(yaml.safe_dump(built, sort_keys=False, allow_unicode=True), nl=False)
    else:
        typer.echo(orjson.dumps(built, option=orjson.OPT_INDENT_2).decode())


def _console() -> Console:
    """As wide as the terminal; where there is none, nothing is folded."""
    return Console(soft_wrap=True, highlight=False) if sys.stdout.isatty() else Console(width=10_000, highlight=False)


def _rich(table: Table, *, wide: bool) -> RichTable:
    columns = [column for column in table.columns if wide or not column.wide]
    printed = RichTable(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        printed.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in table.rows:
        printed.add_row(*[_cell(column, row) for column in columns])
    return printed


def _cell(column: Column, row: Mapping[str, Any]) -> Text:
    shown = column.show(row.get(column.key))
    return Text(shown, style=_COLOURS.get(shown, ""))


def _facts(facts: Mapping[str, object]) -> RichTable:
    printed = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    printed.add_column(overflow="fold")
    printed.add_column(overflow="fold")
    for name, value in facts.items():
        shown = plain(value)
        printed.add_row(Text(f"{name.replace('_', ' ').capitalize()}:"), Text(shown, style=_COLOURS.get(shown, "")))
    return printed
