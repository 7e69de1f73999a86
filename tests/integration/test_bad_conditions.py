"""What a fleet says and does when something that it depends on is missing, refuses or is down.

One fleet of real processes for all tests. Each test breaks one thing for one pipeline: its state names the cause and
what to do, no process ends, another pipeline on the same workers goes on meanwhile, and when the cause is mended the
pipeline delivers everything, once, without anybody's help.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleets import (
    Fleet,
    Flow,
    create_topic,
    ends_of,
    file_sink,
    offsets_in,
    offsets_in_bucket,
    produce,
    produce_numbers,
)
from forgetful_store import ForgetfulStore
from sluiceway.cli.demo.fleet import FleetOptions, LocalFleet
from sluiceway.cli.stack import EmbeddedBroker, KafkaCluster, ObjectStoreServer
from sluiceway.cli.stack.kafka_jars import kafka_available
from sluiceway.cli.stack.ports import free_ports

RECORDS = 20

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A scheduler and two workers that give a source or a sink back after two seconds."""
    folder = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUICEWAY_PATIENCE_S", "2")
        with LocalFleet(FleetOptions(directory=folder, workers=2, session_ttl_s=3)) as fleet:
            yield fleet


@pytest.fixture
async def fleet(local: LocalFleet) -> AsyncIterator[Fleet]:
    """The fleet; afterwards every process of it is the one that was started."""
    services = {**local.workers, **local.schedulers}
    async with Fleet.of(local) as fleet:
        pids = {name: service.pid for name, service in services.items()}
        yield fleet
        assert {name: service.pid for name, service in services.items() if service.alive} == pids


@asynccontextmanager
async def neighbour(fleet: Fleet, folder: Path) -> AsyncIterator[None]:
    """A healthy pipeline delivers what is produced while the body runs, before the body is left."""
    flow = Flow(name="healthy", sink=file_sink(folder.parent / "healthy"), bootstrap=fleet.local.stack.bootstrap)
    if flow.name not in fleet.seen.look().states:
        await create_topic(flow.bootstrap, flow.name)
        await fleet.apply(flow)
    (start,) = await ends_of(flow.bootstrap, flow.name)
    await produce_numbers(flow, start, start + 5)
    yield
    await fleet.delivers(flow, [start + 5])


async def pause(fleet: Fleet, flow: Flow) -> None:
    """Leaves the pipeline's servers to be stopped."""
    await fleet.apply(replace(flow, pipeline={**flow.pipeline, "paused": True}))
    await fleet.state(flow, "Paused")


async def test_a_missing_topic_is_named_and_delivered_once_it_is_created(fleet: Fleet, tmp_path: Path) -> None:
    flow = Flow(name="missing-topic", sink=file_sink(tmp_path), bootstrap=fleet.local.stack.bootstrap)
    async with neighbour(fleet, tmp_path):
        await fleet.apply(flow)
        await fleet.state(flow, "SourceUnavailable", "missing-topic does not exist on the cluster", "create it")
    await create_topic(flow.bootstrap, flow.name)
    await produce_numbers(flow, 0, RECORDS)
    await fleet.delivers(flow, [RECORDS])
    await fleet.state(flow, "Running")
    assert offsets_in(tmp_path) == list(range(RECORDS))


async def test_a_broker_that_is_down_is_named_and_used_once_it_is_back(fleet: Fleet, tmp_path: Path) -> None:
    broker = EmbeddedBroker("other-broker", directory=tmp_path / "broker", ports=free_ports(["kafka"]))
    address = f"127.0.0.1:{broker.ports['kafka']}"
    flow = Flow(name="other-broker", sink=file_sink(tmp_path / "sink"), bootstrap=address)
    try:
        async with neighbour(fleet, tmp_path):
            await fleet.apply(flow)
            await fleet.state(flow, "SourceUnavailable", "cluster other-broker", address, "can't be reached")
        broker.start()
        await create_topic(address, flow.name)
        await produce_numbers(flow, 0, RECORDS)
        await fleet.delivers(flow, [RECORDS])
        await fleet.state(flow, "Running")

        broker.terminate()  # this broker keeps its records only when it is stopped in an orderly way
        async with neighbour(fleet, tmp_path):
            await fleet.state(flow, "SourceUnavailable", address, "can't be reached")
            await fleet.until(lambda view: flow.partition() not in view.holders, "its lease is to be given back")
            await fleet.state(flow, "SourceUnavailable", address, "can't be reached")
        broker.start()
        await produce_numbers(flow, RECORDS, 2 * RECORDS)
        await fleet.delivers(flow, [2 * RECORDS])
        await fleet.state(flow, "Running")
    finally:
        broker.stop()
    assert offsets_in(tmp_path / "sink") == list(range(2 * RECORDS))


@pytest.mark.kafka
async def test_wrong_sasl_credentials_are_named_and_right_ones_are_used_once_written(
    fleet: Fleet, tmp_path: Path
) -> None:
    if reason := kafka_available():
        pytest.skip(f"Apache Kafka can't be had: {reason}")
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    with KafkaCluster(sasl_users={"alice": "right"}, directory=tmp_path / "kafka") as cluster:
        await create_topic(cluster.bootstrap, "guarded")
        await produce(cluster.bootstrap, "guarded", [b'{"n": %d}' % n for n in range(RECORDS)])
        sasl = {"mechanism": "PLAIN", "username": "alice", "password": f"file:{secret}"}
        flow = Flow(
            name="guarded",
            sink=file_sink(tmp_path / "sink"),
            bootstrap=cluster.sasl_bootstrap,
            cluster={"sasl": sasl},
        )
        async with neighbour(fleet, tmp_path):
            await fleet.apply(flow)
            state = await fleet.state(flow, "SourceUnavailable", "refuses our credentials", "check sasl")
            assert "wrong" not in state.message
            secret.unlink()
            await fleet.state(flow, "SourceUnavailable", f"can't read the secret file:{secret}")
        secret.write_text("right\n")
        await fleet.delivers(flow, [RECORDS])
        await fleet.state(flow, "Running")
        await fleet.apply(
            Flow(
                name="guarded",
                sink=flow.sink,
                bootstrap=flow.bootstrap,
                cluster=flow.cluster,
                pipeline={"paused": True},
            )
        )
        await fleet.state(flow, "Paused")
    assert offsets_in(tmp_path / "sink") == list(range(RECORDS))


async def s3_flow(fleet: Fleet, name: str, bucket: str, store: ObjectStoreServer, **more: Any) -> Flow:
    """A flow into a bucket, with records waiting in its topic."""
    keys = {"access_key": "env:DEMO_S3_ACCESS_KEY", "secret_key": "env:DEMO_S3_SECRET_KEY", **more}
    sink = {"kind": "parquet", "url": f"s3://{bucket}/{name}", "s3": {"endpoint": store.endpoint, **keys}}
    flow = Flow(name=name, sink=sink, bootstrap=fleet.local.stack.bootstrap)
    await create_topic(flow.bootstrap, name)
    await produce_numbers(flow, 0, RECORDS)
    return flow


def delivered(store: ObjectStoreServer, bucket: str, prefix: str) -> list[int]:
    client = store.client()
    try:
        return offsets_in_bucket(client, bucket, prefix)
    finally:
        client.close()


async def test_a_missing_bucket_is_named_and_written_once_it_is_created(fleet: Fleet, tmp_path: Path) -> None:
    store = fleet.local.stack.store
    flow = await s3_flow(fleet, "no-bucket", "not-there", store)
    async with neighbour(fleet, tmp_path):
        await fleet.apply(flow)
        await fleet.state(flow, "SinkUnavailable", "bucket not-there", "does not exist: create it")
        await fleet.until(lambda view: flow.partition() not in view.holders, "its lease is to be given back")
    store.create_bucket("not-there")
    await fleet.delivers(flow, [RECORDS])
    await fleet.state(flow, "Running")
    assert delivered(store, "not-there", flow.name) == list(range(RECORDS))


async def test_wrong_keys_of_a_bucket_are_named_and_right_ones_are_used_once_written(
    fleet: Fleet, tmp_path: Path
) -> None:
    store, secret = fleet.local.stack.store, tmp_path / "secret"
    secret.write_text("wrong")
    store.create_bucket("keys")
    flow = await s3_flow(fleet, "wrong-keys", "keys", store, secret_key=f"file:{secret}")
    async with neighbour(fleet, tmp_path):
        await fleet.apply(flow)
        state = await fleet.state(flow, "SinkUnavailable", "bucket keys", "refuses the keys", "check s3.access_key")
        assert "wrong" not in state.message.replace("wrong-keys", "")
    secret.write_text(store.secret_key)
    await fleet.delivers(flow, [RECORDS])
    await fleet.state(flow, "Running")
    assert delivered(store, "keys", flow.name) == list(range(RECORDS))


async def test_a_store_that_goes_down_and_comes_back_with_other_keys_is_named_and_used_again(
    fleet: Fleet, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    with ObjectStoreServer("other-store", directory=tmp_path / "store") as store:
        secret.write_text(store.secret_key)
        store.create_bucket("lake")
        flow = await s3_flow(fleet, "store-down", "lake", store, secret_key=f"file:{secret}")
        await fleet.apply(flow)
        await fleet.delivers(flow, [RECORDS])
        store.kill()
        await produce_numbers(flow, RECORDS, 2 * RECORDS)
        async with neighbour(fleet, tmp_path):
            await fleet.state(flow, "SinkUnavailable", "bucket lake", store.endpoint)
            await fleet.until(lambda view: flow.partition() not in view.holders, "its lease is to be given back")
            await fleet.state(flow, "SinkUnavailable", "bucket lake", store.endpoint)
        store.secret_key = "rotated"
        store.start()
        await fleet.state(flow, "SinkUnavailable", "bucket lake", "refuses the keys")
        secret.write_text(store.secret_key)
        await fleet.delivers(flow, [2 * RECORDS])
        await fleet.state(flow, "Running")
        assert delivered(store, "lake", flow.name) == list(range(2 * RECORDS))
        await pause(fleet, flow)


async def test_a_store_without_conditional_writes_is_refused_until_at_least_once_is_chosen(
    fleet: Fleet, tmp_path: Path
) -> None:
    with ForgetfulStore() as store:
        keys = {"access_key": "env:DEMO_S3_ACCESS_KEY", "secret_key": "env:DEMO_S3_SECRET_KEY"}
        sink = {"kind": "parquet", "url": "s3://lake/unsafe", "s3": {"endpoint": store.endpoint, **keys}}
        flow = Flow(name="unsafe", sink=sink, bootstrap=fleet.local.stack.bootstrap)
        await create_topic(flow.bootstrap, flow.name)
        await produce_numbers(flow, 0, RECORDS)
        async with neighbour(fleet, tmp_path):
            await fleet.apply(flow)
            await fleet.state(flow, "SinkUnavailable", "ignores If-None-Match", "set delivery: at_least_once")
            await fleet.until(lambda view: flow.partition() not in view.holders, "its lease is to be given back")
            assert not store.keys("unsafe/data/")
        chosen = replace(flow, pipeline={"delivery": "at_least_once"})
        await fleet.apply(chosen)
        await fleet.delivers(chosen, [RECORDS])
        await fleet.state(chosen, "Running")
        assert store.offsets("unsafe/data/") == list(range(RECORDS))
        await fleet.apply(
            Flow(
                name=flow.name,
                sink=sink,
                bootstrap=flow.bootstrap,
                pipeline={"delivery": "at_least_once", "paused": True},
            )
        )
        await fleet.state(flow, "Paused")


async def test_an_unusable_endpoint_is_named_and_its_correction_used(fleet: Fleet, tmp_path: Path) -> None:
    store = fleet.local.stack.store
    store.create_bucket("corrected")
    right = await s3_flow(fleet, "endpoint", "corrected", store)
    wrong = replace(right, sink={**right.sink, "s3": {**right.sink["s3"], "endpoint": "http://no host"}})
    async with neighbour(fleet, tmp_path):
        await fleet.apply(wrong)
        await fleet.state(wrong, "SinkUnavailable", "http://no host", "correct")
    await fleet.apply(right)
    await fleet.delivers(right, [RECORDS])
    assert delivered(store, "corrected", right.name) == list(range(RECORDS))


async def test_an_outage_is_tried_again_and_again_and_never_quarantined(fleet: Fleet, tmp_path: Path) -> None:
    flow = await s3_flow(fleet, "never-there", "never-there", fleet.local.stack.store)
    await fleet.apply(flow)
    async with neighbour(fleet, tmp_path):
        await fleet.state(flow, "SinkUnavailable", "bucket never-there")
    tokens: set[int] = set()
    await fleet.until(lambda view: _third_token(view.holders.get(flow.partition()), tokens), "three tries")
    failure = await fleet.failure(flow)
    assert failure is not None
    assert failure.kind == "sink"
    assert not failure.quarantined


def _third_token(holder: tuple[str, int] | None, tokens: set[int]) -> bool:
    if holder is not None:
        tokens.add(holder[1])
    return len(tokens) >= 3
