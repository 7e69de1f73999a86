"""A fleet of real processes under test: pipelines of any kind on it, what it says of them, and what it delivered.

Neighbours: `sluiceway.cli.demo.fleet` starts the processes; the integration tests break what they depend on.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sluiceway.cli.demo.conductor import Watching, watching
from sluiceway.cli.demo.fleet import LocalFleet
from sluiceway.cli.demo.watch import FleetView
from sluiceway.common.clock import SystemClock
from sluiceway.common.etcd.api import Etcd
from sluiceway.common.ids import PartitionId
from sluiceway.common.records import FailureRecord, PipelineState, decode

LIMIT_S = 45.0
MIB = 2**20


def document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "sluiceway/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def file_sink(folder: Path) -> dict[str, Any]:
    return {"kind": "parquet", "url": f"file://{folder.absolute()}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A pipeline of one topic, all of one name, in its specs and in what it has delivered."""

    name: str
    sink: dict[str, Any]
    bootstrap: str
    cluster: dict[str, Any] = field(default_factory=dict)  # more of the cluster's spec
    pipeline: dict[str, Any] = field(default_factory=dict)  # more of the pipeline's spec
    partitions: int = 1

    def documents(self) -> list[dict[str, Any]]:
        return [
            document("Cluster", self.name, {"bootstrap": self.bootstrap.split(","), **self.cluster}),
            document("Topic", self.name, {"cluster": self.name}),
            document(
                "Pipeline",
                self.name,
                {"topics": [self.name], "sink": self.sink, "cut": {"max_age_s": 0.3}, **self.pipeline},
            ),
        ]

    def partition(self, number: int = 0) -> PartitionId:
        return PartitionId(self.name, self.name, 0, number)


@dataclass(slots=True, kw_only=True)
class Fleet:
    """Acts on a running fleet and waits for what it does."""

    local: LocalFleet
    etcd: Etcd
    seen: Watching

    @classmethod
    @asynccontextmanager
    async def of(cls, local: LocalFleet) -> AsyncIterator[Self]:
        async with watching(local, lambda _: None) as (etcd, seen):
            yield cls(local=local, etcd=etcd, seen=seen)

    async def apply(self, flow: Flow) -> None:
        await self.local.apply(self.etcd, flow.documents(), SystemClock())

    async def until(self, holds: Callable[[FleetView], bool], what: str, *, limit_s: float = LIMIT_S) -> FleetView:
        return await self.seen.until(holds, limit_s=limit_s, what=what)

    async def state(self, flow: Flow, condition: str, *texts: str) -> PipelineState:
        """Waits until the pipeline has this condition, and a message with all these texts."""

        def holds(view: FleetView) -> bool:
            state = view.states.get(flow.name)
            return state is not None and state.condition == condition and all(text in state.message for text in texts)

        try:
            view = await self.until(holds, f"{flow.name} is to be {condition} with {texts}")
        except Exception as error:
            error.add_note(f"{flow.name} is {self.seen.view.states.get(flow.name)}")
            raise
        return view.states[flow.name]

    async def delivers(self, flow: Flow, ends: Sequence[int]) -> None:
        """Waits until the flow's progress has reached these offsets."""

        def holds(view: FleetView) -> bool:
            return all(view.next_offset(flow.partition(number)) >= end for number, end in enumerate(ends))

        try:
            await self.until(holds, f"{flow.name} is to be delivered up to {ends}")
        except Exception as error:
            error.add_note(f"{flow.name} is {self.seen.view.states.get(flow.name)}")
            raise

    async def failure(self, flow: Flow) -> FailureRecord | None:
        item = await self.etcd.get(self.local.keys.failure(flow.partition()))
        return decode(FailureRecord, item.value) if item else None


@asynccontextmanager
async def administering(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create_topic(
    bootstrap: str, name: str, partitions: int = 1, *, settings: dict[str, str] | None = None
) -> None:
    async with administering(bootstrap) as admin:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings or {})])


@asynccontextmanager
async def producing(bootstrap: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=64 * MIB, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def produce(bootstrap: str, topic: str, values: Sequence[bytes | None], **options: Any) -> None:
    async with producing(bootstrap, **options) as producer:
        for value in values:
            await producer.send(topic, value, partition=0)
        await producer.flush()


async def produce_numbers(flow: Flow, start: int, end: int) -> None:
    """Records `{"n": number}` into partition 0, whose offsets are the numbers if nothing else is produced."""
    await produce(flow.bootstrap, flow.name, [b'{"n": %d}' % number for number in range(start, end)])


async def ends_of(bootstrap: str, topic: str, partitions: int = 1) -> list[int]:
    """The last stable offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    await consumer.start()
    try:
        wanted = [TopicPartition(topic, number) for number in range(partitions)]
        ends = await consumer.end_offsets(wanted)
        return [ends[partition] for partition in wanted]
    finally:
        await consumer.stop()


def offsets_in(folder: Path) -> list[int]:
    """The offsets of all rows of all files, sorted, with repetitions."""
    tables = [pq.read_table(path, columns=["_offset"]) for path in sorted((folder / "data").rglob("*.parquet"))]
    return sorted(offset for table in tables for offset in table["_offset"].to_pylist())


def offsets_in_bucket(client: Any, bucket: str, prefix: str) -> list[int]:
    """The same of an object store, by a plain listing."""
    found: list[int] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/data/"):
        for item in page.get("Contents", ()):
            body = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            found += pq.read_table(io.BytesIO(body), columns=["_offset"])["_offset"].to_pylist()
    return sorted(found)


async def on_thread(act: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(act)
