"""Leases, progress and partitions as tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sluiceway.cli.tables import Column, Row, Table
from sluiceway.cli.units import age, count
from sluiceway.cli.view import View, in_order

_LEASES: Final = (
    Column("PARTITION", "partition"),
    Column("WORKER", "worker"),
    Column("STATE", "state"),
    Column("TOKEN", "token", right=True),
    Column("AGE", "age_s", age, right=True),
    Column("TERM", "term", wide=True, right=True),
    Column("REASON", "reason"),
)
_PROGRESS: Final = (
    Column("PARTITION", "partition"),
    Column("NEXT OFFSET", "next_offset", count, right=True),
    Column("LAG", "lag_records", count, right=True),
    Column("DELIVERED", "delivered", count, right=True),
    Column("DEAD LETTERS", "dead_letters", count, right=True),
    Column("LOST", "lost", count, right=True),
    Column("COMMITTED", "seconds_since_commit", age, right=True),
    Column("OPEN CUT", "open_cut"),
    Column("TOKEN", "token", wide=True, right=True),
    Column("TOPIC ID", "topic_id", wide=True),
)
_PARTITIONS: Final = (
    Column("PARTITION", "partition"),
    Column("STATE", "state"),
    Column("WORKER", "worker"),
    Column("LAG", "lag_records", count, right=True),
    Column("DELIVERED", "delivered", count, right=True),
    Column("DEAD LETTERS", "dead_letters", count, right=True),
    Column("WHY", "why"),
)


def leases(view: View, names: Iterable[str] | None = None) -> Table:
    chosen = sorted(view.leases if names is None else names, key=in_order)
    return Table(columns=_LEASES, rows=[_lease(name, view) for name in chosen], empty="no lease is held")


def _lease(name: str, view: View) -> Row:
    held = view.leases[name]
    return {
        "partition": name,
        "worker": held.record.holder,
        "state": held.record.state.value,
        "token": held.token,
        "age_s": round(view.now - held.record.granted_at, 1) if held.record.granted_at else None,
        "term": held.record.term,
        "reason": held.record.reason,
    }


def progress(view: View, names: Iterable[str] | None = None) -> Table:
    chosen = sorted(view.progress if names is None else names, key=in_order)
    return Table(columns=_PROGRESS, rows=[_progress(name, view) for name in chosen], empty="nothing is delivered yet")


def _progress(name: str, view: View) -> Row:
    record = view.progress[name]
    cut = record.cut
    return {
        "partition": name,
        "next_offset": record.next_offset,
        "lag_records": view.lag(name),
        "delivered": record.delivered,
        "dead_letters": record.dead_letters,
        "lost": record.lost,
        "seconds_since_commit": round(view.now - record.committed_at, 1) if record.committed_at else None,
        "open_cut": f"{cut.start}-{cut.end}" if cut else None,
        "pending": record.pending,
        "token": record.token,
        "topic_id": record.topic_id,
    }


def partitions(view: View, names: Iterable[str]) -> Table:
    """Partitions with who holds each and why, or why nobody does."""
    return Table(columns=_PARTITIONS, rows=[partition(name, view) for name in names], empty="no partition is known yet")


def partition(name: str, view: View) -> Row:
    """One partition's row."""
    held, failure, done = view.leases.get(name), view.failures.get(name), view.progress.get(name)
    return {
        "partition": name,
        "state": state(name, view),
        "worker": held.record.holder if held else None,
        "lag_records": view.lag(name),
        "delivered": done.delivered if done else 0,
        "dead_letters": done.dead_letters if done else 0,
        "failures": failure.count if failure else 0,
        "why": why(name, view),
    }


def state(name: str, view: View) -> str:
    """quarantined, the lease's state, or unleased."""
    failure = view.failures.get(name)
    if failure and failure.quarantined:
        return "quarantined"
    held = view.leases.get(name)
    return held.record.state.value if held else "unleased"


def why(name: str, view: View) -> str:
    """The recorded reason for a partition's state; nothing is derived."""
    failure, held, usage = view.failures.get(name), view.leases.get(name), view.usage(name)
    if failure and (failure.quarantined or held is None):
        return f"failed {failure.count} time(s), last with {failure.kind.value}: {failure.error}"
    if held is None:
        pipeline = view.states.get(name.partition("/")[0])
        return pipeline.unplaced.get(name, "") if pipeline else ""
    return f"{usage.state}: {usage.detail}" if usage and usage.detail else held.record.reason
