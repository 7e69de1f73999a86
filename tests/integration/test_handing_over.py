"""SIGTERM: what a process holds goes to others at once, long before anything would time out.

The sessions last two minutes here, so that whatever moves was handed over and did not expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleets import Fleet, Flow, create_topic, ends_of, file_sink, offsets_in, producing
from sluiceway.cli.demo.fleet import FleetOptions, LocalFleet
from sluiceway.cli.stack import EmbeddedBroker

TTL_S = 120
HANDED_OVER_S = 15.0  # on a busy machine; it takes one or two seconds
PARTITIONS = 6

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    options = FleetOptions(
        directory=tmp_path_factory.mktemp("fleet"),
        workers=2,
        schedulers=2,
        session_ttl_s=TTL_S,
        scheduler_ttl_s=TTL_S,
    )
    with LocalFleet(options) as fleet:
        assert isinstance(fleet.stack.broker, EmbeddedBroker)
        yield fleet


@pytest.fixture
async def fleet(local: LocalFleet) -> AsyncIterator[Fleet]:
    async with Fleet.of(local) as fleet:
        yield fleet


async def leader(fleet: Fleet) -> str:
    item = await fleet.etcd.get(fleet.local.keys.leader)
    return item.value.decode() if item else ""


async def test_a_terminated_worker_drains_and_exits_0_and_nothing_is_doubled(fleet: Fleet, tmp_path: Path) -> None:
    flow = Flow(name="drained", sink=file_sink(tmp_path), bootstrap=fleet.local.stack.bootstrap, partitions=PARTITIONS)
    await create_topic(flow.bootstrap, flow.name, PARTITIONS)
    await fleet.apply(flow)
    view = await fleet.until(
        lambda view: len(view.holders) == PARTITIONS and len({holder for holder, _ in view.holders.values()}) == 2,
        "both workers are to hold partitions",
    )
    victim = min(holder for holder, _ in view.holders.values())
    service = fleet.local.workers[victim]
    stop = asyncio.Event()
    pouring = asyncio.create_task(pour(flow, stop))
    await fleet.until(lambda view: view.delivered > 200, "records are to flow")
    ending = asyncio.create_task(asyncio.to_thread(service.terminate))
    await fleet.until(
        lambda view: len(view.holders) == PARTITIONS and not view.held_by(victim),
        f"the partitions of {victim} are to be held by others",
        limit_s=HANDED_OVER_S,
    )
    await ending
    assert service.exit_code == 0
    before = fleet.seen.look().delivered
    await fleet.until(lambda view: view.delivered > before + 200, "records are to flow on")
    stop.set()
    await pouring
    ends = await ends_of(flow.bootstrap, flow.name, PARTITIONS)
    await fleet.delivers(flow, ends)
    assert offsets_in(tmp_path) == sorted(offset for end in ends for offset in range(end))


async def pour(flow: Flow, stop: asyncio.Event) -> None:
    async with producing(flow.bootstrap) as producer:
        number = 0
        while not stop.is_set():
            for partition in range(PARTITIONS):
                await producer.send(flow.name, b'{"n": %d}' % number, partition=partition)
                number += 1
            await producer.flush()


async def test_when_the_leading_scheduler_is_terminated_the_follower_leads_at_once(
    fleet: Fleet, tmp_path: Path
) -> None:
    former = await leader(fleet)
    service = fleet.local.schedulers[former]
    await asyncio.to_thread(service.terminate)
    assert service.exit_code == 0
    async with asyncio.timeout(HANDED_OVER_S):
        while await leader(fleet) in ("", former):
            await asyncio.sleep(0.05)
    flow = Flow(name="after", sink=file_sink(tmp_path), bootstrap=fleet.local.stack.bootstrap)
    await create_topic(flow.bootstrap, flow.name)
    await fleet.apply(flow)
    await fleet.state(flow, "Running")
