"""The Parquet sink on a real S3 store and a real etcd, read back as any engine would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from sluiceway.cli.stack import EtcdServer, ObjectStoreServer
from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import LeaseLost
from sluiceway.common.etcd.api import Etcd
from sluiceway.common.etcd.client import connect
from sluiceway.common.etcd.session import Session
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.settings import EtcdSettings
from sluiceway.common.specs.models import S3, JsonFormat, Origin, PipelineSpec
from sluiceway.common.specs.models import ParquetSink as ParquetSinkSpec
from sluiceway.worker.batches import DecodedBlock, RecordBlock
from sluiceway.worker.decode.blocks import decode_block
from sluiceway.worker.decode.json_records import JsonDecoder
from sluiceway.worker.decode.registry import SchemaRegistry
from sluiceway.worker.objects.api import ObjectStore, StoredObject
from sluiceway.worker.objects.open import open_store
from sluiceway.worker.objects.s3 import S3Store
from sluiceway.worker.sinks.columns import InferredColumns
from sluiceway.worker.sinks.parquet import ParquetSink

PARTITION = PartitionId("events", "logs", 0, 0)


class HeldStore:
    """A store behind a slow network: creates wait until `release`, then go on as if nothing had happened."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.arrived, self.release = asyncio.Event(), asyncio.Event()
        self.answers: list[bool] = []

    def create(self, key: str, body: bytes | memoryview, metadata: dict[str, str]) -> bool:
        self._loop.call_soon_threadsafe(self.arrived.set)
        asyncio.run_coroutine_threadsafe(self.release.wait(), self._loop).result()
        self.answers.append(self._store.create(key, body, metadata))
        return self.answers[-1]

    def head(self, key: str) -> StoredObject | None:
        return self._store.head(key)

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def list(self, prefix: str = "") -> list[StoredObject]:
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        self._store.delete(key)


class Fleet:
    """One partition's place in a real etcd and a real bucket."""

    def __init__(self, etcd: Etcd, keys: Keys, spec: PipelineSpec) -> None:
        self.etcd, self.keys, self.spec = etcd, keys, spec
        self.store = open_store(spec.sink)
        self.decoder = JsonDecoder(PARTITION, JsonFormat(), Origin())
        self.registry = SchemaRegistry(etcd, keys, PARTITION.pipeline, PARTITION.topic, self.decoder.limits)
        self.sessions: list[Session] = []
        self.threads = ThreadPoolExecutor(1)

    async def holder(self, *, store: ObjectStore | None = None) -> ParquetSink:
        """A new session takes the lease away from whoever has it."""
        session = await Session.open(self.etcd, SystemClock(), ttl_s=30, margin_s=1)
        self.sessions.append(session)
        await self.etcd.delete(self.keys.lease(PARTITION))
        token = await self.etcd.put(self.keys.lease(PARTITION), b"{}", lease=session.id)
        return ParquetSink(
            partition=PARTITION,
            token=token,
            spec=self.spec,
            spec_hash="hash",
            etcd=self.etcd,
            keys=self.keys,
            store=store or self.store,
            columns=InferredColumns(self.decoder, self.registry),
            session=session,
            clock=SystemClock(),
        )

    async def blocks(self, values: list[bytes], start: int = 0) -> list[DecodedBlock]:
        offsets = list(range(start, start + len(values)))
        block = RecordBlock(
            offsets=offsets,
            timestamps_ms=[1_700_000_000_000 + offset for offset in offsets],
            keys=[None] * len(values),
            values=list(values),
            start_offset=start,
            next_offset=start + len(values),
            size_bytes=sum(map(len, values)),
        )
        return [await decode_block(self.decoder, block, self.registry, self.threads)]

    async def close(self) -> None:
        for session in self.sessions:
            await session.close()
        self.threads.shutdown()
        assert isinstance(self.store, S3Store)
        self.store.close()


@pytest.fixture
async def fleet(
    etcd_server: EtcdServer,
    object_store_server: ObjectStoreServer,
    bucket: str,
    unique_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Fleet]:
    monkeypatch.setenv("TEST_S3_ACCESS", object_store_server.access_key)
    monkeypatch.setenv("TEST_S3_SECRET", object_store_server.secret_key)
    s3 = S3(endpoint=object_store_server.endpoint, access_key="env:TEST_S3_ACCESS", secret_key="env:TEST_S3_SECRET")
    spec = PipelineSpec(topics=["logs"], sink=ParquetSinkSpec(url=f"s3://{bucket}/lake", s3=s3))
    etcd = await connect(EtcdSettings(endpoints=[etcd_server.endpoint]))
    running = Fleet(etcd, Keys(unique_name("fleet")), spec)
    yield running
    await running.close()
    await etcd.close()


def download(store: ObjectStore, folder: Path) -> None:
    for item in store.list():
        path = folder / item.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(item.key))


def query(text: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(text).fetchall()


def numbers(first: int, last: int) -> list[bytes]:
    return [b'{"n": %d, "host": "h%d"}' % (n, n % 3) for n in range(first, last)]


async def test_a_plain_listing_has_each_row_once_after_a_zombies_late_put(fleet: Fleet, tmp_path: Path) -> None:
    """INV-DELIVERY-1, INV-LEASE-2: the zombie's create, sent before its lease moved, gets 412."""
    held = HeldStore(fleet.store)
    zombie = await fleet.holder(store=held)
    await zombie.open()
    late = asyncio.create_task(zombie.deliver(await fleet.blocks([*numbers(0, 50), b"not json"])))
    await held.arrived.wait()

    successor = await fleet.holder()
    progress = await successor.open()
    assert (progress.next_offset, progress.cut) == (0, None)
    await successor.deliver(await fleet.blocks([*numbers(0, 50), b"not json", *numbers(51, 60)]))
    held.release.set()
    with pytest.raises(LeaseLost):
        await late
    assert held.answers == [False]

    download(fleet.store, tmp_path)
    rows = query(f"select n, host, _offset from read_parquet('{tmp_path}/data/**/*.parquet') order by n")
    assert rows == [(n, f"h{n % 3}", n) for n in range(60) if n != 50]
    dead = query(f"select \"offset\", value, error from read_parquet('{tmp_path}/_dead_letters/**/*.parquet')")
    assert dead == [(50, b"not json", "malformed")]
    assert sorted(item.key.split("/")[0] for item in fleet.store.list()) == ["_dead_letters"] * 2 + ["data"] * 2


async def test_what_was_written_before_a_crash_is_adopted_and_counted(fleet: Fleet) -> None:
    blocks = await fleet.blocks(numbers(0, 100))
    created = asyncio.Event()
    store = fleet.store

    class DyingStore(HeldStore):
        def create(self, key: str, body: bytes | memoryview, metadata: dict[str, str]) -> bool:
            store.create(key, body, metadata)
            self._loop.call_soon_threadsafe(created.set)
            asyncio.run_coroutine_threadsafe(self.release.wait(), self._loop).result()
            return True

    dying = DyingStore(store)
    killed = await fleet.holder(store=dying)
    await killed.open()
    delivery = asyncio.create_task(killed.deliver(blocks))
    await created.wait()
    delivery.cancel()
    await asyncio.wait([delivery])

    progress = await (await fleet.holder()).open()
    assert (progress.next_offset, progress.delivered, progress.cut) == (100, 100, None)
    dying.release.set()


async def test_a_file_has_one_schema_though_it_widened_while_records_waited(fleet: Fleet, tmp_path: Path) -> None:
    sink = await fleet.holder()
    await sink.open()
    blocks = [
        *await fleet.blocks([b'{"a": 1}'] * 3),
        *await fleet.blocks([b'{"a": "text", "b": true}'], 3),
        *await fleet.blocks([b'{"a": 2.5}', b"not json"], 4),
    ]
    delivery = await sink.deliver(blocks)
    assert (delivery.rows, delivery.objects) == (5, 2)
    download(fleet.store, tmp_path)
    table = ds.dataset(tmp_path, format="parquet").to_table().sort_by("_offset")  # skips folders with an underscore
    assert table.schema.field("a").type == pa.string()
    assert table["a"].to_pylist() == ["1", "1", "1", "text", "2.5"]
    assert table["b"].to_pylist() == [None, None, None, True, None]
