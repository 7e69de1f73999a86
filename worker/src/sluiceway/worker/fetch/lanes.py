"""Which partitions travel over which connection, and what one request asks for. Pure.

A broker answers one connection in order, so a lane is the unit of isolation: a hot partition has its own, cold ones of
a broker share one whose single request asks only for partitions that have room for more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sluiceway.common.kafka.protocol import TopicPartition

SHARED: Final = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Sizes in bytes, times in seconds."""

    buffer_bytes: int = 4 * 2**20  # fetched and not taken, a partition
    partition_bytes: int = 2**20  # asked for at once, a partition in the shared lane
    answer_bytes: int = 8 * 2**20  # asked for at once, a lane
    block_bytes: int = 4 * 2**20  # decoded at once, a partition
    min_bytes: int = 2**14  # an answer waits for this much, so that trickles don't cost a request a record,
    max_wait_s: float = 0.25  # but no longer than this; a partition that joins a lane waits no longer either
    refresh_s: float = 60.0  # leaders and topic ids are asked for again at least this often
    balance_s: float = 2.0  # how often partitions may change lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePolicy:
    """When a partition gets its own lane; the gap between the two rates keeps it from going back and forth."""

    hot_bytes_per_s: float = 2 * 2**20
    cold_bytes_per_s: float = 2**19
    max_hot: int = 16  # connections of their own, over all brokers


def hot_partitions(
    rates: Mapping[TopicPartition, float], hot_now: Iterable[TopicPartition], policy: LanePolicy
) -> frozenset[TopicPartition]:
    """Which partitions get their own lane, given their recent bytes per second. Ties go to the lower name."""
    kept = frozenset(hot_now)
    hot = [
        (-rate, partition)
        for partition, rate in rates.items()
        if rate >= (policy.cold_bytes_per_s if partition in kept else policy.hot_bytes_per_s)
    ]
    return frozenset(partition for _, partition in sorted(hot)[: policy.max_hot])


def lane_name(partition: TopicPartition, *, hot: bool) -> str:
    """The lane that a partition belongs to on its leader."""
    return f"{partition.topic}/{partition.partition}" if hot else SHARED


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A partition that could be asked for: `credit` is how many bytes it has room for."""

    partition: TopicPartition
    credit: int
    has_more: bool  # the broker holds more than it last gave
    served: int  # the lane's turn that last gave it records


def asks(candidates: Iterable[Candidate], *, max_partition_bytes: int) -> list[tuple[TopicPartition, int]]:
    """What to ask for, in order, with bytes a partition.

    Brokers fill an answer in the order asked until it is full, and give a batch that is larger than the room only to
    the first partition. So those known to have more go first, the longest unserved ahead: each is first at some time.
    """
    ordered = sorted(candidates, key=lambda one: (not one.has_more, one.served, one.partition))
    return [(one.partition, min(one.credit, max_partition_bytes)) for one in ordered if one.credit > 0]


def smoothed_rate(rate: float, *, received: int, elapsed_s: float, over_s: float = 10.0) -> float:
    """A moving average of bytes per second, after `received` bytes in `elapsed_s` seconds."""
    if elapsed_s <= 0:
        return rate
    weight = min(1.0, elapsed_s / over_s)
    return rate + weight * (received / elapsed_s - rate)


def backoff_s(attempts: int, *, first_s: float = 0.1, longest_s: float = 5.0) -> float:
    """How long to wait after this many failures in a row."""
    return min(longest_s, first_s * 2.0 ** min(attempts - 1, 16)) if attempts > 0 else 0.0
