"""Offsets that a broker no longer has, on Apache Kafka with real processes: records removed, a topic created again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from fleets import Fleet, Flow, administering, create_topic, document, file_sink, offsets_in, produce_numbers
from sluiceway.cli.demo.fleet import FleetOptions, LocalFleet
from sluiceway.cli.stack.kafka_jars import kafka_available
from sluiceway.common.clock import SystemClock
from sluiceway.common.ids import PartitionId

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    if reason := kafka_available():
        pytest.skip(f"Apache Kafka can't be had: {reason}")
    folder = tmp_path_factory.mktemp("fleet")
    with LocalFleet(FleetOptions(directory=folder, broker="kafka", workers=1)) as fleet:
        yield fleet


@pytest.fixture
async def fleet(local: LocalFleet) -> AsyncIterator[Fleet]:
    async with Fleet.of(local) as fleet:
        yield fleet


async def with_records_removed(fleet: Fleet, flow: Flow) -> None:
    """Ten records are delivered; of ten more, the first five are removed before anybody reads them."""
    await create_topic(flow.bootstrap, flow.name)
    await produce_numbers(flow, 0, 10)
    await fleet.apply(flow)
    await fleet.delivers(flow, [10])
    await fleet.apply(paused := replace(flow, pipeline={**flow.pipeline, "paused": True}))
    await fleet.state(paused, "Paused")
    await fleet.until(lambda view: flow.partition() not in view.holders, "its lease is to be given back")
    await produce_numbers(flow, 10, 20)
    async with administering(flow.bootstrap) as admin:
        await admin.delete_records({TopicPartition(flow.name, 0): RecordsToDelete(before_offset=15)})
    await fleet.apply(flow)


async def test_removed_records_quarantine_the_partition_with_the_facts_and_what_to_do(
    fleet: Fleet, tmp_path: Path
) -> None:
    flow = Flow(name="removed-fail", sink=file_sink(tmp_path), bootstrap=fleet.local.stack.bootstrap)
    await with_records_removed(fleet, flow)
    state = await fleet.state(
        flow, "Degraded", "quarantined", "offset 10 is outside of the broker's range 15 to 20", "sluiceway retry"
    )
    assert (state.quarantined, state.delivered, state.leased) == (1, 10, 0)

    chosen = replace(flow, pipeline={"on_offset_out_of_range": "earliest"})
    await fleet.apply(chosen)
    await fleet.etcd.delete(fleet.local.keys.failure(flow.partition()))  # what `sluiceway retry` does
    await fleet.delivers(chosen, [20])
    await fleet.state(chosen, "Running")
    assert offsets_in(tmp_path) == [*range(10), *range(15, 20)]


async def test_removed_records_are_passed_and_counted_as_lost_by_policy(fleet: Fleet, tmp_path: Path) -> None:
    flow = Flow(
        name="removed-earliest",
        sink=file_sink(tmp_path),
        bootstrap=fleet.local.stack.bootstrap,
        pipeline={"on_offset_out_of_range": "earliest"},
    )
    await with_records_removed(fleet, flow)
    await fleet.delivers(flow, [20])
    progress = fleet.seen.look().progress[flow.partition()]
    assert (progress.lost, progress.delivered, progress.next_offset) == (5, 15, 20)
    assert offsets_in(tmp_path) == [*range(10), *range(15, 20)]


@pytest.mark.parametrize("policy", ["fail", "earliest", "latest"])
async def test_a_topic_that_was_created_again_is_never_taken_for_the_former_one(
    fleet: Fleet, tmp_path: Path, policy: str
) -> None:
    flow = Flow(
        name=f"again-{policy}",
        sink=file_sink(tmp_path),
        bootstrap=fleet.local.stack.bootstrap,
        pipeline={"on_offset_out_of_range": policy},
    )
    await create_topic(flow.bootstrap, flow.name)
    await produce_numbers(flow, 0, 10)
    await fleet.apply(flow)
    await fleet.delivers(flow, [10])
    async with administering(flow.bootstrap) as admin:
        await admin.delete_topics([flow.name])
    await create_topic(flow.bootstrap, flow.name)
    await produce_numbers(flow, 0, 30)
    state = await fleet.state(
        flow, "Degraded", "quarantined", "was deleted and created again", "0 to 30", "a Topic spec of another name"
    )
    assert state.delivered == 10
    assert offsets_in(tmp_path) == list(range(10))

    # What the message advises.
    renamed = f"{flow.name}-new"
    (_, _, pipeline) = flow.documents()
    pipeline["spec"]["topics"] = [renamed]
    topic = document("Topic", renamed, {"cluster": flow.name, "physical": flow.name})
    await fleet.local.apply(fleet.etcd, [topic, pipeline], SystemClock())
    partition = PartitionId(flow.name, renamed, 0, 0)
    await fleet.until(lambda view: view.next_offset(partition) == 30, "the new topic is to be delivered")
    assert offsets_in(tmp_path) == sorted([*range(10), *range(30)])
