"""The event log's order: every act of an operator and every decision that moves something gets a key here.

Operators' commands and the scheduler write `events/<sequence>` in the transaction of the act itself. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from sluiceway.common.etcd.api import Put
from sluiceway.common.keys import Keys
from sluiceway.common.records import EventRecord, encode


def sequence(at: float, cause: str, number: int) -> str:
    """Sorts as text by time, then by number; distinct for distinct causes.

    Args:
        at: seconds since the epoch.
        cause: id of the request or plan, without a slash.
        number: counts the events of one cause.
    """
    return f"{at * 1e6:020.0f}-{cause}-{number:04d}"


def puts(keys: Keys, events: Sequence[EventRecord]) -> list[Put]:
    """Writes events of one act; their `cause` must be unique to it."""
    return [
        Put(keys.event(sequence(event.at, event.cause, number)), encode(event)) for number, event in enumerate(events)
    ]
