"""The adapter, the mirror and sessions on a real etcd that is killed, stopped, compacted, secured and full."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sluiceway.cli.stack.etcd import EtcdCluster, EtcdServer
from sluiceway.cli.stack.ports import free_ports
from sluiceway.cli.stack.tls import Certificates, make_certificates
from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import AccessDenied, EtcdUnavailable, LeaseLost
from sluiceway.common.etcd.api import Op, Put, Txn
from sluiceway.common.etcd.client import EtcdClient, connect
from sluiceway.common.etcd.election import Election
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.etcd.session import Session
from sluiceway.common.settings import EtcdSettings

pytestmark = pytest.mark.servers

PREFIX = "/m/"


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """An etcd of the test's own."""
    with EtcdServer(durable=False) as running:
        yield running


@asynccontextmanager
async def connected(*endpoints: str, **settings: Any) -> AsyncIterator[EtcdClient]:
    etcd = await connect(EtcdSettings(endpoints=list(endpoints), timeout_s=1.0, **settings))
    try:
        yield etcd
    finally:
        await etcd.close()


@asynccontextmanager
async def beside(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """Runs a coroutine beside the block, and ends it with it."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def written(etcd: EtcdClient, key: str, value: bytes = b"") -> int:
    """Writes as soon as etcd can be reached; returns the revision."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await etcd.put(key, value)
            except EtcdUnavailable:
                await asyncio.sleep(0.05)


def show(figure: str) -> None:
    """Figures are printed, never asserted: machines differ."""
    sys.stdout.write(figure + "\n")


async def equal(mirror: Mirror, etcd: EtcdClient) -> bool:
    """Whether the mirror, once it has seen the present revision, shows what etcd has."""
    listing = await etcd.list(PREFIX)
    async with asyncio.timeout(20):
        snapshot = await mirror.wait_for(listing.revision)
    return sorted(snapshot.items.values()) == listing.items


async def test_a_killed_etcd_is_used_again_and_the_watch_resumes_exactly(server: EtcdServer) -> None:
    async with connected(server.endpoint) as etcd:
        mirror = Mirror(etcd, PREFIX)
        async with beside(mirror.run()):
            await mirror.wait_for(await etcd.put("/m/1", b""))
            for number in range(3):
                server.kill()
                with pytest.raises(EtcdUnavailable):
                    await etcd.put("/m/lost", b"")
                await asyncio.to_thread(server.start)
                started = time.monotonic()
                await written(etcd, f"/m/{number}")
                show(f"etcd used again {time.monotonic() - started:.2f} s after it was ready")
                assert await equal(mirror, etcd)
            assert mirror.resyncs == 0


async def test_deletions_compacted_away_while_disconnected_leave_the_mirror_equal(server: EtcdServer) -> None:
    gate = free_ports(["gate"])["gate"]
    async with _forwarder(gate, server) as forwarder, connected(f"127.0.0.1:{gate}") as etcd:
        mirror = Mirror(etcd, PREFIX)
        async with beside(mirror.run()), connected(server.endpoint) as other:
            await other.put("/m/gone", b"")
            await mirror.wait_for(await other.put("/m/kept", b""))
            await forwarder.cut()
            await other.delete("/m/gone")
            revision = (await other.list("")).revision
            await asyncio.to_thread(server.ctl, "compaction", str(revision))
            await forwarder.mend()
            async with asyncio.timeout(20):
                await mirror.wait_for(revision)
            assert mirror.resyncs == 1
            assert await equal(mirror, other)


async def test_a_paused_etcd_raises_in_time_and_is_used_when_it_goes_on(server: EtcdServer) -> None:
    async with connected(server.endpoint) as etcd:
        mirror = Mirror(etcd, PREFIX)
        async with beside(mirror.run()):
            await mirror.wait_for(await etcd.put("/m/1", b""))
            server.pause()
            started = time.monotonic()
            with pytest.raises(EtcdUnavailable):
                await _write_on(etcd)  # a process may still answer a little after it was told to stop
            show(f"a paused etcd was given up after {time.monotonic() - started:.2f} s")
            server.resume()
            await written(etcd, "/m/3")
            assert await equal(mirror, etcd)


async def test_a_session_outlives_a_short_outage_and_is_lost_in_a_long_one(server: EtcdServer) -> None:
    async with connected(server.endpoint) as etcd:
        session = await Session.open(etcd, SystemClock(), ttl_s=4, margin_s=1)
        async with beside(session.run()) as run:
            await asyncio.to_thread(server.restart)
            await written(etcd, "/m/1")
            session.check()
            server.pause()
            async with asyncio.timeout(6):
                with pytest.raises(LeaseLost):
                    await run
            server.resume()
            with pytest.raises(LeaseLost):
                session.check()
            await session.close()


async def test_leadership_passes_on_when_the_leader_dies(server: EtcdServer) -> None:
    async with connected(server.endpoint) as one, connected(server.endpoint) as other:
        dying = await Session.open(one, SystemClock(), ttl_s=2, margin_s=0.5)
        term = await Election(one, dying, key="/leader", candidate="a").campaign()
        alive = await Session.open(other, SystemClock(), ttl_s=30, margin_s=0.5)
        async with asyncio.timeout(10):
            later = await Election(other, alive, key="/leader", candidate="b").campaign()
        assert later.number > term.number
        assert not (await one.txn(Txn([term.guard()], [Put("/m/late", b"")]))).succeeded


async def test_a_dead_endpoint_among_several_does_no_harm(server: EtcdServer) -> None:
    dead = f"127.0.0.1:{free_ports(['dead'])['dead']}"
    async with connected(dead, server.endpoint) as etcd:
        assert await etcd.put("/m/1", b"") > 0
        assert await etcd.get("/m/1") is not None


async def test_of_three_members_one_is_killed_and_one_pauses_and_the_mirror_stays_equal() -> None:
    with EtcdCluster(durable=False) as cluster:
        async with connected(*cluster.endpoints) as etcd:
            mirror = Mirror(etcd, PREFIX)
            async with beside(mirror.run()):
                await mirror.wait_for(await etcd.put("/m/0", b""))
                for member in cluster.members:
                    member.pause()
                    started = time.monotonic()
                    await written(etcd, f"/m/{member.name}/paused")
                    assert await equal(mirror, etcd)
                    show(f"{member.name} paused: followed after {time.monotonic() - started:.2f} s")
                    member.resume()
                    await written(etcd, f"/m/{member.name}/resumed")
                    member.kill()
                    await written(etcd, f"/m/{member.name}/killed")
                    assert await equal(mirror, etcd)
                    await asyncio.to_thread(member.start)


async def test_no_endpoint_at_all_is_an_error_in_time() -> None:
    with pytest.raises(EtcdUnavailable):
        async with connected(f"127.0.0.1:{free_ports(['dead'])['dead']}"):
            pass


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "tls")


async def test_tls_and_a_client_certificate_are_used(certificates: Certificates) -> None:
    with EtcdServer(durable=False, certificates=certificates, client_certificates=True) as server:
        mutual = {
            "ca": f"file:{certificates.ca}",
            "certificate": f"file:{certificates.client_certificate}",
            "key": f"file:{certificates.client_key}",
        }
        async with connected(server.endpoint, **mutual) as etcd:
            assert await etcd.put("/m/1", b"") > 0
        async with connected(server.endpoint, server_name="localhost", **mutual) as etcd:
            assert await etcd.get("/m/1") is not None
        for wrong in ({"ca": mutual["ca"]}, {**mutual, "server_name": "elsewhere"}, {}):
            with pytest.raises(EtcdUnavailable):
                async with connected(server.endpoint, **wrong):
                    pass


async def test_a_certificate_that_cannot_be_read_names_its_reference() -> None:
    with pytest.raises(AccessDenied, match="file:/nowhere/ca"):
        async with connected("127.0.0.1:1", ca="file:/nowhere/ca.pem"):
            pass


@pytest.fixture
def secured(monkeypatch: pytest.MonkeyPatch) -> Iterator[EtcdServer]:
    monkeypatch.setenv("TEST_ROOT_PASSWORD", "root-secret")
    monkeypatch.setenv("TEST_USER_PASSWORD", "user-secret")
    monkeypatch.setenv("TEST_WRONG_PASSWORD", "wrong-secret")
    with EtcdServer(durable=False, root_password=os.environ["TEST_ROOT_PASSWORD"]) as server:
        server.ctl("role", "add", "fleet")
        server.ctl("role", "grant-permission", "fleet", "--prefix=true", "readwrite", PREFIX)
        server.ctl("user", "add", "worker:user-secret")
        server.ctl("user", "grant-role", "worker", "fleet")
        yield server


WORKER = {"username": "worker", "password": "env:TEST_USER_PASSWORD"}


async def test_wrong_or_missing_credentials_are_denied_without_showing_them(secured: EtcdServer) -> None:
    with pytest.raises(AccessDenied) as caught:
        async with connected(secured.endpoint, username="worker", password="env:TEST_WRONG_PASSWORD"):
            pass
    assert "wrong-secret" not in str(caught.value)
    async with connected(secured.endpoint) as nobody:
        with pytest.raises(AccessDenied):
            await nobody.get("/m/1")


async def test_a_role_limits_reads_writes_and_watches(secured: EtcdServer) -> None:
    async with connected(secured.endpoint, **WORKER) as etcd:
        await etcd.put("/m/1", b"")
        for refused in (etcd.get("/other"), etcd.put("/other", b""), etcd.list("/other/")):
            with pytest.raises(AccessDenied):
                await refused
        with pytest.raises(AccessDenied):
            async with asyncio.timeout(10), aclosing(etcd.watch("/other/", start_revision=1)) as batches:
                await anext(batches)


async def test_tokens_forgotten_by_a_restarted_etcd_are_replaced_in_calls_watches_and_keep_alives(
    secured: EtcdServer,
) -> None:
    async with connected(secured.endpoint, **WORKER) as etcd:
        mirror = Mirror(etcd, PREFIX)
        lease = await etcd.grant(60)
        async with beside(mirror.run()) as run:
            await mirror.wait_for(await etcd.put("/m/1", b""))
            await asyncio.to_thread(secured.restart)
            await written(etcd, "/m/2")
            assert await etcd.keep_alive(lease) == 60
            assert await equal(mirror, etcd)
            await asyncio.to_thread(secured.ctl, "user", "add", "another:x")  # makes every older token out of date
            await written(etcd, "/m/3")
            assert await equal(mirror, etcd)
            assert not run.done()


async def test_a_transaction_larger_than_a_message_arrives_whole_in_one_batch(server: EtcdServer) -> None:
    async with connected(server.endpoint) as etcd:
        lease = await etcd.grant(60)
        keys = 30_000
        for start in range(0, keys, 100):
            ops: list[Op] = [Put(f"/m/{'x' * 100}/{n:06}", b"", lease) for n in range(start, start + 100)]
            last = (await etcd.txn(Txn([], ops))).revision
        await etcd.revoke(lease)
        async with asyncio.timeout(20), aclosing(etcd.watch(PREFIX, start_revision=last + 1)) as batches:
            batch = await anext(batches)
        assert (batch.revision, len(batch.events)) == (last + 1, keys)


async def test_values_beyond_one_message_are_listed(server: EtcdServer) -> None:
    async with connected(server.endpoint) as etcd:
        for number in range(30):
            await etcd.put(f"/m/{number:02}", bytes(1_000_000))
        listing = await etcd.list(PREFIX)
        assert [len(item.value) for item in listing.items] == [1_000_000] * 30


async def test_a_request_that_is_too_large_is_the_callers_error(server: EtcdServer) -> None:
    async with connected(server.endpoint) as etcd:
        with pytest.raises(ValueError, match="too large"):
            await etcd.put("/m/1", bytes(2_000_000))


async def test_a_full_etcd_is_unavailable_for_writes_only() -> None:
    with EtcdServer(durable=False, quota_bytes=4_000_000) as server:
        async with connected(server.endpoint) as etcd:
            with pytest.raises(EtcdUnavailable, match="space exceeded"):
                await _fill(etcd)
            assert await etcd.get("/m/0") is not None


async def _write_on(etcd: EtcdClient) -> None:
    for number in range(1000):
        await etcd.put(f"/m/{number}", b"")


async def _fill(etcd: EtcdClient) -> None:
    for number in range(200):  # etcd counts the space only once its batches are committed
        await etcd.put(f"/m/{number}", bytes(1_000_000))


@pytest.mark.slow
async def test_a_hundred_thousand_lease_keys_load_follow_and_resync() -> None:
    from benchmarks.mirror import measure

    figures = await measure(keys=100_000, sessions=500, changes=20_000)
    show(json.dumps(figures))
    assert figures["equal"]


class _Forwarder:
    """A TCP door to etcd that can be cut."""

    def __init__(self, port: int, server: EtcdServer) -> None:
        self._port, self._server = port, server
        self._listener: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def mend(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
        pipes = tuple(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        if pipes:
            await asyncio.wait(pipes)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pipe(reader, writer))
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._server.endpoint.split(":")
        there, back = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, back))
                both.create_task(_copy(there, writer))
        finally:
            for each in (writer, back):
                each.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while block := await source.read(65536):
        target.write(block)
        await target.drain()
    target.close()


@asynccontextmanager
async def _forwarder(port: int, server: EtcdServer) -> AsyncIterator[_Forwarder]:
    forwarder = _Forwarder(port, server)
    await forwarder.mend()
    try:
        yield forwarder
    finally:
        await forwarder.cut()
