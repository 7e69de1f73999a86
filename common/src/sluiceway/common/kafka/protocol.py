"""The four requests that reading a topic needs, in every version that we speak. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sluiceway.common.kafka.wire import NO_UUID, Reader, Request, Writer

EARLIEST = -2
LATEST = -1
READ_UNCOMMITTED = 0
READ_COMMITTED = 1


class TopicPartition(NamedTuple):
    """One partition of a physical topic on one cluster."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


def by_topic(partitions: Iterable[TopicPartition]) -> dict[str, list[int]]:
    """Partition numbers by topic, in the order given."""
    grouped: dict[str, list[int]] = {}
    for topic, number in partitions:
        grouped.setdefault(topic, []).append(number)
    return grouped


class Broker(NamedTuple):
    """A broker's address."""

    node: int
    host: str
    port: int


class DescribedPartition(NamedTuple):
    """A partition's leader: node -1 when there is none, epoch -1 when the broker doesn't tell."""

    number: int
    leader: int
    leader_epoch: int


class DescribedTopic(NamedTuple):
    """A topic in a metadata answer; `topic_id` is all zeros when the broker doesn't tell."""

    error_code: int
    name: str
    topic_id: bytes
    partitions: list[DescribedPartition]


class Description(NamedTuple):
    """A metadata answer."""

    brokers: list[Broker]
    topics: list[DescribedTopic]


@dataclass(frozen=True, slots=True)
class MetadataRequest(Request[Description]):
    """Brokers, and the leaders of the named topics. Never creates a topic, hence no version below 4."""

    API_KEY = 3
    OLDEST = 4
    NEWEST = 12
    FLEXIBLE_FROM = 9

    topics: Sequence[str]

    def write(self, to: Writer, version: int) -> None:
        to.count(len(self.topics))
        for name in self.topics:
            if version >= 10:
                to.uuid(NO_UUID)
            to.string(name)
            to.tags()
        to.int8(0)  # allow_auto_topic_creation
        if 8 <= version <= 10:
            to.int8(0)  # include_cluster_authorized_operations
        if version >= 8:
            to.int8(0)  # include_topic_authorized_operations
        to.tags()

    def read(self, of: Reader, version: int) -> Description:
        of.int32()  # throttle time
        brokers = [_broker(of) for _ in range(of.count())]
        of.string()  # cluster id
        of.int32()  # controller
        topics = [_topic(of, version) for _ in range(of.count())]
        return Description(brokers, topics)


def _broker(of: Reader) -> Broker:
    broker = Broker(of.int32(), of.string(), of.int32())
    of.string()  # rack
    of.tags()
    return broker


def _topic(of: Reader, version: int) -> DescribedTopic:
    error_code = of.int16()
    name = of.string()
    topic_id = of.uuid() if version >= 10 else NO_UUID
    of.int8()  # is_internal
    partitions = [_partition(of, version) for _ in range(of.count())]
    if version >= 8:
        of.int32()  # authorized operations
    of.tags()
    return DescribedTopic(error_code, name, topic_id, partitions)


def _partition(of: Reader, version: int) -> DescribedPartition:
    of.int16()  # its error repeats what the leader says
    number = of.int32()
    leader = of.int32()
    leader_epoch = of.int32() if version >= 7 else -1
    of.int32s()  # replicas
    of.int32s()  # in-sync replicas
    if version >= 5:
        of.int32s()  # offline replicas
    of.tags()
    return DescribedPartition(number, leader, leader_epoch)


class ListedOffset(NamedTuple):
    """A partition's error code and, with code 0, its offset."""

    error_code: int
    offset: int


@dataclass(frozen=True, slots=True)
class ListOffsetsRequest(Request[dict[TopicPartition, ListedOffset]]):
    """The first (`EARLIEST`) or the end (`LATEST`) offset of partitions that one broker leads.

    With `READ_COMMITTED` the end is the last stable offset: the first one of the oldest open transaction.
    """

    API_KEY = 2
    OLDEST = 1
    NEWEST = 6
    FLEXIBLE_FROM = 6

    partitions: Sequence[TopicPartition]
    timestamp: int
    isolation: int

    def write(self, to: Writer, version: int) -> None:
        to.int32(-1)  # replica id: a consumer
        if version >= 2:
            to.int8(self.isolation)
        grouped = by_topic(self.partitions)
        to.count(len(grouped))
        for topic, numbers in grouped.items():
            to.string(topic)
            to.count(len(numbers))
            for number in numbers:
                to.int32(number)
                if version >= 4:
                    to.int32(-1)  # any leader epoch
                to.int64(self.timestamp)
                to.tags()
            to.tags()
        to.tags()

    def read(self, of: Reader, version: int) -> dict[TopicPartition, ListedOffset]:
        if version >= 2:
            of.int32()  # throttle time
        listed: dict[TopicPartition, ListedOffset] = {}
        for _ in range(of.count()):
            topic = of.string()
            for _ in range(of.count()):
                partition = TopicPartition(topic, of.int32())
                error_code = of.int16()
                of.int64()  # timestamp
                listed[partition] = ListedOffset(error_code, of.int64())
                if version >= 4:
                    of.int32()  # leader epoch
                of.tags()
            of.tags()
        return listed


class EpochEnd(NamedTuple):
    """Where a leader epoch ends: `offset` is -1 when the broker doesn't know the epoch."""

    error_code: int
    leader_epoch: int
    offset: int


class EpochAsked(NamedTuple):
    """The epoch asked about, and the leader's current epoch as we know it."""

    partition: TopicPartition
    current_epoch: int
    epoch: int


@dataclass(frozen=True, slots=True)
class EpochEndRequest(Request[dict[TopicPartition, EpochEnd]]):
    """The end offsets of leader epochs (OffsetForLeaderEpoch): tells whether a log was truncated below our position."""

    API_KEY = 23
    OLDEST = 2
    NEWEST = 3
    FLEXIBLE_FROM = 4

    asked: Sequence[EpochAsked]

    def write(self, to: Writer, version: int) -> None:
        if version >= 3:
            to.int32(-1)  # replica id: a consumer
        to.count(len(self.asked))
        for (topic, number), current_epoch, epoch in self.asked:
            to.string(topic)
            to.count(1)
            to.int32(number)
            to.int32(current_epoch)
            to.int32(epoch)

    def read(self, of: Reader, version: int) -> dict[TopicPartition, EpochEnd]:
        of.int32()  # throttle time
        ends: dict[TopicPartition, EpochEnd] = {}
        for _ in range(of.count()):
            topic = of.string()
            for _ in range(of.count()):
                error_code = of.int16()
                partition = TopicPartition(topic, of.int32())
                ends[partition] = EpochEnd(error_code, of.int32(), of.int64())
        return ends


class Wanted(NamedTuple):
    """What to fetch of one partition. Offsets are Kafka offsets, `max_bytes` bytes on the wire."""

    partition: TopicPartition
    topic_id: bytes
    leader_epoch: int
    offset: int
    max_bytes: int


class Fetched(NamedTuple):
    """One partition's share of a fetch answer; `records` is a view into the answer, whole record batches."""

    partition: TopicPartition
    error_code: int
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    aborted: list[tuple[int, int]]  # producer id, first offset
    records: memoryview


class FetchAnswer(NamedTuple):
    """A fetch answer; `throttle_ms` is how long the broker asks us to wait."""

    error_code: int
    throttle_ms: int
    partitions: list[Fetched]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest(Request[FetchAnswer]):
    """Record batches of partitions that one broker leads, committed transactions only up to the last stable offset.

    Version 13 names topics by id: a re-created topic is then refused instead of being read as the old one. Where an id
    is not known, the newest version by name is used.
    """

    API_KEY = 1
    OLDEST = 4
    NEWEST = 13
    FLEXIBLE_FROM = 12

    wanted: Sequence[Wanted]
    max_wait_ms: int
    max_bytes: int
    min_bytes: int = 1

    def version(self, oldest: int, newest: int) -> int:
        by_id = newest >= 13 and all(one.topic_id != NO_UUID for one in self.wanted)
        chosen = 13 if by_id else min(11, newest)
        if chosen < max(self.OLDEST, oldest):
            self._incompatible(oldest, newest)
        return chosen

    def write(self, to: Writer, version: int) -> None:
        to.int32(-1)  # replica id: a consumer
        to.int32(self.max_wait_ms)
        to.int32(self.min_bytes)
        to.int32(self.max_bytes)
        to.int8(READ_COMMITTED)
        if version >= 7:
            to.int32(0)  # no fetch session: a lane asks for different partitions each time
            to.int32(-1)
        grouped: dict[str, list[Wanted]] = {}
        for one in self.wanted:
            grouped.setdefault(one.partition.topic, []).append(one)
        to.count(len(grouped))
        for topic, several in grouped.items():
            if version >= 13:
                to.uuid(several[0].topic_id)
            else:
                to.string(topic)
            to.count(len(several))
            for one in several:
                _write_wanted(to, version, one)
            to.tags()
        if version >= 7:
            to.count(0)  # forgotten topics
        if version >= 11:
            to.string("")  # rack
        to.tags()

    def read(self, of: Reader, version: int) -> FetchAnswer:
        names = {one.topic_id: one.partition.topic for one in self.wanted}
        throttle_ms = of.int32()
        error_code = 0
        if version >= 7:
            error_code = of.int16()
            of.int32()  # session
        partitions: list[Fetched] = []
        for _ in range(of.count()):
            topic = names.get(of.uuid(), "") if version >= 13 else of.string()
            partitions += [_read_fetched(of, version, topic) for _ in range(of.count())]
            of.tags()
        return FetchAnswer(error_code, throttle_ms, partitions)


def _write_wanted(to: Writer, version: int, one: Wanted) -> None:
    to.int32(one.partition.partition)
    if version >= 9:
        to.int32(one.leader_epoch)
    to.int64(one.offset)
    if version >= 12:
        to.int32(-1)  # last fetched epoch: for followers
    if version >= 5:
        to.int64(-1)  # log start offset: for followers
    to.int32(one.max_bytes)
    to.tags()


def _read_fetched(of: Reader, version: int, topic: str) -> Fetched:
    partition = TopicPartition(topic, of.int32())
    error_code = of.int16()
    high_watermark = of.int64()
    last_stable_offset = of.int64()
    log_start_offset = of.int64() if version >= 5 else -1
    aborted: list[tuple[int, int]] = []
    for _ in range(of.count()):
        aborted.append((of.int64(), of.int64()))
        of.tags()
    if version >= 11:
        of.int32()  # preferred read replica
    records = of.nullable_view()
    of.tags()
    return Fetched(partition, error_code, high_watermark, last_stable_offset, log_start_offset, aborted, records)
