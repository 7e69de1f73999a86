"""The servers that the project starts: they serve, keep their data over a crash, and never outlive their starter."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.helpers import create_ssl_context
from botocore.exceptions import ClientError

from sluiceway.cli.stack import (
    EmbeddedBroker,
    EmbeddedStack,
    EtcdCluster,
    EtcdServer,
    KafkaCluster,
    ObjectStoreServer,
    PostgresServer,
    Server,
    ServerFailed,
)
from sluiceway.cli.stack.ports import free_ports, is_free
from sluiceway.cli.stack.tls import make_certificates

pytestmark = pytest.mark.servers

needs_kafka = pytest.mark.kafka

T = TypeVar("T")


class Listener(Server):
    """Any program that listens on our port."""

    port_names = ("http",)

    def __init__(self, program: str, **options: object) -> None:
        super().__init__("listener", **options)  # type: ignore[arg-type]
        self._program = textwrap.dedent(program)

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", self._program, str(self.ports["http"])]

    def probe(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.ports["http"]), timeout=1):
            return True


LISTEN = """
    import socket, sys
    server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        server.accept()[0].close()
"""


async def _create_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=10_000)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def _once_the_dead_broker_is_forgotten(attempt: Callable[[], Awaitable[T]]) -> T:
    """For some seconds after a kill, metadata still names the dead broker, also as the controller."""
    async with asyncio.timeout(90):
        while True:
            with suppress(TimeoutError, KafkaError):
                return await attempt()
            await asyncio.sleep(0.5)


async def _produce(bootstrap: str, topic: str, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)


async def _consume(bootstrap: str, topic: str, *, isolation: str = "read_committed") -> list[bytes]:
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", isolation_level=isolation, enable_auto_commit=False
    )
    async with consumer:
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        values: list[bytes] = []
        while await consumer.position(partition) < end:
            batch = await consumer.getmany(timeout_ms=1000)
            values += [record.value for record in batch.get(partition, [])]
        return values


def test_etcd_keeps_its_data_over_kill_and_restart() -> None:
    with EtcdServer() as server:
        server.ctl("put", "key", "kept")
        endpoint = server.endpoint
        server.kill()
        assert not server.alive
        server.restart()
        assert server.endpoint == endpoint
        assert server.ctl("get", "--print-value-only", "key").strip() == "kept"
        server.restart()
        assert server.ctl("get", "--print-value-only", "key").strip() == "kept"


def test_etcd_with_authentication_and_client_certificates_refuses_others(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with EtcdServer(certificates=certificates, client_certificates=True, root_password="secret") as server:
        assert server.ctl("put", "key", "value").strip() == "OK"
        server.restart()
        assert server.ctl("get", "--print-value-only", "key").strip() == "value"
        server._root_password = None
        with pytest.raises(ServerFailed, match="permission denied"):
            server.ctl("get", "key")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _get_without_certificate(server.ports["client"], certificates.ca)


def _get_without_certificate(port: int, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        tls.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        tls.recv(1)  # the server's refusal arrives with the first read


def test_etcd_refuses_writes_above_its_quota() -> None:
    with EtcdServer(durable=False, quota_bytes=1 << 20) as server, pytest.raises(ServerFailed, match="space exceeded"):
        _put_many(server, 40)


def _put_many(server: EtcdServer, count: int) -> None:
    for number in range(count):
        server.ctl("put", f"key-{number}", "x" * 100_000)


def test_a_cluster_of_three_etcd_members_serves_while_one_is_dead() -> None:
    with EtcdCluster(durable=False) as cluster:
        first, second, third = cluster.members
        first.kill()
        second.wait_ready()  # until the two others have a leader
        second.ctl("put", "key", "value")
        assert third.ctl("get", "--print-value-only", "key").strip() == "value"
        first.restart()
        assert first.ctl("get", "--print-value-only", "key").strip() == "value"


def test_the_object_store_keeps_acknowledged_objects_over_kill_and_restart(unique_name: Callable[[str], str]) -> None:
    with ObjectStoreServer() as server:
        bucket = unique_name("bucket")
        server.create_bucket(bucket)
        server.create_bucket(bucket)
        client = server.client()
        client.put_object(Bucket=bucket, Key="a/b", Body=b"kept" * 100_000)
        server.kill()
        server.restart()
        assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"kept" * 100_000
        server.restart()
        assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"kept" * 100_000
        client.close()


def test_the_object_store_creates_an_object_only_once(object_store_server: ObjectStoreServer, bucket: str) -> None:
    client = object_store_server.client()
    client.put_object(Bucket=bucket, Key="once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=bucket, Key="once", Body=b"second", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert client.get_object(Bucket=bucket, Key="once")["Body"].read() == b"first"
    client.close()


def test_the_object_store_refuses_wrong_credentials(object_store_server: ObjectStoreServer) -> None:
    right = object_store_server.secret_key
    object_store_server.secret_key = "wrong"
    client = object_store_server.client()
    object_store_server.secret_key = right
    with pytest.raises(ClientError) as refused:
        client.list_buckets()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    client.close()


def test_a_bucket_that_cannot_be_created_is_reported(object_store_server: ObjectStoreServer) -> None:
    with pytest.raises(ServerFailed, match=r"can't create the bucket b: .*InvalidBucketName"):
        object_store_server.create_bucket("b")


def test_the_object_store_has_room_for_many_buckets(
    object_store_server: ObjectStoreServer, unique_name: Callable[[str], str]
) -> None:
    client = object_store_server.client()
    for _ in range(30):
        name = unique_name("many")
        client.create_bucket(Bucket=name)
        client.put_object(Bucket=name, Key="key", Body=b"x" * 10_000)
    client.close()


@pytest.mark.parametrize("kind", [EmbeddedBroker, pytest.param(KafkaCluster, marks=needs_kafka)])
async def test_a_broker_serves_records_and_transactions(
    kind: type[EmbeddedBroker] | type[KafkaCluster],
    request: pytest.FixtureRequest,
    unique_name: Callable[[str], str],
) -> None:
    broker = request.getfixturevalue("embedded_broker" if kind is EmbeddedBroker else "kafka_cluster")
    topic = unique_name("topic")
    await _create_topic(broker.bootstrap, topic)
    await _produce(broker.bootstrap, topic, b"plain")
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=unique_name("transaction"))
    async with producer:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed", partition=0)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted", partition=0)
        await producer.abort_transaction()
    assert await _consume(broker.bootstrap, topic) == [b"plain", b"committed"]
    assert b"aborted" in await _consume(broker.bootstrap, topic, isolation="read_uncommitted")


@needs_kafka
async def test_kafka_keeps_its_records_over_kill_and_restart(unique_name: Callable[[str], str]) -> None:
    topic = unique_name("topic")
    with KafkaCluster() as cluster:
        await _create_topic(cluster.bootstrap, topic)
        await _produce(cluster.bootstrap, topic, b"one", b"two")
        cluster.kill()
        cluster.restart()
        assert await _consume(cluster.bootstrap, topic) == [b"one", b"two"]
        await _produce(cluster.bootstrap, topic, b"three")
        cluster.restart()
        assert await _consume(cluster.bootstrap, topic) == [b"one", b"two", b"three"]


@needs_kafka
async def test_kafka_takes_large_records_and_asks_for_credentials(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with KafkaCluster(sasl_users={"alice": "secret"}, certificates=certificates) as cluster:
        await _create_topic(cluster.bootstrap, "large")
        large = 50 << 20
        async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, max_request_size=large + 1000) as producer:
            await producer.send_and_wait("large", b"x" * large, partition=0)
        context = create_ssl_context(
            cafile=str(certificates.ca),
            certfile=str(certificates.client_certificate),
            keyfile=str(certificates.client_key),
        )
        await _list_topics(bootstrap_servers=cluster.tls_bootstrap, security_protocol="SSL", ssl_context=context)
        sasl = {
            "bootstrap_servers": cluster.sasl_bootstrap,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "alice",
        }
        assert await _list_topics(**sasl, sasl_plain_password="secret") == ["large"]
        with pytest.raises(KafkaConnectionError):
            await _list_topics(**sasl, sasl_plain_password="wrong")


async def _list_topics(**options: object) -> list[str]:
    admin = AIOKafkaAdminClient(**options)
    try:
        await admin.start()
        return [str(topic) for topic in await admin.list_topics()]
    finally:
        await admin.close()


@needs_kafka
@pytest.mark.slow
async def test_two_kafka_clusters_run_side_by_side_and_one_may_have_three_brokers() -> None:
    with KafkaCluster(name="a", heap_mb=256) as a, KafkaCluster(3, name="b", heap_mb=256) as b:
        await _create_topic(a.bootstrap, "only-in-a")
        assert await _list_topics(bootstrap_servers=b.bootstrap) == []
        b.brokers[0].kill()
        survivors = b.bootstrap.split(",", 1)[1]
        await _once_the_dead_broker_is_forgotten(lambda: _create_topic(survivors, "only-in-b"))
        listed = await _once_the_dead_broker_is_forgotten(lambda: _list_topics(bootstrap_servers=survivors))
        assert listed == ["only-in-b"]
        assert await _list_topics(bootstrap_servers=a.bootstrap) == ["only-in-a"]


@pytest.mark.postgres
def test_postgres_keeps_its_data_over_kill_and_restart(postgres_server: PostgresServer) -> None:
    def ask(sql: str) -> str:
        command = [postgres_server._binary("psql"), "-tAX", postgres_server.dsn, "-c", sql]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    ask("create table kept (x int); insert into kept values (7)")
    postgres_server.kill()
    postgres_server.restart()
    assert ask("select x from kept") == "7"
    postgres_server.restart()
    assert ask("select x from kept; drop table kept").startswith("7")


def test_the_embedded_stack_keeps_its_files_in_the_given_folder(tmp_path: Path) -> None:
    with EmbeddedStack(tmp_path) as stack:
        stack.store.create_bucket("kept")
        stack.etcd.ctl("put", "key", "kept")
    with EmbeddedStack(tmp_path) as stack:
        client = stack.store.client()
        assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["kept"]
        client.close()
        assert stack.etcd.ctl("get", "--print-value-only", "key").strip() == "kept"


def test_a_stopped_server_leaves_no_folder_no_port_and_no_socket() -> None:
    with ObjectStoreServer() as server:
        directory, ports, litter, pid = server.directory, server.ports, server.litter(), server.pid
        assert directory.is_dir()
        assert any(path.exists() for path in litter)
    assert not directory.exists()
    assert not any(path.exists() for path in litter)
    assert not psutil.pid_exists(pid)
    assert all(is_free(port) for port in ports.values())


def test_a_paused_server_answers_nothing_until_resumed_and_can_be_stopped_while_paused() -> None:
    with EtcdServer(durable=False) as server:
        server.ctl("put", "key", "value")
        server.pause()
        assert server.alive
        assert not server._serves()
        server.resume()
        assert server.ctl("get", "--print-value-only", "key").strip() == "value"
        server.pause()
    assert not server.alive


def test_a_server_that_ignores_sigterm_is_killed() -> None:
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + textwrap.dedent(LISTEN)
    server = Listener(program, stop_limit_s=0.2).start()
    server.stop()
    assert not server.alive


def test_a_server_that_cannot_start_says_why_and_keeps_its_log() -> None:
    class Misled(EtcdServer):
        def command(self) -> Sequence[str]:
            return [*super().command(), "--no-such-flag"]

    server = Misled()
    with pytest.raises(ServerFailed, match="flag provided but not defined") as failed:
        server.start()
    assert str(server.log_path) in str(failed.value)
    assert "exit code" in str(failed.value)
    assert "no-such-flag" in server.log_path.read_text()
    server._keep = False
    server.stop()


def test_a_missing_executable_is_an_error_with_its_name() -> None:
    class Missing(Listener):
        def command(self) -> Sequence[str]:
            return ["/no/such/server"]

    server = Missing(LISTEN)
    with pytest.raises(ServerFailed, match="/no/such/server: No such file"):
        server.start()
    server._keep = False
    server.stop()


def test_a_server_that_never_serves_is_killed_and_reported() -> None:
    server = Listener("import time; print('waiting for Godot', flush=True); time.sleep(600)", start_limit_s=1.0)
    with pytest.raises(ServerFailed, match=r"not ready after 1 s(?s:.*)waiting for Godot"):
        server.start()
    assert not server.alive
    server._keep = False
    server.stop()


def test_the_log_is_kept_and_named_when_the_block_fails() -> None:
    server = Listener(LISTEN)
    with pytest.raises(RuntimeError) as failed, server:
        raise RuntimeError("the test failed")
    assert failed.value.__notes__ == [f"the log of listener is kept at {server.log_path}"]
    assert server.log_path.exists()
    server._keep = False
    server.stop()


def test_another_port_is_taken_when_one_is_snatched() -> None:
    class Unlucky(Listener):
        snatched: socket.socket | None = None

        def prepare(self) -> None:
            if self.snatched is None:
                self.snatched = socket.socket()
                self.snatched.bind(("127.0.0.1", self.ports["http"]))

    with Unlucky(LISTEN) as server:
        assert server.snatched is not None
        assert server.snatched.getsockname()[1] != server.ports["http"]
        server.snatched.close()


def test_a_fixed_port_in_use_is_reported() -> None:
    (port,) = free_ports(["taken"]).values()
    with socket.create_server(("127.0.0.1", port)):
        server = EtcdServer(ports={"client": port})
        with pytest.raises(ServerFailed, match=f"client port {port} is taken by another process"):
            server.start()
        server._keep = False
        server.stop()


def test_no_server_outlives_a_parent_that_is_killed() -> None:
    program = """
        import sys, time
        from sluiceway.cli.stack import EmbeddedStack
        stack = EmbeddedStack().__enter__()
        print(stack.etcd.pid, stack.broker.pid, stack.store.pid, stack.etcd.directory, stack.broker.directory,
              stack.store.directory, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        words = parent.stdout.readline().split()
        servers = [psutil.Process(int(word)) for word in words[:3]]
        os.kill(parent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(servers, timeout=10)
    assert alive == []
    _remove_folders(words[3:])


def _remove_folders(folders: list[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def test_a_detached_server_outlives_its_parent(tmp_path: Path) -> None:
    program = f"""
        from pathlib import Path
        from sluiceway.cli.stack import EtcdServer
        server = EtcdServer(directory=Path({str(tmp_path)!r}), detached=True).start()
        print(server.pid, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    server = psutil.Process(int(done.stdout))
    assert server.is_running()
    server.kill()
    psutil.wait_procs([server], timeout=10)


def test_servers_may_be_started_from_threads_that_end(tmp_path: Path) -> None:
    server = Listener(LISTEN)
    thread = Thread(target=server.start)
    thread.start()
    thread.join()
    assert server.alive
    assert server.probe()
    server.stop()


def test_the_ports_of_servers_are_not_those_of_outgoing_connections() -> None:
    ports = free_ports([str(number) for number in range(50)])
    assert len(set(ports.values())) == 50
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port < first for port in ports.values())
