"""The records of state that live in etcd, as typed JSON.

One struct a key of `sluiceway.common.keys`. Times are seconds since the epoch by the writer's clock and serve people
only: no decision compares clocks of two machines. Offsets are Kafka offsets; ranges are half-open `[start, end)`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import msgspec

from sluiceway.common.resources import Resources

Range = tuple[int, int]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: frozen, compared by value, unknown fields ignored so that versions can mix."""


RecordT = TypeVar("RecordT", bound=Record)


def encode(record: Record) -> bytes:
    """A record as JSON."""
    return msgspec.json.encode(record)


def decode(kind: type[RecordT], value: bytes) -> RecordT:
    """JSON as a record.

    Raises:
        msgspec.ValidationError: the value does not have the record's shape.
    """
    return msgspec.json.decode(value, type=kind)


class SpecRecord(Record, frozen=True, kw_only=True):
    """`spec/<kind>/<name>`: an applied spec as canonical JSON, with the hash that journals and plans refer to."""

    kind: str  # Cluster | Topic | Pipeline
    name: str
    hash: str  # hex SHA-256 of the canonical JSON, shortened to 16 digits
    document: dict[str, object]  # the whole document: apiVersion, kind, metadata, spec
    applied_at: float = 0.0
    applied_by: str = ""


class WorkerRecord(Record, frozen=True, kw_only=True):
    """`workers/<id>`, under the session's etcd lease. The key's create_revision identifies the session."""

    id: str
    session: int  # the etcd lease id that grants are attached to
    capacity: Resources
    worker_class: str = "default"
    zone: str = ""
    labels: dict[str, str] = {}
    address: str = ""  # host:port of /healthz and /metrics
    version: str = ""
    started_at: float = 0.0
    refuses: dict[str, str] = {}  # pipeline -> why this worker can't run it (a failed sink probe, for example)


class CordonRecord(Record, frozen=True, kw_only=True):
    """`cordons/<worker>`: no new grants; with `drain`, its leases are moved away as well."""

    worker: str
    drain: bool = False
    by: str = ""
    reason: str = ""
    at: float = 0.0
    deadline_at: float | None = None


class LeaseState(StrEnum):
    GRANTED = "granted"
    REVOKING = "revoking"


class LeaseRecord(Record, frozen=True, kw_only=True):
    """`leases/<partition>`, under the holder's session lease. The key's create_revision is the token."""

    holder: str
    state: LeaseState = LeaseState.GRANTED
    reason: str = ""  # why it was granted here, or why it is revoked
    granted_at: float = 0.0
    revoke_timeout_s: float | None = None  # set with `revoking`: the scheduler deletes the key after this long
    term: int = 0


class InboxRecord(Record, frozen=True, kw_only=True):
    """`inbox/<worker>/<partition>`, under the same session lease: what the worker watches.

    Written in the transaction that writes the lease, so its create_revision equals the token.
    """

    state: LeaseState = LeaseState.GRANTED
    demand: Resources = Resources()
    reason: str = ""


class CutObject(Record, frozen=True, kw_only=True):
    """One object of a cut: its key below the sink's prefix and exactly the offsets whose records it holds.

    Offsets inside of `ranges` that do not exist (compacted, aborted, control records) simply have no row.
    """

    key: str
    ranges: list[Range]
    role: str = "data"  # data | dead_letters


class Cut(Record, frozen=True, kw_only=True):
    """An open cut: journalled before its objects are put, removed when its outcome is committed.

    The cut covers `[start, end)`. The objects' ranges are disjoint and cover every record in it that is still to be
    written.
    """

    id: str
    start: int
    end: int
    objects: list[CutObject]
    schema_version: int = 0
    spec_hash: str = ""
    token: int = 0


class ProgressRecord(Record, frozen=True, kw_only=True):
    """`progress/<partition>`: how far a partition is delivered. Written only under its current lease token.

    Every record below `next_offset` is delivered. With `pending` (what a partly aborted cut left), the records of
    `[next_offset, pending_end)` outside of `pending` are delivered as well.
    """

    next_offset: int
    token: int = 0
    cut: Cut | None = None
    pending: list[Range] = []
    pending_end: int = 0
    committed_at: float = 0.0
    topic_id: str = ""  # Kafka's topic id where the broker gives one: a re-created topic is noticed
    leader_epoch: int = -1
    delivered: int = 0  # records, in all, including those rescued
    dead_letters: int = 0
    lost: int = 0  # records skipped by an offset-reset policy


class FailureKind(StrEnum):
    SOURCE = "source"  # the cluster or topic can't be read
    SINK = "sink"  # the sink can't be written
    OFFSET = "offset_out_of_range"
    DEAD_LETTER_RATE = "dead_letter_rate"
    RESOURCES = "resources"
    BUG = "bug"

    @property
    def is_outage(self) -> bool:
        """Whether it is the source's or the sink's fault, and no worker's or record's."""
        return self in (FailureKind.SOURCE, FailureKind.SINK)


class FailureRecord(Record, frozen=True, kw_only=True):
    """`failures/<partition>`: what happened when holders gave it up. Removed by a success or by `sluiceway retry`."""

    count: int
    kind: FailureKind
    error: str
    workers: list[str] = []  # distinct workers that failed on it, oldest first
    last_at: float = 0.0
    quarantined: bool = False
    traceback: str = ""


class PartitionUsage(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What one runner used since the last report, and how far it is.

    Units: seconds, records, bytes; the rates are over `interval_s`.
    """

    interval_s: float
    records: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cpu_s: float = 0.0
    peak_buffer_bytes: int = 0
    position: int = 0  # next offset to fetch
    log_end: int = -1  # the broker's high watermark, -1 when not known
    dead_letters: int = 0
    rescued: int = 0
    state: str = "running"  # running | paused | recovering | draining
    detail: str = ""  # why it is paused


class LoadReport(Record, frozen=True, kw_only=True):
    """`load/<worker>`, under the session lease, every few seconds."""

    worker: str
    sequence: int
    interval_s: float
    cpu_s: float = 0.0
    rss_bytes: int = 0
    buffered_bytes: int = 0
    partitions: dict[str, PartitionUsage] = {}  # by text of PartitionId


class SchemaRecord(Record, frozen=True, kw_only=True):
    """`schemas/<pipeline>/<topic>`: the widening schema, advanced by compare-and-swap.

    `fields` maps a column to its type's text as `sluiceway.worker.decode.schema` writes it; a field's type only widens
    and no field is ever removed.
    """

    version: int
    fields: dict[str, str]


class Condition(StrEnum):
    RUNNING = "Running"
    PENDING = "Pending"  # no partition is leased yet
    DEGRADED = "Degraded"  # some partitions fail or can't be placed
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    SINK_UNAVAILABLE = "SinkUnavailable"
    PAUSED = "Paused"


class PipelineState(Record, frozen=True, kw_only=True):
    """`state/pipelines/<name>`: the condition that `sluiceway get pipelines` shows."""

    condition: Condition
    message: str = ""
    partitions: int = 0
    leased: int = 0
    quarantined: int = 0
    unplaced: dict[str, str] = {}  # partition -> reason, at most the first hundred
    lag_records: int = 0
    delivered: int = 0
    dead_letters: int = 0
    at: float = 0.0


class EventRecord(Record, frozen=True, kw_only=True):
    """`events/<sequence>`: one act of an operator or one decision of a scheduler that moved something."""

    at: float
    actor: str
    action: str  # granted, revoked, deleted, released, quarantined, cordoned, drained, applied, …
    subject: str
    reason: str
    cause: str = ""  # id of the plan or request that it belongs to
