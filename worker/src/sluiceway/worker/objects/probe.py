"""Finds out whether a store can give exactly-once delivery, before any record is trusted to it.

Neighbours: whoever opens a store, once a sink and process; the caller keeps the result. Probe objects lie in a hidden
folder and are removed.
"""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from sluiceway.common.errors import SinkUnfit
from sluiceway.worker.objects.api import METADATA_PREFIX, PROBE_FOLDER, ObjectStore

WRITER: Final = METADATA_PREFIX + "writer"


def probe(store: ObjectStore, *, url: str, racers: int = 4, rounds: int = 3) -> None:
    """Lets `racers` threads create the same fresh key at once, `rounds` times. Blocking: run it on a thread.

    Raises:
        SinkUnfit: not exactly one racer won, the winner's object was replaced, or its metadata was not kept.
        SinkUnavailable, AccessDenied: no answer.
    """
    store.list(f"{PROBE_FOLDER}/")  # some stores make a missing bucket at the first put: a misspelt one is told here
    with ThreadPoolExecutor(racers, thread_name_prefix="probe") as threads:
        for _ in range(rounds):
            key = f"{PROBE_FOLDER}/{uuid.uuid4().hex}"
            try:
                _race(store, key, url, threads, racers)
            finally:
                store.delete(key)


def _race(store: ObjectStore, key: str, url: str, threads: ThreadPoolExecutor, racers: int) -> None:
    start = threading.Barrier(racers)

    def create(racer: int) -> bool:
        metadata = {WRITER: str(racer)}
        body = _parquet(metadata)
        start.wait()
        return store.create(key, body, metadata)

    won = list(threads.map(create, range(racers)))
    refused_later = not store.create(key, _parquet({WRITER: "late"}), {WRITER: "late"})
    if won.count(True) != 1 or not refused_later:
        raise SinkUnfit(
            f"{url} ignores If-None-Match: of {racers} creates of one object {won.count(True)} succeeded"
            f"{'' if refused_later else ', and a later one replaced it'}. Exactly-once delivery needs conditional "
            "writes: set delivery: at_least_once, or use a store that has them"
        )
    stored = store.head(key)
    if stored is None or stored.metadata.get(WRITER) != str(won.index(True)):
        raise SinkUnfit(
            f"{url} does not keep the metadata of objects, by which a recovery tells what was written: "
            "set delivery: at_least_once, or use a store that keeps it"
        )


def _parquet(metadata: dict[str, str]) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema([("probe", pa.int64())])) as parquet:
        parquet.add_key_value_metadata(metadata)
    return bytes(sink.getvalue())
