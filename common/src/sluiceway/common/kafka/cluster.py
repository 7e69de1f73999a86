"""One Kafka cluster, as the scheduler and the workers see it: its partitions, where they end, and requests to leaders.

Nothing here runs in the background and nothing is opened before it is needed. Every call ends within about the request
timeout, with an answer or with an error of ours. No call creates a topic.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

from sluiceway.common.errors import AccessDenied, SluicewayError, SourceUnavailable
from sluiceway.common.kafka import failures
from sluiceway.common.kafka.connections import Address, Connections
from sluiceway.common.kafka.protocol import (
    EARLIEST,
    LATEST,
    READ_COMMITTED,
    READ_UNCOMMITTED,
    Broker,
    DescribedTopic,
    Description,
    EpochAsked,
    EpochEnd,
    EpochEndRequest,
    ListedOffset,
    ListOffsetsRequest,
    MetadataRequest,
    TopicPartition,
)
from sluiceway.common.kafka.security import credentials
from sluiceway.common.kafka.wire import NO_UUID, Request
from sluiceway.common.specs.models import ClusterSpec

AnswerT = TypeVar("AnswerT")

_PARTITIONS_A_REQUEST = 2000  # so that decoding one answer doesn't hold the event loop for long


class Leader(NamedTuple):
    """Who leads a partition; `epoch` is -1 when the cluster doesn't tell."""

    node: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicLayout:
    """A topic on the cluster: `topic_id` is all zeros when the cluster doesn't tell; a leader may be None."""

    name: str
    topic_id: bytes
    leaders: dict[int, Leader | None]


def connect(spec: ClusterSpec, *, client_id: str, request_timeout_s: float = 30.0) -> KafkaCluster:
    """A cluster to ask; opens no connection yet. Close it with `close`."""
    return KafkaCluster(spec, client_id=client_id, request_timeout_s=request_timeout_s)


class KafkaCluster:
    """See `connect`."""

    def __init__(self, spec: ClusterSpec, *, client_id: str, request_timeout_s: float) -> None:
        self._bootstrap = [_address(text) for text in spec.bootstrap]
        self._timeout_s = request_timeout_s
        self._brokers: dict[int, Address] = {}
        self._connections = Connections(
            credentials=partial(credentials, spec), client_id=client_id, timeout_s=request_timeout_s
        )

    async def partitions(self, topics: Iterable[str]) -> dict[str, int | SluicewayError]:
        """The number of partitions of each topic, or why it isn't known: missing (SourceUnavailable), not permitted
        (AccessDenied).

        Raises:
            SourceUnavailable: no broker answers.
            AccessDenied: no broker accepts our credentials.
        """
        described = await self.describe(topics)
        return {
            name: layout if isinstance(layout, SluicewayError) else len(layout.leaders)
            for name, layout in described.items()
        }

    async def describe(self, topics: Iterable[str]) -> dict[str, TopicLayout | SluicewayError]:
        """Ids and leaders of topics, always freshly asked; errors as in `partitions`."""
        names = sorted(set(topics))
        described: dict[str, TopicLayout | SluicewayError] = {
            name: SourceUnavailable(f"topic {name}: the broker does not mention it") for name in names
        }
        for topic in (await self._metadata(names)).topics:
            described[topic.name] = _layout(topic)
        return described

    async def offsets(
        self, partitions: Iterable[TopicPartition], *, committed: bool = True
    ) -> dict[TopicPartition, tuple[int, int] | SluicewayError]:
        """The first offset and the end of each partition, or why they aren't known.

        The end is the last stable offset: what can be read and delivered now, since only committed transactions are.
        So the lag of a pipeline that has delivered all it may is 0 even while a producer's transaction is open. With
        `committed=False` the end is the high watermark.

        Raises: as `partitions`.
        """
        found: dict[TopicPartition, tuple[int, int] | SluicewayError] = {}
        open_: Collection[TopicPartition] = set(partitions)
        isolation = READ_COMMITTED if committed else READ_UNCOMMITTED
        for _ in range(3):  # a leader may move between the two questions
            asked = await self._ask_offsets(open_, isolation)
            found.update({partition: bounds for partition, (bounds, _) in asked.items()})
            open_ = [partition for partition, (_, is_stale) in asked.items() if is_stale]
            if not open_:
                break
        return found

    async def epoch_ends(
        self, node: int, asked: Sequence[EpochAsked], *, lane: str = ""
    ) -> dict[TopicPartition, EpochEnd]:
        """Where leader epochs end, by the word of one broker. Raises as `send`."""
        return await self.send(node, EpochEndRequest(asked), lane=lane)

    async def send(self, node: int, request: Request[AnswerT], *, lane: str = "") -> AnswerT:
        """Sends a request to a broker over the lane's own connection.

        Raises:
            SourceUnavailable: the broker is unknown, unreachable, silent or too old.
            AccessDenied: it refuses our credentials.
        """
        address = self._brokers.get(node)
        if address is None:
            raise SourceUnavailable(f"broker {node} is not known in the cluster")
        return await self._connections.send(address, request, lane=lane)

    async def close_lane(self, node: int, lane: str) -> None:
        """Closes a lane's connection to a broker."""
        address = self._brokers.get(node)
        if address is not None:
            await self._connections.close_lane(address, lane)

    async def close(self) -> None:
        """Closes all connections."""
        await self._connections.close()

    async def _metadata(self, topics: Sequence[str]) -> Description:
        """Asks brokers in turn, those first to which a connection is open, all within the request timeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        candidates = self._candidates()
        problems: list[SluicewayError] = []
        for tried, address in enumerate(candidates):
            share_s = max(0.05, (deadline - loop.time()) / (len(candidates) - tried))
            try:
                async with asyncio.timeout(share_s):
                    description = await self._connections.send(address, MetadataRequest(topics))
            except (SluicewayError, TimeoutError) as error:
                await self._connections.close_lane(address, "")  # the next call shall not begin with a silent broker
                problems.append(failures.wrapped(error, f"broker {address[0]}:{address[1]}"))
                continue
            if description.brokers:
                self._learn(description.brokers)
                return description
            problems.append(SourceUnavailable(f"broker {address[0]}:{address[1]} knows of no brokers yet"))
        raise _summary(problems)

    def _candidates(self) -> list[Address]:
        known = list(dict.fromkeys([*self._brokers.values(), *self._bootstrap]))
        random.shuffle(known)
        return sorted(known, key=lambda address: not self._connections.is_open(address))

    def _learn(self, brokers: Sequence[Broker]) -> None:
        self._brokers = {broker.node: (broker.host, broker.port) for broker in brokers}

    async def _ask_offsets(
        self, partitions: Collection[TopicPartition], isolation: int
    ) -> dict[TopicPartition, tuple[tuple[int, int] | SluicewayError, bool]]:
        """One round: bounds or the error, and whether another round may help."""
        described = await self.describe({topic for topic, _ in partitions})
        asked: dict[TopicPartition, tuple[tuple[int, int] | SluicewayError, bool]] = {}
        by_node: dict[int, list[TopicPartition]] = {}
        for partition in sorted(partitions):
            leader = _leader(described[partition.topic], partition)
            if isinstance(leader, SluicewayError):
                asked[partition] = (leader, False)
            else:
                by_node.setdefault(leader.node, []).append(partition)
        shares = [
            (node, led[at : at + _PARTITIONS_A_REQUEST])
            for node, led in by_node.items()
            for at in range(0, len(led), _PARTITIONS_A_REQUEST)
        ]
        for answered in await asyncio.gather(*(self._ask_leader(node, led, isolation) for node, led in shares)):
            asked.update(answered)
        return asked

    async def _ask_leader(
        self, node: int, led: Sequence[TopicPartition], isolation: int
    ) -> dict[TopicPartition, tuple[tuple[int, int] | SluicewayError, bool]]:
        try:
            first = await self.send(node, ListOffsetsRequest(led, EARLIEST, isolation))
            end = await self.send(node, ListOffsetsRequest(led, LATEST, isolation))
        except SluicewayError as error:
            return dict.fromkeys(led, (error, isinstance(error, SourceUnavailable)))
        return {partition: _bounds(partition, first.get(partition), end.get(partition)) for partition in led}


def _bounds(
    partition: TopicPartition, first: ListedOffset | None, end: ListedOffset | None
) -> tuple[tuple[int, int] | SluicewayError, bool]:
    if first is None or end is None:
        return SourceUnavailable(f"partition {partition}: the broker does not mention it"), False
    code = first.error_code or end.error_code
    if code:
        return failures.failure(code, f"partition {partition}"), code in failures.STALE_LEADER
    return (first.offset, end.offset), False


def _layout(topic: DescribedTopic) -> TopicLayout | SluicewayError:
    if topic.error_code:
        return failures.failure(topic.error_code, f"topic {topic.name}")
    leaders = {number: Leader(node, epoch) if node >= 0 else None for number, node, epoch in sorted(topic.partitions)}
    return TopicLayout(name=topic.name, topic_id=topic.topic_id or NO_UUID, leaders=leaders)


def _leader(layout: TopicLayout | SluicewayError, partition: TopicPartition) -> Leader | SluicewayError:
    if isinstance(layout, SluicewayError):
        return layout
    if partition.partition not in layout.leaders:
        return SourceUnavailable(f"partition {partition} does not exist: the topic has {len(layout.leaders)}")
    return layout.leaders[partition.partition] or SourceUnavailable(f"partition {partition} has no leader now")


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _summary(problems: Sequence[SluicewayError]) -> SluicewayError:
    """Refused credentials are the better thing to say: an operator must act."""
    kind: Callable[[str], SluicewayError] = SourceUnavailable
    if problems and all(isinstance(problem, AccessDenied) for problem in problems):
        kind = AccessDenied
    told = "; ".join(dict.fromkeys(map(str, problems)))
    return kind(f"no broker of the cluster can be asked: {told}")
