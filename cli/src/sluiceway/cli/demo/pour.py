"""Sends streams of records into topics: batched, compressed, idempotent, never faster than the broker takes them.

Role: the producing side of the demo, the benchmark and the chaos test. It counts what the broker has confirmed; whether
that arrived in the sink is for `verify` to find out from the broker itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import DefaultPartitioner

from sluiceway.cli.demo.sources import Chunk, Stream

_BATCH_BYTES: Final = 512 * 1024
_LARGEST_RECORD_BYTES: Final = 64 * 2**20
_FLUSH_S: Final = 0.25

Gate = Callable[[int], Awaitable[None]]
"""Called with the size of the next chunk; returns when it may be sent."""


@dataclass(slots=True)
class Poured:
    """What the broker has confirmed so far."""

    records: int = 0
    value_bytes: int = 0
    by_partition: Counter[tuple[str, int]] = field(default_factory=Counter)


async def open_gate(_: int) -> None:
    """No limit but the broker's."""


async def create_topics(bootstrap: str, topics: Sequence[str], partitions: int) -> None:
    """Creates the topics, and allows large records where the broker knows that setting."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        settings = {"max.message.bytes": str(_LARGEST_RECORD_BYTES), "retention.ms": "-1"}
        await admin.create_topics(
            [NewTopic(name, partitions, 1, topic_configs=settings) for name in sorted(set(topics))]
        )
    finally:
        await admin.close()


async def pour(bootstrap: str, streams: Sequence[Stream], poured: Poured, gate: Gate = open_gate) -> None:
    """Sends every stream, one after the other, and returns when the broker has confirmed every record.

    Raises:
        aiokafka.errors.KafkaError: the broker refused a batch or went away for longer than a request may take.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        compression_type="zstd",
        max_batch_size=_BATCH_BYTES,
        max_request_size=_LARGEST_RECORD_BYTES,
        linger_ms=5,
    )
    await producer.start()
    try:
        for stream in streams:
            sender = _Sender(producer, stream.topic, poured)
            await sender.send_all(stream, gate)
    finally:
        await producer.stop()


class _Sender:
    """Fills one batch a partition and has at most one on its way for each."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, poured: Poured) -> None:
        self._producer, self._topic, self._poured = producer, topic, poured
        self._partitions: list[int] = []
        self._of_key: dict[bytes, int] = {}
        self._open: dict[int, tuple[Any, list[int]]] = {}
        self._on_its_way: dict[int, asyncio.Task[None]] = {}
        self._flushed_at = time.monotonic()

    async def send_all(self, stream: Stream, gate: Gate) -> None:
        self._partitions = sorted(await self._producer.partitions_for(self._topic))
        try:
            for number, chunk in enumerate(stream.chunks()):
                await gate(len(chunk))
                await self._add(chunk, self._partitions[number % len(self._partitions)])
                if time.monotonic() - self._flushed_at > _FLUSH_S:
                    await self._flush()
            await self._flush()
        finally:
            await _settle(self._on_its_way.values())

    async def _add(self, chunk: Chunk, keyless: int) -> None:
        now_ms = int(time.time() * 1000)
        for key, value, at_ms in chunk:
            partition = keyless if key is None else self._partition(key)
            timestamp = now_ms if at_ms < 0 else at_ms
            while not self._append(partition, key, value, timestamp):
                await self._send(partition)

    def _partition(self, key: bytes) -> int:
        found = self._of_key.get(key)
        if found is None:
            found = self._of_key[key] = DefaultPartitioner()(key, self._partitions, self._partitions)
        return found

    def _append(self, partition: int, key: bytes | None, value: bytes | None, timestamp_ms: int) -> bool:
        if partition not in self._open:
            self._open[partition] = (self._producer.create_batch(), [0])
        batch, value_bytes = self._open[partition]
        if batch.append(timestamp=timestamp_ms, key=key, value=value) is None:
            return False
        value_bytes[0] += len(value or b"")
        return True

    async def _send(self, partition: int) -> None:
        """Waits for the partition's batch before this one: that is the back-pressure."""
        batch, value_bytes = self._open.pop(partition)
        if before := self._on_its_way.pop(partition, None):
            await before
        self._on_its_way[partition] = asyncio.create_task(
            self._confirm(batch, partition, value_bytes[0]), name=f"pour {self._topic}/{partition}"
        )

    async def _confirm(self, batch: Any, partition: int, value_bytes: int) -> None:
        records = batch.record_count()
        confirmed = await self._producer.send_batch(batch, self._topic, partition=partition)
        await confirmed
        self._poured.records += records
        self._poured.value_bytes += value_bytes
        self._poured.by_partition[self._topic, partition] += records

    async def _flush(self) -> None:
        for partition in sorted(self._open):
            await self._send(partition)
        self._flushed_at = time.monotonic()


async def _settle(tasks: Any) -> None:
    """Waits for what is on its way and raises the first failure."""
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
