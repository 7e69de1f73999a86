"""Compares the source with the sink, record by record.

Role: the proof. It reads the topics again with a plain consumer (nothing of the worker's fetching) and the sink through
a plain listing (`sink`), and counts per partition. Only turning a row back into a record is the worker's code, which
documents what of a record a row may change (`sluiceway.worker.decode.restore`).
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from sluiceway.cli.demo.sink import Offsets, Rows, SinkIndex, Source
from sluiceway.worker.decode.restore import restore, same

_IDLE_LIMIT_S: Final = 30.0
_EXAMPLES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of one partition. A record that is in the data and in the dead letters, or twice in either, is a duplicate."""

    produced: int
    delivered: int
    dead_letters: int
    missing: int
    duplicated: int
    unexpected: int  # offsets in the sink that the source does not have


@dataclass(slots=True)
class Verification:
    """What was found. `different` names the first records whose values are not the source's."""

    partitions: dict[Source, Counts] = field(default_factory=dict)
    source_bytes: int = 0
    values_compared: int = 0
    values_different: int = 0
    different: list[str] = field(default_factory=list)

    def total(self, what: str) -> int:
        """The sum over all partitions of one of the counts."""
        return sum(getattr(counts, what) for counts in self.partitions.values())

    @property
    def exact(self) -> bool:
        """Every record of the source once, with its values, and nothing else."""
        wrong = sum(map(self.total, ("missing", "duplicated", "unexpected"))) + self.values_different
        return wrong == 0 and self.total("produced") == self.total("delivered") + self.total("dead_letters")


async def verify(
    bootstrap: str, topics: Mapping[str, int], sink: SinkIndex, *, every: int = 1, isolation: str = "read_committed"
) -> Verification:
    """Reads the topics to their present ends and compares.

    Args:
        topics: the number of partitions by topic.
        every: compare the values of records whose offset is a multiple of this; 0 compares none. Dead letters'
            bytes are always compared.

    Raises:
        TimeoutError: the broker does not give all records up to the ends.
    """
    found = Verification()
    comparison = _Comparison(sink, every, found)
    await _read(bootstrap, topics, isolation, comparison)
    sources = {*comparison.offsets, *sink.offsets, *sink.dead_offsets}
    for source in sorted(sources):
        produced = np.frombuffer(comparison.offsets.get(source, array("q")), dtype=np.int64)
        found.partitions[source] = _count(produced, sink, source)
    return found


async def _read(bootstrap: str, topics: Mapping[str, int], isolation: str, comparison: _Comparison) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level=isolation,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 * 2**20,
    )
    await consumer.start()
    try:
        partitions = [
            TopicPartition(topic, number) for topic, count in sorted(topics.items()) for number in range(count)
        ]
        ends = await consumer.end_offsets(partitions)
        consumer.assign(partitions)
        await _read_to(consumer, ends, comparison)
    finally:
        await consumer.stop()


async def _read_to(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int], comparison: _Comparison) -> None:
    idle_since = asyncio.get_running_loop().time()
    while behind := [tp for tp, end in ends.items() if await consumer.position(tp) < end]:
        batches = await consumer.getmany(*behind, timeout_ms=500)
        now = asyncio.get_running_loop().time()
        for tp, records in batches.items():
            comparison.take(Source(tp.topic, tp.partition), records)
        if batches:
            idle_since = now
        elif now - idle_since > _IDLE_LIMIT_S:
            raise TimeoutError(f"the broker gives no more records of {behind[0]} before its end {ends[behind[0]]}")


class _Comparison:
    """Takes the source's records in order and compares them with what the sink holds at their offsets."""

    def __init__(self, sink: SinkIndex, every: int, found: Verification) -> None:
        self._sink, self._every, self._found = sink, every, found
        self._rows: dict[Source, Rows] = {}
        self.offsets: dict[Source, array[int]] = defaultdict(lambda: array("q"))

    def take(self, source: Source, records: Sequence[ConsumerRecord[Any, Any]]) -> None:
        self.offsets[source].extend([record.offset for record in records])
        rows = self._rows.setdefault(source, self._sink.rows(source))
        for record in records:
            self._found.source_bytes += len(record.value or b"")
            if (letter := self._sink.dead.get((source, record.offset))) is not None:
                self._compared(source, record, None if _bytes(record) == (letter.key, letter.value) else "bytes differ")
            elif self._every and record.offset % self._every == 0:
                row = rows.find(record.offset)
                if row is not None:  # a missing one is counted as missing
                    self._compared(source, record, _origin_differs(record, row) or difference(record.value, row))

    def _compared(self, source: Source, record: ConsumerRecord[Any, Any], difference: str | None) -> None:
        self._found.values_compared += 1
        if difference is not None:
            self._found.values_different += 1
            if len(self._found.different) < _EXAMPLES:
                self._found.different.append(f"{source.topic}/{source.partition} at {record.offset}: {difference}")


def difference(value: bytes | None, row: dict[str, Any]) -> str | None:
    """How a row differs from the record that it came from, or None."""
    try:
        record = {} if value is None else json.loads(value, strict=False)  # a tombstone is a row of its key alone
    except ValueError as error:
        return f"delivered as a row, but is no JSON: {error}"
    restored = restore(row)
    if same(record, restored):
        return None
    if not isinstance(record, dict):
        return f"delivered as a row, but is no object: {record!r:.100}"
    names = [name for name in {**record, **restored} if not same(record.get(name), restored.get(name))]
    return "; ".join(f"{name}: {record.get(name)!r:.200} became {restored.get(name)!r:.200}" for name in names[:3])


def _origin_differs(record: ConsumerRecord[Any, Any], row: dict[str, Any]) -> str | None:
    if row.get("_key") != record.key:
        return f"_key: {record.key!r} became {row.get('_key')!r}"
    at_ms = round(row["_timestamp"].timestamp() * 1000)
    return None if at_ms == record.timestamp else f"_timestamp: {record.timestamp} became {at_ms}"


def _bytes(record: ConsumerRecord[Any, Any]) -> tuple[bytes | None, bytes | None]:
    return record.key, record.value


def _count(produced: Offsets, sink: SinkIndex, source: Source) -> Counts:
    rows = sink.offsets.get(source, [])
    delivered = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    dead = np.asarray(sink.dead_offsets.get(source, []), dtype=np.int64)
    arrived = np.concatenate([delivered, dead])
    distinct = np.unique(arrived)
    return Counts(
        produced=len(produced),
        delivered=len(delivered),
        dead_letters=len(dead),
        missing=len(np.setdiff1d(produced, distinct)),
        duplicated=len(arrived) - len(distinct),
        unexpected=len(np.setdiff1d(distinct, produced)),
    )
