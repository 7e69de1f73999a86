"""S3, a local directory and the fake keep the same promises."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from sluiceway.cli.stack import ObjectStoreServer
from sluiceway.common.errors import AccessDenied, SinkUnavailable, SinkUnfit
from sluiceway.common.specs.models import S3, ParquetSink
from sluiceway.worker.objects.api import ObjectStore
from sluiceway.worker.objects.fake import FakeStore, Fault
from sluiceway.worker.objects.local import UNFINISHED_FOLDER, LocalStore
from sluiceway.worker.objects.open import open_store
from sluiceway.worker.objects.probe import probe
from sluiceway.worker.objects.s3 import S3Store
from sluiceway.worker.sinks.encode import encode_aborted
from sluiceway.worker.sinks.marks import Mark, State

SCHEMA = pa.schema([("a", pa.int64())])


def mark_of(writer: str, *, ranges: int = 1) -> Mark:
    return Mark(
        state=State.ABORTED,
        cut=writer,
        partition="p/t@0/1",
        role="data",
        rows=0,
        schema_version=3,
        token=7,
        spec_hash="0123456789abcdef",
        ranges=tuple((10 * n, 10 * n + 5) for n in range(ranges)),
    )


def put(store: ObjectStore, key: str, writer: str) -> bool:
    mark = mark_of(writer)
    return store.create(key, encode_aborted(SCHEMA, mark), mark.metadata())


def s3_sink(server: ObjectStoreServer, url: str, monkeypatch: pytest.MonkeyPatch, *, secret: str = "") -> ParquetSink:
    monkeypatch.setenv("TEST_S3_ACCESS", server.access_key)
    monkeypatch.setenv("TEST_S3_SECRET", secret or server.secret_key)
    s3 = S3(endpoint=server.endpoint, access_key="env:TEST_S3_ACCESS", secret_key="env:TEST_S3_SECRET")
    return ParquetSink(url=url, s3=s3)


@pytest.fixture
def s3_store(bucket: str, object_store_server: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    store = open_store(s3_sink(object_store_server, f"s3://{bucket}/some/prefix", monkeypatch))
    assert isinstance(store, S3Store)
    yield store
    store.close()


@pytest.fixture(params=["fake", "local", pytest.param("s3", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "fake":
        return FakeStore()
    if request.param == "local":
        return open_store(ParquetSink(url=f"file://{tmp_path}/a folder"))
    found: S3Store = request.getfixturevalue("s3_store")
    return found


def test_of_creates_at_once_exactly_one_wins_and_its_object_stays(store: ObjectStore) -> None:
    races, racers = 10, 4
    with ThreadPoolExecutor(races * racers) as threads:
        for wave in range(5):
            start = threading.Barrier(races * racers)

            def create(number: int, wave: int = wave, start: threading.Barrier = start) -> bool:
                start.wait()
                return put(store, f"data/race-{wave}-{number % races}.parquet", str(number))

            won = list(threads.map(create, range(races * racers)))
            for race in range(races):
                winners = [number for number in range(races * racers) if won[number] and number % races == race]
                assert len(winners) == 1
                stored = store.head(f"data/race-{wave}-{race}.parquet")
                assert stored is not None
                assert Mark.parse(stored.metadata) == mark_of(str(winners[0]))
    assert len(store.list("data/")) == 50


def test_a_later_create_is_refused_and_changes_nothing(store: ObjectStore) -> None:
    assert put(store, "data/x.parquet", "first")
    before = store.read("data/x.parquet")
    assert not put(store, "data/x.parquet", "second")
    assert store.read("data/x.parquet") == before == bytes(encode_aborted(SCHEMA, mark_of("first")))


def test_what_does_not_exist_is_none_and_can_be_deleted(store: ObjectStore) -> None:
    assert store.head("data/none.parquet") is None
    with pytest.raises(FileNotFoundError):
        store.read("data/none.parquet")
    store.delete("data/none.parquet")
    assert store.list("nowhere/") == []


def test_a_listing_is_sorted_and_below_its_prefix(store: ObjectStore) -> None:
    for key in ("data/b/2.parquet", "data/a/1.parquet", "_dead/b/2.parquet", "data/b.parquet"):
        assert put(store, key, "w")
    assert [item.key for item in store.list("data/")] == ["data/a/1.parquet", "data/b.parquet", "data/b/2.parquet"]
    assert [item.key for item in store.list("data/b")] == ["data/b.parquet", "data/b/2.parquet"]
    assert store.list()[0].key == "_dead/b/2.parquet"
    assert store.list("data/a/")[0].size == len(store.read("data/a/1.parquet"))


def test_a_deleted_key_is_free_again(store: ObjectStore) -> None:
    assert put(store, "data/x.parquet", "first")
    store.delete("data/x.parquet")
    assert store.head("data/x.parquet") is None
    assert put(store, "data/x.parquet", "second")


def test_a_large_body_comes_back_as_it_was(store: ObjectStore) -> None:
    body = bytes(range(256)) * 65_536
    assert store.create("data/large", memoryview(body), {})
    assert store.read("data/large") == body


def test_the_probe_accepts_it_and_leaves_nothing_behind(store: ObjectStore) -> None:
    probe(store, url="x")
    assert store.list() == []


def test_the_probe_refuses_a_store_that_overwrites() -> None:
    with pytest.raises(SinkUnfit, match=r"ignores If-None-Match.*at_least_once"):
        probe(FakeStore(conditional=False), url="s3://bucket/prefix")


def test_the_fake_can_lose_answers_refuse_and_land_late() -> None:
    faults = iter([Fault.REFUSED, Fault.LOST_ANSWER, Fault.LATE, None])
    store = FakeStore(faults=lambda operation, key: next(faults) if operation == "create" else None)
    for key in ("refused", "lost", "late"):
        with pytest.raises(SinkUnavailable):
            put(store, key, "zombie")
    assert [item.key for item in store.list()] == ["lost"]
    assert put(store, "late", "recovery")
    store.land()
    stored = store.head("late")
    assert stored is not None
    assert stored.metadata["sluiceway-cut"] == "recovery"


class TestLocalDirectory:
    def test_a_reader_never_sees_a_part_of_an_object(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        body, ended = bytes(8 * 2**20), threading.Event()
        seen: set[int] = set()

        def watch() -> None:
            while not ended.is_set():
                seen.update(item.size for item in store.list())

        with ThreadPoolExecutor(1) as threads:
            watching = threads.submit(watch)
            for number in range(10):
                assert store.create(f"data/{number}", body, {})
            ended.set()
            watching.result()
        assert seen <= {len(body)}
        assert list((tmp_path / UNFINISHED_FOLDER).iterdir()) == []

    def test_what_a_killed_writer_left_is_removed_when_old(self, tmp_path: Path) -> None:
        LocalStore(tmp_path)
        old, young = tmp_path / UNFINISHED_FOLDER / "old", tmp_path / UNFINISHED_FOLDER / "young"
        for path in (old, young):
            path.write_bytes(b"part")
        os.utime(old, (time.time() - 7200, time.time() - 7200))
        assert LocalStore(tmp_path).list() == []
        assert [path.name for path in (tmp_path / UNFINISHED_FOLDER).iterdir()] == ["young"]

    def test_a_path_that_is_a_file_is_an_operators_problem(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(AccessDenied, match="can't write below"):
            open_store(ParquetSink(url=f"file://{tmp_path}/file/below"))


@pytest.mark.servers
class TestS3:
    def test_many_ranges_stay_within_the_metadata_limit(self, s3_store: S3Store) -> None:
        mark = mark_of("w", ranges=4096)
        assert s3_store.create("data/x.parquet", encode_aborted(SCHEMA, mark), mark.metadata())
        stored = s3_store.head("data/x.parquet")
        assert stored is not None
        assert Mark.parse(stored.metadata) == mark_of("w", ranges=0)

    def test_a_missing_bucket_is_an_operators_problem_and_is_not_made(
        self, object_store_server: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store(s3_sink(object_store_server, "s3://no-such-bucket-here/x", monkeypatch))
        for call in (lambda: probe(store, url="x"), store.list, lambda: store.read("k"), lambda: store.head("k")):
            with pytest.raises(AccessDenied, match=r"no-such-bucket-here.*does not exist: create it"):
                call()
        close(store)

    def test_wrong_keys_are_an_operators_problem(
        self, object_store_server: ObjectStoreServer, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store(s3_sink(object_store_server, f"s3://{bucket}/x", monkeypatch, secret="wrong"))
        for call in (lambda: put(store, "k", "w"), store.list, lambda: store.read("k"), lambda: store.head("k")):
            with pytest.raises(AccessDenied, match="keys"):
                call()
        close(store)

    def test_a_secret_that_is_not_there_names_its_reference_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TEST_S3_NOT_SET", raising=False)
        s3 = S3(access_key="env:TEST_S3_NOT_SET", secret_key="env:TEST_S3_NOT_SET")
        with pytest.raises(AccessDenied, match="TEST_S3_NOT_SET"):
            open_store(ParquetSink(url="s3://bucket/x", s3=s3))

    def test_a_server_that_is_killed_makes_the_sink_unavailable_until_it_is_back(
        self, unique_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ObjectStoreServer() as server:
            server.create_bucket("bucket")
            store = open_store(s3_sink(server, "s3://bucket/x", monkeypatch))
            assert put(store, "data/before.parquet", "w")
            server.kill()
            for call in (lambda: put(store, "k", "w"), store.list, lambda: store.head("k"), lambda: store.read("k")):
                with pytest.raises(SinkUnavailable, match="bucket bucket at http"):
                    call()
            server.start()
            assert not put(store, "data/before.parquet", "again")
            assert put(store, "data/after.parquet", "w")
            close(store)


def close(store: ObjectStore) -> None:
    assert isinstance(store, S3Store)
    store.close()
