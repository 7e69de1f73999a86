"""What fetching needs of a cluster; `sluiceway.common.kafka.KafkaCluster` is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from sluiceway.common.errors import SluicewayError
from sluiceway.common.kafka import TopicLayout, TopicPartition
from sluiceway.common.kafka.protocol import EpochAsked, EpochEnd
from sluiceway.common.kafka.wire import Request

AnswerT = TypeVar("AnswerT")


class Cluster(Protocol):
    """See `KafkaCluster` for what each promises."""

    async def describe(self, topics: Iterable[str]) -> dict[str, TopicLayout | SluicewayError]: ...

    async def offsets(
        self, partitions: Iterable[TopicPartition], *, committed: bool = True
    ) -> dict[TopicPartition, tuple[int, int] | SluicewayError]: ...

    async def epoch_ends(
        self, node: int, asked: Sequence[EpochAsked], *, lane: str = ""
    ) -> dict[TopicPartition, EpochEnd]: ...

    async def send(self, node: int, request: Request[AnswerT], *, lane: str = "") -> AnswerT: ...

    async def close_lane(self, node: int, lane: str) -> None: ...
