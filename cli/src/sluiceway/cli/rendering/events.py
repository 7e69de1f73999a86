"""The event log as tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sluiceway.cli.tables import Column, Row, Table
from sluiceway.cli.units import instant
from sluiceway.common.records import EventRecord

_EVENTS: Final = (
    Column("TIME", "time"),
    Column("ACTOR", "actor"),
    Column("ACTION", "action"),
    Column("SUBJECT", "subject"),
    Column("CAUSE", "cause", wide=True),
    Column("REASON", "reason"),
)


def events(records: Sequence[EventRecord]) -> Table:
    return Table(columns=_EVENTS, rows=[event(record) for record in records], empty="no events")


def event(record: EventRecord) -> Row:
    return {
        "time": instant(record.at),
        "at": record.at,
        "actor": record.actor,
        "action": record.action,
        "subject": record.subject,
        "reason": record.reason,
        "cause": record.cause,
    }


def about(name: str, records: Mapping[str, EventRecord], limit: int) -> list[EventRecord]:
    """The last events about a worker, a partition, or a spec (`kind/name`) and its partitions; oldest first."""
    bare = name.rpartition("/")[2] if name.startswith(("pipeline/", "topic/", "cluster/")) else name
    below = f"{bare}/" if name.startswith("pipeline/") else None
    found = [
        record
        for _, record in sorted(records.items())
        if record.subject in (name, f"worker/{name}")
        or (below is not None and record.subject.startswith(below))
        or f"(worker {name})" in record.reason
    ]
    return found[-limit:]
