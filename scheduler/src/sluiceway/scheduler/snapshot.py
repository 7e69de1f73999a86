"""The fleet at one etcd revision, typed and immutable: what every decision reads.

`SnapshotReader` turns the mirror's keys into a `FleetSnapshot` and decodes a value only when its key was written since
the last reading, so that a fleet of 100,000 leases costs one pass over the keys. Values that can't be decoded are
reported in `problems` and otherwise treated as absent. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from pydantic import ValidationError

from sluiceway.common.etcd.api import KeyValue
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import (
    CordonRecord,
    FailureRecord,
    LeaseRecord,
    LoadReport,
    PipelineState,
    ProgressRecord,
    SpecRecord,
    WorkerRecord,
    decode,
)
from sluiceway.common.specs.models import Cluster, ClusterSpec, Pipeline, PipelineSpec, Topic, TopicSpec


class Worker(NamedTuple):
    """A registered session. `session` is the worker key's create_revision, `etcd_lease` what it is attached to."""

    id: str
    record: WorkerRecord
    session: int
    etcd_lease: int


class Lease(NamedTuple):
    partition: PartitionId
    record: LeaseRecord
    token: int
    revision: int  # of the last write
    etcd_lease: int


class Failure(NamedTuple):
    partition: PartitionId
    record: FailureRecord
    revision: int


class Load(NamedTuple):
    record: LoadReport
    session: int  # changes with the worker's session, so that a restarted sequence is noticed
    revision: int


class State(NamedTuple):
    record: PipelineState
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """Everything that decisions read, as of `revision`.

    `versions` has, for each kind of key, the newest revision that touched it: equal versions mean equal content.
    """

    revision: int = 0
    clusters: Mapping[str, ClusterSpec] = field(default_factory=dict)
    topics: Mapping[str, TopicSpec] = field(default_factory=dict)
    pipelines: Mapping[str, PipelineSpec] = field(default_factory=dict)
    workers: Mapping[str, Worker] = field(default_factory=dict)
    cordons: Mapping[str, CordonRecord] = field(default_factory=dict)
    leases: Mapping[PartitionId, Lease] = field(default_factory=dict)
    progress: Mapping[PartitionId, ProgressRecord] = field(default_factory=dict)
    failures: Mapping[PartitionId, Failure] = field(default_factory=dict)
    loads: Mapping[str, Load] = field(default_factory=dict)
    states: Mapping[str, State] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)  # sequence -> revision
    problems: Mapping[str, str] = field(default_factory=dict)  # key -> why its value can't be read
    versions: Mapping[str, int] = field(default_factory=dict)

    def drains(self, worker: str) -> bool:
        cordon = self.cordons.get(worker)
        return cordon is not None and cordon.drain


_MODELS: dict[str, type[Cluster] | type[Topic] | type[Pipeline]] = {
    "clusters": Cluster,
    "topics": Topic,
    "pipelines": Pipeline,
}


def _spec(section: str, kv: KeyValue) -> Any:
    record = decode(SpecRecord, kv.value)
    return _MODELS[section].model_validate(record.document).spec


def _worker(tail: str, kv: KeyValue) -> Worker:
    if not kv.lease:
        raise ValueError("the key is attached to no etcd lease, so it would outlive its worker")
    return Worker(tail, decode(WorkerRecord, kv.value), kv.create_revision, kv.lease)


def _lease(tail: str, kv: KeyValue) -> Lease:
    record = decode(LeaseRecord, kv.value)
    return Lease(PartitionId.parse(tail), record, kv.create_revision, kv.mod_revision, kv.lease)


def _failure(tail: str, kv: KeyValue) -> Failure:
    return Failure(PartitionId.parse(tail), decode(FailureRecord, kv.value), kv.mod_revision)


_PARSERS: dict[str, Callable[[str, KeyValue], Any]] = {
    "clusters": lambda _, kv: _spec("clusters", kv),
    "topics": lambda _, kv: _spec("topics", kv),
    "pipelines": lambda _, kv: _spec("pipelines", kv),
    "workers": _worker,
    "cordons": lambda _, kv: decode(CordonRecord, kv.value),
    "leases": _lease,
    "progress": lambda _, kv: decode(ProgressRecord, kv.value),
    "failures": _failure,
    "loads": lambda _, kv: Load(decode(LoadReport, kv.value), kv.create_revision, kv.mod_revision),
    "states": lambda _, kv: State(decode(PipelineState, kv.value), kv.mod_revision),
    "events": lambda _, kv: kv.mod_revision,
}
_BY_PARTITION = {"leases", "progress", "failures"}


class SnapshotReader:
    """Keeps the decoded tables between readings. Not thread-safe; the snapshots it returns are."""

    def __init__(self, keys: Keys) -> None:
        self._prefixes = [
            (keys.leases, "leases"),
            (keys.progress_of_all, "progress"),
            (keys.failures, "failures"),
            (keys.workers, "workers"),
            (keys.loads, "loads"),
            (keys.cordons, "cordons"),
            (keys.states, "states"),
            (keys.events, "events"),
            *((keys.spec(kind, ""), kind) for kind in ("clusters", "topics", "pipelines")),
        ]
        self._seen: dict[str, int] = {}
        self._tables: dict[str, dict[Any, Any]] = {section: {} for section in _PARSERS}
        self._problems: dict[str, str] = {}
        self._published = FleetSnapshot()

    def read(self, revision: int, items: Mapping[str, KeyValue]) -> FleetSnapshot:
        """The snapshot of all keys of the fleet as of `revision`."""
        touched: set[str] = set()
        seen = self._seen
        for key, kv in items.items():
            if seen.get(key) != kv.mod_revision:
                seen[key] = kv.mod_revision
                touched.add(self._put(key, kv))
        if len(seen) > len(items):
            for key in [key for key in seen if key not in items]:
                del seen[key]
                touched.add(self._remove(key))
        self._published = self._publish(revision, touched)
        return self._published

    def _put(self, key: str, kv: KeyValue) -> str:
        section, tail = self._locate(key)
        if not section:
            return ""
        self._problems.pop(key, None)
        try:
            parsed = _PARSERS[section](tail, kv)
            self._tables[section][PartitionId.parse(tail) if section in _BY_PARTITION else tail] = parsed
        except (msgspec.MsgspecError, ValidationError, ValueError) as error:
            self._remove(key)
            self._problems[key] = f"{type(error).__name__}: {error}"
        return section

    def _remove(self, key: str) -> str:
        section, tail = self._locate(key)
        self._problems.pop(key, None)
        if section:
            with suppress(ValueError):  # a key that names no partition never got into its table
                self._tables[section].pop(PartitionId.parse(tail) if section in _BY_PARTITION else tail, None)
        return section

    def _locate(self, key: str) -> tuple[str, str]:
        for prefix, section in self._prefixes:
            if key.startswith(prefix):
                return section, key[len(prefix) :]
        return "", ""

    def _publish(self, revision: int, touched: set[str]) -> FleetSnapshot:
        """Copies only the tables that changed: earlier snapshots stay as they were."""
        before = self._published
        tables = {
            section: dict(table) if section in touched else getattr(before, section)
            for section, table in self._tables.items()
        }
        versions = {section: revision if section in touched else before.versions.get(section, 0) for section in tables}
        return FleetSnapshot(revision=revision, problems=dict(self._problems), versions=versions, **tables)
