"""The two shapes in which records travel through a worker: as fetched, and as decoded.

Role: the vocabulary between fetch, decode and sinks. Pure data: no I/O, no decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sluiceway.common.ids import PartitionId


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Which log offsets belong to, as far as the cluster tells: a re-created or truncated topic has another one.

    `topic_id` is Kafka's topic id in hex, empty when unknown; `leader_epoch` is -1 when unknown.
    """

    topic_id: str = ""
    leader_epoch: int = -1


@dataclass(slots=True, kw_only=True)
class RecordBlock:
    """Consecutive records of one partition as fetched, column by column; all lists have the same length.

    Aborted transactions and control records are left out already; `next_offset` is where the fetch goes on, past them
    and past compacted gaps, so it may be larger than the last offset + 1.
    """

    offsets: list[int]
    timestamps_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: dict[int, list[tuple[str, bytes | None]]] = field(default_factory=dict)  # by index; only where present
    start_offset: int  # the offset that was wanted: the block covers [start_offset, next_offset)
    next_offset: int
    size_bytes: int  # bytes of keys, values and headers


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRecord:
    """A record that can't be delivered, with its bytes unchanged."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    error: str  # a stable code: malformed, not_an_object, too_large, too_deep, not_utf8, empty, …
    detail: str  # what was expected and found, at most 500 characters, without the record's content where avoidable


@dataclass(slots=True, kw_only=True)
class DecodedBlock:
    """What a RecordBlock became: `table` has one row a delivered record in offset order, `dead` the others.

    The table's columns: the schema's fields, then `_rescued` (JSON text or null), then the origin columns.
    """

    partition: PartitionId
    start_offset: int
    next_offset: int
    table: pa.Table
    dead: list[DeadRecord]
    schema_version: int
    rescued: int  # rows with a `_rescued` value
    offsets: npt.NDArray[np.int64] | Sequence[int] | None = None  # of the table's rows; None: see its offset column
    size_bytes: int  # as in RecordBlock
    cpu_s: float = 0.0  # thread time that decoding took, tries with older schemas included
