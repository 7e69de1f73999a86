"""A small fleet in words, for the tests of the scheduler's deciding modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sluiceway.common.etcd.api import KeyValue
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import (
    CordonRecord,
    FailureKind,
    FailureRecord,
    LeaseRecord,
    LeaseState,
    Record,
    SpecRecord,
    WorkerRecord,
    encode,
)
from sluiceway.common.resources import Resources
from sluiceway.scheduler.estimate.demand import Estimator
from sluiceway.scheduler.grants.sightings import Ages
from sluiceway.scheduler.grants.view import View
from sluiceway.scheduler.snapshot import FleetSnapshot, SnapshotReader
from sluiceway.scheduler.source_view import SourceView, TopicView

KEYS = Keys("test")


def partition(number: int, pipeline: str = "p") -> PartitionId:
    return PartitionId(pipeline, "t", 0, number)


def spec(kind: str, name: str, **fields: object) -> SpecRecord:
    document: dict[str, object] = {
        "apiVersion": "sluiceway/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": fields,
    }
    return SpecRecord(kind=kind, name=name, hash="1", document=document)


class Fleet:
    """Keys as they would be in etcd; every put gets the next revision."""

    def __init__(self, *, partitions: int, pipelines: Sequence[str] = ("p",)) -> None:
        self.revision = 1
        self.items: dict[str, KeyValue] = {}
        self.sources = SourceView(topics={"t": TopicView(partitions=partitions)}, version=1)
        self.estimator = Estimator()
        self.put(KEYS.spec("topics", "t"), spec("Topic", "t", cluster="c"))
        for name in pipelines:
            self.pipeline(name)

    def put(self, key: str, record: Record | bytes, *, lease: int = 0) -> int:
        self.revision += 1
        before = self.items.get(key)
        created = self.revision if before is None else before.create_revision
        value = record if isinstance(record, bytes) else encode(record)
        self.items[key] = KeyValue(key, value, created, self.revision, 1, lease)
        return self.revision

    def pipeline(self, name: str, **fields: object) -> None:
        document = {"topics": ["t"], "sink": {"url": "file:///tmp/sink"}, **fields}
        self.put(KEYS.spec("pipelines", name), spec("Pipeline", name, **document))

    def worker(
        self,
        name: str,
        *,
        cpu: float = 1.0,
        worker_class: str = "default",
        refuses: Mapping[str, str] | None = None,
    ) -> None:
        record = WorkerRecord(
            id=name,
            session=self.session(name),
            capacity=Resources(cpu=cpu),
            worker_class=worker_class,
            refuses=dict(refuses or {}),
        )
        self.put(KEYS.worker(name), record, lease=self.session(name))

    def session(self, worker: str) -> int:
        """The etcd lease of a worker's session."""
        return 1000 + sum(worker.encode())

    def lease(self, of: PartitionId, holder: str, *, state: LeaseState = LeaseState.GRANTED, session: int = 0) -> int:
        record = LeaseRecord(holder=holder, state=state)
        return self.put(KEYS.lease(of), record, lease=session or self.session(holder))

    def failure(
        self,
        of: PartitionId,
        *workers: str,
        count: int = 1,
        kind: FailureKind = FailureKind.BUG,
        quarantined: bool = False,
    ) -> None:
        record = FailureRecord(count=count, kind=kind, error="boom", workers=list(workers), quarantined=quarantined)
        self.put(KEYS.failure(of), record)

    def cordon(self, worker: str, *, drain: bool = False) -> None:
        self.put(KEYS.cordon(worker), CordonRecord(worker=worker, drain=drain))

    def load(self, of: PartitionId, cores: float) -> None:
        """Makes a partition cost about `cores`, by the prior of 25 ns a byte and 512 bytes a record."""
        rate = cores / 25e-9 / 512
        self.estimator.learn_log_end(of, 0, 0.0)
        self.estimator.learn_log_end(of, int(rate * 10), 10.0)
        self.estimator.learn_position(of, int(rate * 10))

    def snapshot(self) -> FleetSnapshot:
        return SnapshotReader(KEYS).read(self.revision, self.items)

    def view(self, *, ages: Ages | None = None) -> View:
        return View(
            keys=KEYS,
            snapshot=self.snapshot(),
            sources=self.sources,
            estimator=self.estimator,
            ages=ages or Ages(),
        )
