"""Real servers for the tests, one of each a session, started when a test first asks for it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from sluiceway.cli.stack import EmbeddedBroker, EtcdServer, KafkaCluster, ObjectStoreServer, PostgresServer
from sluiceway.cli.stack.kafka_jars import kafka_available
from sluiceway.cli.stack.postgres import postgres_available

_MARK_BY_FIXTURE = {
    "etcd_server": "servers",
    "embedded_broker": "servers",
    "object_store_server": "servers",
    "kafka_cluster": "kafka",
    "postgres_server": "postgres",
}


@cache
def _no_kafka() -> str | None:
    reason = kafka_available()
    return f"Apache Kafka can't be had: {reason}" if reason else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test that uses a server has its mark; one marked `kafka` is skipped, with the reason, where it can't be had."""
    for fixture in getattr(item, "fixturenames", ()):
        if mark := _MARK_BY_FIXTURE.get(fixture):
            item.add_marker(mark)
    if item.get_closest_marker("kafka") and (reason := _no_kafka()):
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """etcd, shared by the whole session: use a `unique_name` as prefix, and don't stop it."""
    with EtcdServer(durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """The embedded Kafka-compatible broker, shared by the whole session."""
    with EmbeddedBroker() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_cluster() -> Iterator[KafkaCluster]:
    """Apache Kafka with one broker, shared by the whole session."""
    if reason := _no_kafka():
        pytest.skip(reason)
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def object_store_server() -> Iterator[ObjectStoreServer]:
    """The S3 store, shared by the whole session."""
    with ObjectStoreServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """PostgreSQL, shared by the whole session."""
    if reason := postgres_available():
        pytest.skip(reason)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """Makes names that no other test uses, fit for etcd prefixes, topics and buckets: `unique_name("logs")`."""
    return lambda stem: f"{stem}-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def bucket(object_store_server: ObjectStoreServer, unique_name: Callable[[str], str]) -> str:
    """The name of a new bucket of the object store."""
    name = unique_name("bucket")
    object_store_server.create_bucket(name)
    return name
