"""Builds runners out of what the whole process shares: clusters, stores, schemas, threads and the byte budget.

Role: the worker's composition at run time; everything it hands out is shared by key, opened once and closed with the
process. Neighbours: `agent` asks for runners, `__main__` makes the one assembly. It must not decide what is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sluiceway.common.clock import Clock
from sluiceway.common.errors import (
    AccessDenied,
    EtcdUnavailable,
    SluicewayError,
    SourceUnavailable,
    SpecInvalid,
)
from sluiceway.common.etcd.api import Delete, Etcd, KeyValue, Txn, created_at
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.etcd.session import Session
from sluiceway.common.ids import PartitionId
from sluiceway.common.kafka.cluster import KafkaCluster, connect
from sluiceway.common.kafka.protocol import TopicPartition
from sluiceway.common.kafka.wire import NO_UUID
from sluiceway.common.keys import Keys
from sluiceway.common.specs.models import PipelineSpec
from sluiceway.worker.agent import Work
from sluiceway.worker.batches import LogIdentity
from sluiceway.worker.budget import ByteBudget
from sluiceway.worker.buffer import relieve
from sluiceway.worker.catalog import Resolved, pipelines, resolve
from sluiceway.worker.decode.blocks import decode_block
from sluiceway.worker.decode.json_records import JsonDecoder
from sluiceway.worker.decode.registry import SchemaRegistry
from sluiceway.worker.decode.schema import Limits
from sluiceway.worker.failures import SourceDenied
from sluiceway.worker.fetch.feed import Feed
from sluiceway.worker.fetch.fetcher import Fetcher
from sluiceway.worker.objects.api import PROBE_FOLDER, ObjectStore
from sluiceway.worker.objects.open import open_store
from sluiceway.worker.objects.probe import probe
from sluiceway.worker.runner import Assignment, Runner
from sluiceway.worker.sinks.columns import InferredColumns
from sluiceway.worker.sinks.parquet import ParquetSink
from sluiceway.worker.usage import Usage

WRITERS = 16  # calls to one sink's store that may wait at the same time
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class _Connected:
    cluster: KafkaCluster
    fetcher: Fetcher


@dataclass(frozen=True, slots=True)
class _Opened:
    """A sink's store and the threads of its calls: one that hangs keeps no other sink waiting."""

    store: ObjectStore
    writers: ThreadPoolExecutor


class SharedParts:
    """What runners of one process share. See `agent.Assembly`."""

    def __init__(
        self,
        *,
        worker: str,
        etcd: Etcd,
        keys: Keys,
        clock: Clock,
        specs: Mirror,
        budget: ByteBudget,
        decoders: ThreadPoolExecutor,
        patience_s: float,
    ) -> None:
        self._worker, self._etcd, self._keys, self._clock, self._specs = worker, etcd, keys, clock, specs
        self._budget, self._decoders, self._patience_s = budget, decoders, patience_s
        self._clusters: dict[str, _Connected] = {}
        self._schemas: dict[tuple[str, str, Limits], SchemaRegistry] = {}
        self._stores: dict[str, asyncio.Task[_Opened]] = {}
        self._hashes: dict[tuple[str, str], str] = {}
        self._hashed: Mapping[str, KeyValue] = {}

    async def runner(self, partition: PartitionId, token: int, session: Session) -> Runner:
        """A runner for one lease. Raises SluicewayError: see `agent.Assembly.runner`."""
        resolved = resolve(self._specs.snapshot().items, self._keys, partition)
        connected = self._connected(partition.pipeline, resolved)
        opened = await self._store(resolved.pipeline)
        usage = Usage(pipeline=partition.pipeline)

        def sink_troubled(problem: str) -> None:
            usage.sink_problem = problem
            if problem:
                self._forget_store(resolved.pipeline, opened)

        decoder = JsonDecoder(partition, resolved.pipeline.format, resolved.pipeline.origin)
        schemas = self._registry(partition, decoder)
        sink = ParquetSink(
            partition=partition,
            token=token,
            spec=resolved.pipeline,
            spec_hash=resolved.hash,
            etcd=self._etcd,
            keys=self._keys,
            store=opened.store,
            columns=InferredColumns(decoder, schemas),
            session=session,
            clock=self._clock,
            patience_s=self._patience_s,
            encoders=self._decoders,
            writers=opened.writers,
            on_trouble=sink_troubled,
        )
        return Runner(
            Assignment(partition=partition, token=token, spec=resolved.pipeline, spec_hash=resolved.hash),
            source=_TopicSource(connected, resolved, partition, self._patience_s),
            decode=lambda block: decode_block(decoder, block, schemas, self._decoders),
            sink=sink,
            budget=self._budget,
            clock=self._clock,
            usage=usage,
            on_first_delivery=lambda: self._forgive(partition, token),
        )

    def spec_hash(self, partition: PartitionId) -> str:
        items, name = self._specs.snapshot().items, (partition.pipeline, partition.topic)
        if items is not self._hashed:  # asked for each partition at each change of the inbox, while specs seldom change
            self._hashes, self._hashed = {}, items
        if name not in self._hashes:
            self._hashes[name] = _hash(items, self._keys, partition)
        return self._hashes[name]

    def process_usage(self) -> tuple[float, int]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return used.ru_utime + used.ru_stime, resident_pages * _PAGE_BYTES

    def buffered_bytes(self) -> int:
        return self._budget.used

    def relieve_memory(self, runners: Mapping[str, Work]) -> None:
        """While somebody waits for bytes, cuts free half of those that are held."""
        if not self._budget.starved:
            return
        buffered = {name: runner.buffered_bytes for name, runner in runners.items()}
        for name in relieve(buffered, held_bytes=self._budget.held):
            runners[name].relieve()

    async def keep_warm(self) -> NoReturn:
        """Opens and probes the sinks of all applied pipelines, so that a lease can start at once."""
        revision = -1
        while True:
            snapshot = await self._specs.changed(revision)
            revision = snapshot.revision
            for spec in pipelines(snapshot.items, self._keys):
                with contextlib.suppress(Exception):  # the first lease says what is wrong; others have work to do
                    await self._store(spec)

    async def close(self) -> None:
        """Closes every connection."""
        for connected in self._clusters.values():
            await connected.fetcher.close()
            await connected.cluster.close()

    def _connected(self, pipeline: str, resolved: Resolved) -> _Connected:
        """Each pipeline has connections of its own, so that none waits behind another's answers."""
        key = f"{pipeline} {resolved.cluster.model_dump_json()}"
        if key not in self._clusters:
            cluster = connect(resolved.cluster, client_id=f"sluiceway-{self._worker}", request_timeout_s=10.0)
            self._clusters[key] = _Connected(cluster, Fetcher(cluster, self._budget))
        return self._clusters[key]

    async def _store(self, spec: PipelineSpec) -> _Opened:
        """The sink's store, opened and probed once; a failed try is not remembered."""
        key = _store_key(spec)
        if key not in self._stores:
            self._stores[key] = asyncio.create_task(_open(spec), name=f"open {spec.sink.url}")
        task = self._stores[key]
        try:
            return await asyncio.shield(task)
        except Exception:
            if self._stores.get(key) is task:
                del self._stores[key]
            raise

    def _forget_store(self, spec: PipelineSpec, opened: _Opened) -> None:
        """The next lease opens and probes the store anew, with the secrets of then, before it fetches anything."""
        task = self._stores.get(_store_key(spec))
        if task is not None and task.done() and task.exception() is None and task.result() is opened:
            del self._stores[_store_key(spec)]

    def _registry(self, partition: PartitionId, decoder: JsonDecoder) -> SchemaRegistry:
        return self._schemas.setdefault(
            (partition.pipeline, partition.topic, decoder.limits),
            SchemaRegistry(self._etcd, self._keys, partition.pipeline, partition.topic, decoder.limits),
        )

    async def _forgive(self, partition: PartitionId, token: int) -> None:
        """A delivery ends the history of failures. Not worth an error: the next lease tries again."""
        try:
            await self._etcd.txn(
                Txn([created_at(self._keys.lease(partition), token)], [Delete(self._keys.failure(partition))])
            )
        except EtcdUnavailable:
            return


async def _open(spec: PipelineSpec) -> _Opened:
    writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")

    def open_and_probe() -> _Opened:
        store = open_store(spec.sink)
        if spec.delivery == "exactly_once":
            probe(store, url=spec.sink.url)
        else:
            store.list(f"{PROBE_FOLDER}/")  # no lease shall fetch records for a store that is not there
        return _Opened(store, writers)

    return await asyncio.get_running_loop().run_in_executor(writers, open_and_probe)


def _hash(items: Mapping[str, KeyValue], keys: Keys, partition: PartitionId) -> str:
    try:
        return resolve(items, keys, partition).hash
    except SpecInvalid:
        return ""


def _store_key(spec: PipelineSpec) -> str:
    return f"{spec.delivery} {spec.sink.model_dump_json()}"


class _TopicSource:
    """One partition of one physical topic; see `runner.Source`."""

    def __init__(self, connected: _Connected, resolved: Resolved, partition: PartitionId, patience_s: float) -> None:
        self._connected, self._resolved, self._number = connected, resolved, partition.number
        self._patience_s = patience_s

    async def open(self, offset: int, log: LogIdentity) -> Feed:
        return await self._connected.fetcher.open(
            self._resolved.topic,
            self._number,
            offset,
            topic_id=bytes.fromhex(log.topic_id) or NO_UUID,
            leader_epoch=log.leader_epoch,
            give_up_after_s=self._patience_s,
        )

    async def first_offset(self) -> int:
        wanted = TopicPartition(self._resolved.topic, self._number)
        try:
            bounds = (await self._connected.cluster.offsets([wanted]))[wanted]
        except AccessDenied as error:
            raise SourceDenied(str(error)) from error
        if isinstance(bounds, AccessDenied):
            raise SourceDenied(str(bounds)) from bounds
        if isinstance(bounds, SluicewayError):
            raise SourceUnavailable(str(bounds)) from bounds
        return bounds[0] if self._resolved.pipeline.start == "earliest" else bounds[1]
