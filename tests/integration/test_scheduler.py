"""Schedulers as processes on a real etcd and a real broker: grants, revokes, take-over, states of broken sources."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager

import httpx
import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from scheduling import spec
from sluiceway.cli.stack import EmbeddedBroker, EtcdServer
from sluiceway.cli.stack.ports import LOOPBACK, free_ports
from sluiceway.cli.stack.service import PythonService
from sluiceway.common.etcd.api import Delete, Etcd, KeyValue, Txn, created_at
from sluiceway.common.etcd.client import connect
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import (
    Condition,
    CordonRecord,
    LeaseRecord,
    LeaseState,
    PipelineState,
    ProgressRecord,
    WorkerRecord,
    decode,
    encode,
)
from sluiceway.common.resources import Resources
from sluiceway.common.settings import EtcdSettings

PARTITIONS = 6
Items = Mapping[str, KeyValue]


class World:
    """What a test sees of one fleet, and its make-believe workers."""

    def __init__(self, etcd: Etcd, keys: Keys, mirror: Mirror) -> None:
        self.etcd, self.keys, self.mirror = etcd, keys, mirror

    async def until(self, holds: Callable[[Items], bool], *, limit_s: float = 30.0) -> Items:
        async with asyncio.timeout(limit_s):
            while True:
                copy = self.mirror.snapshot()
                if self.mirror.loaded and holds(copy.items):
                    return copy.items
                await self.mirror.changed(copy.revision)

    async def apply(self, kind: str, plural: str, name: str, **fields: object) -> None:
        await self.etcd.put(self.keys.spec(plural, name), encode(spec(kind, name, **fields)))

    async def worker(self, name: str) -> int:
        lease = await self.etcd.grant(60)
        record = WorkerRecord(id=name, session=lease, capacity=Resources(cpu=1.0, memory=2**30))
        await self.etcd.put(self.keys.worker(name), encode(record), lease=lease)
        return lease

    def holders(self, items: Items) -> dict[str, int]:
        held: dict[str, int] = {}
        for key, item in items.items():
            if key.startswith(self.keys.leases):
                holder = decode(LeaseRecord, item.value).holder
                held[holder] = held.get(holder, 0) + 1
        return held

    def revoking(self, items: Items) -> list[KeyValue]:
        return [
            item
            for key, item in items.items()
            if key.startswith(self.keys.leases) and decode(LeaseRecord, item.value).state is LeaseState.REVOKING
        ]

    async def release(self, lease: KeyValue) -> None:
        partition = PartitionId.parse(lease.key.removeprefix(self.keys.leases))
        entry = self.keys.inbox_entry(decode(LeaseRecord, lease.value).holder, partition)
        await self.etcd.txn(Txn([created_at(lease.key, lease.create_revision)], [Delete(lease.key), Delete(entry)]))

    def state(self, items: Items, pipeline: str) -> PipelineState:
        item = items.get(self.keys.state(pipeline))
        return PipelineState(condition=Condition.PENDING) if item is None else decode(PipelineState, item.value)


@asynccontextmanager
async def world(server: EtcdServer, fleet: str) -> AsyncIterator[World]:
    etcd = await connect(EtcdSettings(endpoints=[server.endpoint]))
    keys = Keys(fleet)
    mirror = Mirror(etcd, keys.root)
    following = asyncio.ensure_future(mirror.run())
    try:
        await mirror.wait_for(0)
        yield World(etcd, keys, mirror)
    finally:
        following.cancel()
        await asyncio.wait([following])
        await etcd.close()


@pytest.fixture
def fleet(unique_name: Callable[[str], str]) -> str:
    return unique_name("fleet")


@pytest.fixture
def schedulers(etcd_server: EtcdServer, fleet: str) -> Iterator[list[PythonService]]:
    settings = {
        "SLUICEWAY_FLEET": fleet,
        "SLUICEWAY_ETCD__ENDPOINTS": f'["{etcd_server.endpoint}"]',
        "SLUICEWAY_SESSION_TTL_S": "2",
        "SLUICEWAY_POLL_SOURCES_S": "0.5",
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(PythonService(name, "sluiceway.scheduler", {**settings, "SLUICEWAY_ID": name}))
            for name in ("s1", "s2")
        ]


async def test_leases_follow_the_workers_through_drain_crash_and_take_over(
    etcd_server: EtcdServer, fleet: str, schedulers: list[PythonService]
) -> None:
    async with world(etcd_server, fleet) as w:
        # No cluster answers: the partitions are known from the progress of earlier times.
        await w.apply("Topic", "topics", "t", cluster="gone")
        await w.apply("Pipeline", "pipelines", "p", topics=["t"], sink={"url": "file:///tmp/sink"})
        last = PartitionId("p", "t", 0, PARTITIONS - 1)
        await w.etcd.put(w.keys.progress(last), encode(ProgressRecord(next_offset=5)))
        one = await w.worker("w1")
        await w.until(lambda items: w.holders(items) == {"w1": PARTITIONS})

        # An operator drains; the worker obeys.
        await w.worker("w2")
        await w.etcd.put(w.keys.cordon("w1"), encode(CordonRecord(worker="w1", drain=True)))
        while w.holders(w.mirror.snapshot().items) != {"w2": PARTITIONS}:
            items = await w.until(lambda items: bool(w.revoking(items)) or w.holders(items) == {"w2": PARTITIONS})
            for lease in w.revoking(items):
                await w.release(lease)
            await w.until(lambda items: not w.revoking(items))
        assert w.keys.cordon("w1") in w.mirror.snapshot().items

        # The leader dies, and a worker too: the other scheduler takes over and places what is left.
        await w.etcd.delete(w.keys.cordon("w1"))
        leader = (await w.until(lambda items: w.keys.leader in items))[w.keys.leader]
        by_name = {service.name: service for service in schedulers}
        by_name.pop(leader.value.decode()).kill()
        (survivor,) = by_name.values()
        (two,) = {item.lease for key, item in w.mirror.snapshot().items.items() if key == w.keys.worker("w2")}
        await w.etcd.revoke(two)
        items = await w.until(lambda items: w.holders(items) == {"w1": PARTITIONS})
        assert items[w.keys.leader].value.decode() == survivor.name
        assert items[w.keys.leader].create_revision > leader.create_revision
        terms = {decode(LeaseRecord, item.value).term for key, item in items.items() if key.startswith(w.keys.leases)}
        assert terms == {items[w.keys.leader].create_revision}
        assert all(item.lease == one for key, item in items.items() if key.startswith(w.keys.leases))

        # SIGTERM resigns at once and exits 0.
        survivor.terminate()
        await w.until(lambda items: w.keys.leader not in items, limit_s=1.0)


async def test_a_broken_source_is_its_pipelines_state_and_no_others(
    etcd_server: EtcdServer,
    embedded_broker: EmbeddedBroker,
    fleet: str,
    schedulers: list[PythonService],
    unique_name: Callable[[str], str],
) -> None:
    topic = unique_name("logs")
    closed = free_ports(["closed"])["closed"]
    admin = AIOKafkaAdminClient(bootstrap_servers=embedded_broker.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    sink = {"url": "file:///tmp/sink"}
    async with world(etcd_server, fleet) as w:
        await w.apply("Cluster", "clusters", "up", bootstrap=[embedded_broker.bootstrap])
        await w.apply("Cluster", "clusters", "down", bootstrap=[f"{LOOPBACK}:{closed}"])
        await w.apply("Topic", "topics", "good", cluster="up", physical=topic)
        await w.apply("Topic", "topics", "missing", cluster="up", physical=topic + "-missing")
        await w.apply("Topic", "topics", "unreachable", cluster="down")
        for name in ("good", "missing", "unreachable"):
            await w.apply("Pipeline", "pipelines", name, topics=[name], sink=sink)
        await w.worker("w1")
        broken = Condition.SOURCE_UNAVAILABLE
        items = await w.until(
            lambda items: (
                w.state(items, "good").condition is Condition.RUNNING
                and w.state(items, "missing").condition is w.state(items, "unreachable").condition is broken
            )
        )
        assert w.holders(items) == {"w1": PARTITIONS}
        assert "does not exist" in w.state(items, "missing").message
        assert f"{LOOPBACK}:{closed}" in w.state(items, "unreachable").message

        # The topic appears: the pipeline runs without anyone's help.
        admin = AIOKafkaAdminClient(bootstrap_servers=embedded_broker.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(topic + "-missing", 2, 1)])
        await admin.close()
        await w.until(lambda items: w.state(items, "missing").condition is Condition.RUNNING)

    async with httpx.AsyncClient() as http:
        for service in schedulers:
            leases = msgspec.json.decode((await http.get(f"{service.url}/api/v1/leases?pipeline=good")).content)
            assert len(leases) == PARTITIONS
            pipelines = msgspec.json.decode((await http.get(f"{service.url}/api/v1/pipelines")).content)
            assert [pipeline["name"] for pipeline in pipelines] == ["good", "missing", "unreachable"]
            (worker,) = msgspec.json.decode((await http.get(f"{service.url}/api/v1/workers")).content)
            assert worker["leases"] == PARTITIONS + 2
            status = (await http.get(f"{service.url}/api/v1/status")).json()
            assert status["unreadable"] == {}
            assert "sluiceway_scheduler_leading" in (await http.get(f"{service.url}/metrics")).text


def test_without_etcd_it_waits_and_still_stops_cleanly() -> None:
    closed = free_ports(["closed"])["closed"]
    service = PythonService(
        "waiting",
        "sluiceway.scheduler",
        {"SLUICEWAY_ETCD__ENDPOINTS": f'["{LOOPBACK}:{closed}"]', "SLUICEWAY_ETCD__TIMEOUT_S": "0.2"},
    )
    process = subprocess.Popen(
        [*service.command(), "--etcd", f"{LOOPBACK}:{closed}", "--log-level", "info"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr as lines:
        while "waiting_for_etcd" not in (line := lines.readline()):
            assert line, "the scheduler ended"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_wrong_settings_are_all_named_and_exit_with_2() -> None:
    service = PythonService("wrong", "sluiceway.scheduler", {})
    ended = subprocess.run(
        [*service.command(), "--headroom", "7", "--session-ttl-s", "many"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "SLUICEWAY_HEADROOM" in ended.stderr
    assert "SLUICEWAY_SESSION_TTL_S" in ended.stderr
