"""Fetching from real brokers: the embedded one and Apache Kafka give the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sluiceway.cli.stack import KafkaCluster as KafkaServers
from sluiceway.cli.stack.kafka_jars import kafka_available
from sluiceway.cli.stack.tls import Certificates, make_certificates
from sluiceway.common.errors import AccessDenied, OffsetOutOfRange, SluicewayError, SourceUnavailable
from sluiceway.common.kafka import KafkaCluster, TopicPartition, connect
from sluiceway.common.specs.models import ClusterSpec
from sluiceway.worker.batches import RecordBlock
from sluiceway.worker.budget import ByteBudget
from sluiceway.worker.fetch.feed import Feed
from sluiceway.worker.fetch.fetcher import Fetcher

LIMIT_S = 60.0
MIB = 2**20
Name = Callable[[str], str]


@pytest.fixture(params=["embedded_broker", "kafka_cluster"])
def bootstrap(request: pytest.FixtureRequest) -> str:
    """host:port of each kind of broker in turn."""
    address: str = request.getfixturevalue(request.param).bootstrap
    return address


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def guarded(certificates: Certificates) -> Iterator[KafkaServers]:
    """Apache Kafka with SASL and TLS listeners that creates topics whenever a client lets it."""
    if reason := kafka_available():
        pytest.skip(f"Apache Kafka can't be had: {reason}")
    properties = {"auto.create.topics.enable": "true"}
    with KafkaServers(sasl_users={"alice": "right"}, certificates=certificates, properties=properties) as servers:
        yield servers


@asynccontextmanager
async def cluster_at(address: str, timeout_s: float = 10.0, **spec: object) -> AsyncIterator[KafkaCluster]:
    cluster = connect(
        ClusterSpec.model_validate({"bootstrap": address.split(","), **spec}),
        client_id="test",
        request_timeout_s=timeout_s,
    )
    try:
        yield cluster
    finally:
        await cluster.close()


@asynccontextmanager
async def fetching(address: str, *, budget_bytes: int = 64 * MIB) -> AsyncIterator[tuple[Fetcher, ByteBudget]]:
    """A fetcher; afterwards nothing that it reserved is left."""
    budget = ByteBudget(budget_bytes)
    async with cluster_at(address) as cluster:
        fetcher = Fetcher(cluster, budget)
        try:
            yield fetcher, budget
        finally:
            await fetcher.close()
    assert budget.used == 0


async def create_topic(
    address: str, topic: str, partitions: int = 1, *, copies: int = 1, max_message_bytes: int = MIB
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(topic, partitions, copies, topic_configs={"max.message.bytes": str(max_message_bytes)})]
        )
    finally:
        await admin.close()


@asynccontextmanager
async def producing(address: str, **options: object) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=address, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def produce(address: str, topic: str, values: list[bytes], partition: int = 0, **options: object) -> None:
    async with producing(address, **options) as producer:
        for value in values:
            await producer.send(topic, value, partition=partition)
        await producer.flush()


async def take(feed: Feed, budget: ByteBudget, until: int) -> list[RecordBlock]:
    """Blocks until the position is reached, each following the one before it."""
    blocks: list[RecordBlock] = []
    position = feed.position
    async with asyncio.timeout(LIMIT_S):
        while feed.position < until:
            block = await feed.next()
            assert block.start_offset == position
            position = block.next_offset
            budget.release(block.size_bytes)
            blocks.append(block)
    return blocks


def values_of(blocks: list[RecordBlock]) -> list[bytes | None]:
    return [value for block in blocks for value in block.values]


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_comes_out_as_produced(bootstrap: str, unique_name: Name, codec: str | None) -> None:
    topic = unique_name("codec")
    values = [b'{"number": %d, "text": "some text that repeats"}' % number for number in range(3000)]
    await create_topic(bootstrap, topic)
    async with producing(bootstrap, compression_type=codec, linger_ms=5) as producer:
        for number, value in enumerate(values):
            await producer.send(
                topic, value, key=b"k%d" % number, partition=0, timestamp_ms=10**12 + number, headers=[("h", b"x")]
            )
        await producer.flush()
    async with fetching(bootstrap) as (fetcher, budget):
        blocks = await take(await fetcher.open(topic, 0, 1000), budget, 3000)
    assert values_of(blocks) == values[1000:]
    assert [offset for block in blocks for offset in block.offsets] == list(range(1000, 3000))
    assert [key for block in blocks for key in block.keys] == [b"k%d" % number for number in range(1000, 3000)]
    assert [at for block in blocks for at in block.timestamps_ms] == [10**12 + n for n in range(1000, 3000)]
    assert all(list(block.headers.values()) == [[("h", b"x")]] * len(block.offsets) for block in blocks)


async def test_only_committed_records_of_interleaved_transactions_come_out(bootstrap: str, unique_name: Name) -> None:
    topic = unique_name("transactions")
    await create_topic(bootstrap, topic)
    dice = random.Random(1)
    committed: list[bytes] = []
    async with (
        producing(bootstrap, transactional_id=unique_name("one")) as one,
        producing(bootstrap, transactional_id=unique_name("two")) as two,
        producing(bootstrap) as plain,
    ):
        for round_ in range(8):
            await one.begin_transaction()
            await two.begin_transaction()
            sent: list[tuple[AIOKafkaProducer, bytes]] = []
            for number in range(12):
                producer = dice.choice([one, two, plain])
                value = b"%d-%d" % (round_, number)
                await (await producer.send(topic, value, partition=0))
                sent.append((producer, value))
            kept = {plain}
            for producer in (one, two):
                if dice.random() < 0.5:
                    kept.add(producer)
                    await producer.commit_transaction()
                else:
                    await producer.abort_transaction()
            committed += [value for producer, value in sent if producer in kept]
    async with cluster_at(bootstrap) as cluster, fetching(bootstrap) as (fetcher, budget):
        where = TopicPartition(topic, 0)
        bounds = (await cluster.offsets([where]))[where]
        assert not isinstance(bounds, SluicewayError)
        blocks = await take(await fetcher.open(topic, 0, 0), budget, bounds[1])
    assert values_of(blocks) == committed
    assert blocks[-1].next_offset == bounds[1]


async def test_an_open_transaction_holds_back_the_end_and_the_feed(bootstrap: str, unique_name: Name) -> None:
    topic = unique_name("open")
    await create_topic(bootstrap, topic)
    await produce(bootstrap, topic, [b"before"])
    where = TopicPartition(topic, 0)
    async with (
        cluster_at(bootstrap) as cluster,
        fetching(bootstrap) as (fetcher, budget),
        producing(bootstrap, transactional_id=unique_name("open")) as producer,
    ):
        await producer.begin_transaction()
        await (await producer.send(topic, b"inside", partition=0))
        assert await cluster.offsets([where]) == {where: (0, 1)}
        assert await cluster.offsets([where], committed=False) == {where: (0, 2)}
        feed = await fetcher.open(topic, 0, 0)
        assert values_of(await take(feed, budget, 1)) == [b"before"]
        waiting = asyncio.ensure_future(feed.next())
        await producer.commit_transaction()
        block = await asyncio.wait_for(waiting, LIMIT_S)
        budget.release(block.size_bytes)
        assert block.values == [b"inside"]


async def test_asking_about_a_missing_topic_does_not_create_it(guarded: KafkaServers, unique_name: Name) -> None:
    topic = unique_name("missing")
    async with cluster_at(guarded.bootstrap) as cluster, fetching(guarded.bootstrap) as (fetcher, _):
        feed = await fetcher.open(topic, 0, 0, give_up_after_s=0.5)
        for _ in range(2):
            assert isinstance((await cluster.partitions([topic]))[topic], SourceUnavailable)
        where = TopicPartition(topic, 0)
        assert isinstance((await cluster.offsets([where]))[where], SourceUnavailable)
        with pytest.raises(SourceUnavailable, match="does not exist"):
            await asyncio.wait_for(feed.next(), LIMIT_S)
        assert isinstance((await cluster.partitions([topic]))[topic], SourceUnavailable)


@pytest.mark.parametrize("offset", [11, 10**12])
async def test_a_position_that_does_not_exist_is_told_with_the_range(
    bootstrap: str, unique_name: Name, offset: int
) -> None:
    topic = unique_name("range")
    await create_topic(bootstrap, topic)
    await produce(bootstrap, topic, [b"x"] * 10)
    async with fetching(bootstrap) as (fetcher, _):
        feed = await fetcher.open(topic, 0, offset)
        with pytest.raises(OffsetOutOfRange) as raised:
            await asyncio.wait_for(feed.next(), LIMIT_S)
    assert (raised.value.wanted, raised.value.earliest, raised.value.latest) == (offset, 0, 10)


async def test_a_record_of_fifty_megabytes_passes_through_a_smaller_budget(bootstrap: str, unique_name: Name) -> None:
    topic = unique_name("large")
    large = random.Random(2).randbytes(50 * MIB)
    await create_topic(bootstrap, topic, max_message_bytes=64 * MIB)
    await produce(bootstrap, topic, [b"before", large, b"after"], max_request_size=64 * MIB)
    async with fetching(bootstrap, budget_bytes=16 * MIB) as (fetcher, budget):
        feed = await fetcher.open(topic, 0, 0)
        assert values_of(await take(feed, budget, 3)) == [b"before", large, b"after"]
        assert budget.peak < 110 * MIB


async def test_partitions_flow_while_a_sibling_is_not_taken(bootstrap: str, unique_name: Name) -> None:
    topic = unique_name("stuck")
    values = [b"%05d" % number + b"x" * 995 for number in range(5000)]
    await create_topic(bootstrap, topic, 4)
    for partition in range(4):
        await produce(bootstrap, topic, values, partition, linger_ms=5)
    async with fetching(bootstrap, budget_bytes=8 * MIB) as (fetcher, budget):
        stuck = await fetcher.open(topic, 0, 0)
        flowing = [await fetcher.open(topic, partition, 0) for partition in (1, 2, 3)]
        for blocks in await asyncio.gather(*(take(feed, budget, 5000) for feed in flowing)):
            assert values_of(blocks) == values
        assert stuck.position == 0
        assert values_of(await take(stuck, budget, 5000)) == values


async def test_a_partition_that_is_not_taken_buffers_little(kafka_cluster: KafkaServers, unique_name: Name) -> None:
    # Apache Kafka only: the embedded broker gives all it has, whatever size was asked for.
    topic, bootstrap = unique_name("bounded"), kafka_cluster.bootstrap
    await create_topic(bootstrap, topic, 2)
    for partition in range(2):
        await produce(bootstrap, topic, [b"x" * 1000] * 5000, partition, linger_ms=5)
    async with fetching(bootstrap, budget_bytes=8 * MIB) as (fetcher, budget):
        stuck, flowing = [await fetcher.open(topic, partition, 0) for partition in range(2)]
        await take(flowing, budget, 5000)
        assert 0 < stuck.buffered_bytes <= 2 * MIB


async def test_a_recreated_topic_is_out_of_range_not_read_on(kafka_cluster: KafkaServers, unique_name: Name) -> None:
    topic, bootstrap = unique_name("again"), kafka_cluster.bootstrap
    await create_topic(bootstrap, topic)
    await produce(bootstrap, topic, [b"old"] * 5)
    async with fetching(bootstrap) as (fetcher, budget):
        feed = await fetcher.open(topic, 0, 0)
        await take(feed, budget, 5)
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        await admin.delete_topics([topic])
        await admin.close()
        async with cluster_at(bootstrap) as cluster, asyncio.timeout(LIMIT_S):
            while not isinstance((await cluster.partitions([topic]))[topic], SluicewayError):
                await asyncio.sleep(0.05)
        await create_topic(bootstrap, topic)
        await produce(bootstrap, topic, [b"new"] * 20)
        with pytest.raises(OffsetOutOfRange):
            await asyncio.wait_for(feed.next(), LIMIT_S)


async def test_wrong_credentials_are_access_denied(guarded: KafkaServers, monkeypatch: pytest.MonkeyPatch) -> None:
    sasl = {"mechanism": "PLAIN", "username": "alice", "password": "env:TEST_KAFKA_PASSWORD"}
    async with cluster_at(guarded.sasl_bootstrap, sasl=sasl) as cluster:
        monkeypatch.setenv("TEST_KAFKA_PASSWORD", "wrong")
        with pytest.raises(AccessDenied, match="refuses our credentials") as raised:
            await cluster.partitions(["any"])
        assert "wrong" not in str(raised.value)
        monkeypatch.delenv("TEST_KAFKA_PASSWORD")
        with pytest.raises(AccessDenied, match="TEST_KAFKA_PASSWORD is not set"):
            await cluster.partitions(["any"])
        monkeypatch.setenv("TEST_KAFKA_PASSWORD", "right")
        assert isinstance((await cluster.partitions(["any"]))["any"], SourceUnavailable)


async def test_tls_with_a_client_certificate_works_and_without_one_is_denied(
    guarded: KafkaServers, certificates: Certificates, unique_name: Name
) -> None:
    topic = unique_name("tls")
    await create_topic(guarded.bootstrap, topic, 3)
    ours = {"ca": certificates.ca, "certificate": certificates.client_certificate, "key": certificates.client_key}
    async with cluster_at(guarded.tls_bootstrap, tls={name: f"file:{path}" for name, path in ours.items()}) as cluster:
        assert await cluster.partitions([topic]) == {topic: 3}
    for tls in ({}, {"ca": f"file:{certificates.ca}"}):
        async with cluster_at(guarded.tls_bootstrap, tls=tls) as cluster:
            with pytest.raises(AccessDenied, match="TLS"):
                await cluster.partitions([topic])


async def test_a_tls_file_that_is_none_is_access_denied(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    async with cluster_at("127.0.0.1:9", tls={"ca": f"file:{tmp_path / 'ca.pem'}"}) as cluster:
        with pytest.raises(AccessDenied, match="TLS files"):
            await cluster.partitions(["any"])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:9092"])
async def test_an_unreachable_cluster_is_unavailable_within_the_timeout(address: str) -> None:
    async with cluster_at(address, timeout_s=2.0) as cluster, asyncio.timeout(LIMIT_S):
        with pytest.raises(SourceUnavailable, match="no broker of the cluster can be asked"):
            await cluster.partitions(["any"])


async def test_a_broker_that_never_answers_is_unavailable_within_the_timeout() -> None:
    ended = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        async with cluster_at(f"{host}:{port}", timeout_s=0.3) as cluster, asyncio.timeout(LIMIT_S):
            with pytest.raises(SourceUnavailable, match="does not answer in time"):
                await cluster.partitions(["any"])
            await ended.wait()


@pytest.mark.slow
async def test_a_killed_broker_costs_no_record_and_gives_none_twice(guarded: KafkaServers, unique_name: Name) -> None:
    topic = unique_name("killed")
    await create_topic(guarded.bootstrap, topic, 2)
    values = [b"%06d" % number + b"x" * 500 for number in range(4000)]
    for partition in range(2):
        await produce(guarded.bootstrap, topic, values, partition, linger_ms=5)
    async with fetching(guarded.bootstrap, budget_bytes=MIB) as (fetcher, budget):
        feeds = [await fetcher.open(topic, partition, 0) for partition in range(2)]
        before = [await take(feed, budget, 300) for feed in feeds]
        await asyncio.to_thread(guarded.kill)
        # What was buffered is taken until the fetcher notices.
        rest = [asyncio.ensure_future(take(feed, budget, 4000)) for feed in feeds]
        async with asyncio.timeout(LIMIT_S):
            while not all(feed.problem for feed in feeds):
                await asyncio.sleep(0.05)
        await asyncio.to_thread(guarded.restart)
        after = await asyncio.gather(*rest)
        assert [feed.problem for feed in feeds] == [None, None]
    for first, second in zip(before, after, strict=True):
        assert values_of(first) + values_of(second) == values


@pytest.mark.slow
@pytest.mark.kafka
async def test_a_feed_follows_its_leader_to_another_broker(unique_name: Name) -> None:
    if reason := kafka_available():
        pytest.skip(f"Apache Kafka can't be had: {reason}")
    topic = unique_name("leader")
    with KafkaServers(3, heap_mb=384) as servers:
        await create_topic(servers.bootstrap, topic, copies=3)
        await produce(servers.bootstrap, topic, [b"%d" % number for number in range(100)], acks="all")
        async with cluster_at(servers.bootstrap) as cluster, fetching(servers.bootstrap) as (fetcher, budget):
            feed = await fetcher.open(topic, 0, 0)
            blocks = await take(feed, budget, 100)
            layout = (await cluster.describe([topic]))[topic]
            assert not isinstance(layout, SluicewayError)
            leader = layout.leaders[0]
            assert leader is not None
            await asyncio.to_thread(servers.brokers[leader.node - 1].kill)
            await produce(servers.bootstrap, topic, [b"%d" % number for number in range(100, 200)], acks="all")
            blocks += await take(feed, budget, 200)
            assert feed.leader_epoch > leader.epoch
        assert values_of(blocks) == [b"%d" % number for number in range(200)]
