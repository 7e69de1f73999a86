"""Which partition travels over which lane, and what is asked for."""

from __future__ import annotations

import pytest

from sluiceway.common.kafka import TopicPartition
from sluiceway.worker.fetch.lanes import Candidate, LanePolicy, asks, backoff_s, hot_partitions, smoothed_rate

A, B, C = (TopicPartition("t", number) for number in range(3))
POLICY = LanePolicy(hot_bytes_per_s=100, cold_bytes_per_s=20, max_hot=2)


def candidate(partition: TopicPartition, *, credit: int = 10, has_more: bool = False, served: int = 0) -> Candidate:
    return Candidate(partition=partition, credit=credit, has_more=has_more, served=served)


def test_a_partition_gets_its_own_lane_above_the_upper_rate_and_keeps_it_above_the_lower() -> None:
    rates = {A: 99.0, B: 100.0, C: 20.0}
    assert hot_partitions(rates, [], POLICY) == {B}
    assert hot_partitions(rates, [C], POLICY) == {B, C}
    assert hot_partitions({C: 19.9}, [C], POLICY) == frozenset()


def test_only_the_hottest_get_lanes_of_their_own() -> None:
    assert hot_partitions({A: 300.0, B: 200.0, C: 400.0}, [B], POLICY) == {A, C}
    assert hot_partitions({A: 300.0, B: 300.0, C: 300.0}, [], POLICY) == {A, B}


def test_partitions_without_room_are_not_asked_for() -> None:
    assert asks([candidate(A, credit=0), candidate(B)], max_partition_bytes=5) == [(B, 5)]


def test_partitions_known_to_have_more_go_first_the_longest_unserved_ahead() -> None:
    several = [candidate(A, served=1), candidate(B, has_more=True, served=9), candidate(C, has_more=True, served=4)]
    assert [partition for partition, _ in asks(several, max_partition_bytes=5)] == [C, B, A]


def test_every_partition_of_a_busy_lane_is_first_within_as_many_turns() -> None:
    served = dict.fromkeys([A, B, C], 0)
    first = []
    for turn in range(1, 7):
        several = [candidate(partition, has_more=True, served=served[partition]) for partition in served]
        first.append(asks(several, max_partition_bytes=5)[0][0])
        served[first[-1]] = turn  # the broker filled the answer with it alone
    assert first == [A, B, C, A, B, C]


def test_a_rate_follows_what_arrives() -> None:
    assert smoothed_rate(0.0, received=1000, elapsed_s=20.0) == pytest.approx(50.0)
    assert smoothed_rate(100.0, received=0, elapsed_s=1.0) == pytest.approx(90.0)
    assert smoothed_rate(100.0, received=5, elapsed_s=0.0) == 100.0


def test_waiting_doubles_up_to_a_bound() -> None:
    assert [backoff_s(attempts) for attempts in (0, 1, 2, 3, 50)] == [0.0, 0.1, 0.2, 0.4, 5.0]
