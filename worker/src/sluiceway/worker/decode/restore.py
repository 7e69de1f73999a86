"""A delivered row back to the record that it came from, for verification.

What is equal: null and a missing field; 5 and 5.0; a number and a text of it, where the column widened to text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from sluiceway.worker.decode.schema import RESCUED

ORIGIN: frozenset[str] = frozenset({"_topic", "_epoch", "_partition", "_offset", "_timestamp", "_key"})


def restore(
    row: Mapping[str, object], rescued: str | None = None, origin: Collection[str] = ORIGIN
) -> dict[str, object]:
    """The record of a row: its data columns and its rescued members, without nulls.

    `rescued` is the row's `_rescued` text; by default the row's own. `origin` are the origin columns' names.
    """
    text = rescued if rescued is not None else row.get(RESCUED)
    members = {name: value for name, value in row.items() if name != RESCUED and name not in origin}
    return {**_without_nulls(members), **(_without_nulls(json.loads(text)) if isinstance(text, str) else {})}


def same(source: object, restored: object) -> bool:
    """Whether a value of a source record, parsed as JSON, equals the restored one."""
    if isinstance(source, dict) and isinstance(restored, dict):
        mine, theirs = _without_nulls(source), _without_nulls(restored)
        return mine.keys() == theirs.keys() and all(same(value, theirs[name]) for name, value in mine.items())
    if isinstance(source, list) and isinstance(restored, list):
        return len(source) == len(restored) and all(map(same, source, restored))
    if isinstance(source, bool) or isinstance(restored, bool) or source is None:
        return source is restored
    if isinstance(source, int | float) and isinstance(restored, str):
        return _reads_as(restored, source)
    return source == restored


def _reads_as(text: str, number: float) -> bool:
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return isinstance(read, int | float) and not isinstance(read, bool) and read == number


def _without_nulls(record: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in record.items() if value is not None}
