"""Kills and freezes workers and the leading scheduler while records flow, then compares source and sink.

Apache Kafka, etcd and an S3 store; two schedulers and three workers as processes of their own. The acts, their order
and their victims come from a seed, which is printed with the facts. `CHAOS_RUNS=20` runs twenty seeds in a row,
`CHAOS_SEED` names the first.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from sluiceway.cli.demo.conductor import Watching, delivered, watching
from sluiceway.cli.demo.fleet import FleetOptions, LocalFleet
from sluiceway.cli.demo.generate import Traffic
from sluiceway.cli.demo.pace import Pace
from sluiceway.cli.demo.pour import Poured, create_topics, pour
from sluiceway.cli.demo.sink import index_sink
from sluiceway.cli.demo.sources import GENERATED_TOPIC, generated
from sluiceway.cli.demo.verify import Verification, verify
from sluiceway.cli.demo.watch import FleetView
from sluiceway.cli.stack.kafka_jars import kafka_available
from sluiceway.common.clock import SystemClock
from sluiceway.common.etcd.api import Etcd

FIRST_SEED = int(os.environ.get("CHAOS_SEED", "1"))
RUNS = int(os.environ.get("CHAOS_RUNS", "1"))

RECORDS = 60_000
RECORDS_PER_SECOND = 1_500  # until every act is done
PARTITIONS = 9
TTL_S = 3
LIMIT_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.servers, pytest.mark.timeout(240)]

Act = Callable[[], Awaitable[str]]


class Chaos:
    """Does the acts. Each returns what it did, once the fleet has got over it; what was killed is replaced."""

    def __init__(self, fleet: LocalFleet, etcd: Etcd, seen: Watching, random: Random) -> None:
        self._fleet, self._etcd, self._seen, self._random = fleet, etcd, seen, random
        self._started = fleet.options.workers + fleet.options.schedulers

    async def kill_worker(self) -> str:
        victim, held = await self._busy_worker()
        await asyncio.to_thread(self._fleet.workers.pop(victim).kill)
        self._fleet.launch_worker(self._new_name("worker"))
        await self._others_hold(victim, held)
        return f"killed {victim} with {held} partitions"

    async def freeze_worker(self) -> str:
        victim, held = await self._busy_worker()
        self._fleet.workers[victim].pause()
        await self._others_hold(victim, held)
        self._fleet.workers[victim].resume()  # a zombie now: it still believes in its leases
        await self._seen.until(
            lambda view: victim in view.loads, limit_s=LIMIT_S, what=f"waiting for {victim} to come back"
        )
        return f"froze {victim} with {held} partitions past its TTL, and thawed it"

    async def kill_leader(self) -> str:
        leader = await self._leader()
        await asyncio.to_thread(self._fleet.schedulers.pop(leader).kill)
        self._fleet.launch_scheduler(self._new_name("scheduler"))
        await self._another_leads(leader)
        return f"killed the leading {leader}"

    async def freeze_leader(self) -> str:
        leader = await self._leader()
        self._fleet.schedulers[leader].pause()
        await self._another_leads(leader)
        self._fleet.schedulers[leader].resume()  # it still believes in its term: etcd refuses what it writes
        return f"froze the leading {leader} until another led, and thawed it"

    async def _another_leads(self, former: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await self._leader() in ("", former):
                await asyncio.sleep(0.1)

    async def _busy_worker(self) -> tuple[str, int]:
        """A worker that holds partitions, after more records have been delivered than before."""
        before = self._seen.look().delivered
        view = await self._seen.until(
            lambda view: view.delivered > before and len(view.holders) == PARTITIONS,
            limit_s=LIMIT_S,
            what="waiting for records to flow",
        )
        holders = sorted({holder for holder, _ in view.holders.values()} & self._fleet.workers.keys())
        victim = self._random.choice(holders)
        return victim, len(view.held_by(victim))

    async def _others_hold(self, victim: str, held: int) -> None:
        def moved(view: FleetView) -> bool:
            return len(view.holders) == PARTITIONS and not view.held_by(victim)

        await self._seen.until(moved, limit_s=LIMIT_S, what=f"waiting for the {held} partitions of {victim}")

    async def _leader(self) -> str:
        item = await self._etcd.get(self._fleet.keys.leader)
        return item.value.decode() if item else ""

    def _new_name(self, kind: str) -> str:
        self._started += 1
        return f"{kind}-{self._started}"


async def run_chaos(folder: Path, seed: int) -> tuple[Verification, list[str]]:
    random, clock = Random(seed), SystemClock()
    options = FleetOptions(
        directory=folder, broker="kafka", schedulers=2, session_ttl_s=TTL_S, scheduler_ttl_s=TTL_S, workers=3
    )
    facts: list[str] = []
    with LocalFleet(options) as fleet:
        async with watching(fleet, facts.append) as (etcd, seen):
            chaos = Chaos(fleet, etcd, seen, random)
            acts: list[Act] = [chaos.kill_worker, chaos.freeze_worker, chaos.kill_leader, chaos.freeze_leader]
            random.shuffle(acts)
            await create_topics(fleet.stack.bootstrap, [GENERATED_TOPIC], PARTITIONS)
            await fleet.apply(etcd, fleet.documents([GENERATED_TOPIC], max_age_s=0.5), clock)
            poured = Poured()
            pace = Pace(clock, brake_after=0, brake_rate=RECORDS_PER_SECOND)
            traffic = Traffic(records=RECORDS, seed=seed, start_ms=int(clock.now() * 1000))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pour(fleet.stack.bootstrap, [generated(traffic)], poured, pace.gate))
                facts += [await act() for act in acts]
                pace.release()
            await delivered(seen, poured.by_partition)
            facts.append(f"{seen.moves} moves")
        await asyncio.to_thread(fleet.stop_services)
        sink_folder = await asyncio.to_thread(fleet.export)
        sink = index_sink((sink_folder / "data").rglob("*.parquet"), (sink_folder / "_dead_letters").rglob("*.parquet"))
        facts.append(f"{sink.files} files, {sink.empty_files} aborted")
        return await verify(fleet.stack.bootstrap, {GENERATED_TOPIC: PARTITIONS}, sink), facts


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + RUNS))
async def test_every_record_arrives_once_whatever_is_killed_or_frozen(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := kafka_available():
        pytest.skip(f"Apache Kafka can't be had: {reason}")

    found, facts = await run_chaos(tmp_path, seed)

    counts = {what: found.total(what) for what in ("produced", "delivered", "dead_letters", "missing", "duplicated")}
    with capsys.disabled():
        sys.stdout.write("\n" + json.dumps({"seed": seed, **counts, "facts": facts}) + "\n")
    assert found.exact, (seed, counts, found.different, facts)
    assert counts["produced"] == RECORDS
    assert found.values_compared == RECORDS
