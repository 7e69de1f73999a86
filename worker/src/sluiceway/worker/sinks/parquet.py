"""Delivers one partition into Parquet files on an object store, exactly once.

Role: carries out the protocol of `cuts`, one step a method: open → resolve → settle, and deliver → journal → create →
settle. Neighbours: the runner calls it; `shares` and `encode` make the objects; etcd holds the progress. It decides
nothing by itself but how long to be patient. See docs/adr/0003 and docs/sink-guarantees.md.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import msgspec
import pyarrow as pa
from prometheus_client import Counter

from sluiceway.common.clock import Clock
from sluiceway.common.errors import AccessDenied, EtcdUnavailable, LeaseLost, SinkUnavailable, SinkUnfit
from sluiceway.common.etcd.api import Etcd, KeyValue
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import Cut, CutObject, ProgressRecord, decode
from sluiceway.common.specs.models import PipelineSpec
from sluiceway.worker.batches import DecodedBlock, LogIdentity
from sluiceway.worker.objects.api import ObjectStore
from sluiceway.worker.sinks import cuts, layout
from sluiceway.worker.sinks.cuts import DATA_ROLE, DEAD_LETTERS_ROLE, Outcome
from sluiceway.worker.sinks.encode import DEAD_LETTER_SCHEMA, encode_aborted, encode_dead_letters, encode_rows
from sluiceway.worker.sinks.marks import Mark, State
from sluiceway.worker.sinks.shares import DataShare, DeadShare, share, split

ABORTED_OBJECTS: Final = Counter(
    "sluiceway_aborted_objects_total", "Empty objects that recoveries created so that late writes are refused."
)
ADOPTED_OBJECTS: Final = Counter(
    "sluiceway_adopted_objects_total", "Objects of a former holder's open cut that were found written."
)
UNKNOWN_LOG: Final = LogIdentity()
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0

Result = TypeVar("Result")
Sleep = Callable[[float], Awaitable[None]]


class Columns(Protocol):
    """What columns the files have; see `columns.InferredColumns`."""

    def unify(self, tables: Sequence[pa.Table]) -> pa.Table: ...

    def row_bytes(self) -> int: ...

    async def newest(self) -> pa.Schema: ...


class Fence(Protocol):
    """What says whether side effects are still allowed; called from any thread."""

    def check(self) -> None:
        """Raises LeaseLost past the session's deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What one `deliver` did. `cpu_s` is the thread time of encoding and writing."""

    progress: ProgressRecord
    rows: int = 0
    dead: int = 0
    objects: int = 0
    bytes_out: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """One object that is about to be created, or was."""

    item: CutObject
    rows: int
    body: memoryview
    metadata: dict[str, str]


class ParquetSink:
    """One partition's way into the sink, under one token. Not for concurrent calls.

    After any exception of `deliver` or `skip`, call `open` again before anything else: it finds out what happened.
    """

    def __init__(
        self,
        *,
        partition: PartitionId,
        token: int,
        spec: PipelineSpec,
        spec_hash: str,
        etcd: Etcd,
        keys: Keys,
        store: ObjectStore,
        columns: Columns,
        session: Fence,
        clock: Clock,
        patience_s: float = 30.0,
        sleep: Sleep = asyncio.sleep,
        nonce: Callable[[], str] = lambda: secrets.token_hex(4),
        encoders: Executor | None = None,
        writers: Executor | None = None,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`patience_s`: how long a failing store is retried. `encoders` run CPU work and `writers` blocking calls; None
        is the loop's own threads, which a store that hangs would then keep from others. `on_trouble` is told why the
        store can't be used, and an empty text when it can be again."""
        layout.check_dead_letter_folder(spec.dead_letters.prefix)
        self._partition, self._token = partition, token
        self._spec, self._spec_hash = spec, spec_hash
        self._etcd, self._store, self._columns = etcd, store, columns
        self._session, self._clock = session, clock
        self._lease_key, self._progress_key = keys.lease(partition), keys.progress(partition)
        self._patience_s, self._sleep, self._nonce = patience_s, sleep, nonce
        self._encoders, self._writers, self._on_trouble = encoders, writers, on_trouble
        self._progress: ProgressRecord | None = None
        self._log = UNKNOWN_LOG
        self._revision = 0
        self._cuts = 0
        self._cpu_s = 0.0

    async def open(self, *, initial_offset: Callable[[], Awaitable[int]] | None = None) -> ProgressRecord:
        """Reads progress and resolves the open cut that a former holder, or a failed `deliver`, left.

        `initial_offset` is asked where a partition without progress starts (None: 0); the answer is durable before it
        is used. The records to read go from `next_offset` on; `deliver` leaves out what is delivered already.

        Raises:
            LeaseLost, SinkUnavailable, AccessDenied, SinkUnfit.
        """
        self._progress = None
        item = await self._read()
        self._revision = item.mod_revision if item else 0
        if item is None:
            first = await initial_offset() if initial_offset else 0
            progress = await self._write(ProgressRecord(next_offset=first, token=self._token))
        else:
            progress = decode(ProgressRecord, item.value)
            if progress.cut is not None:
                progress = await self._settle(progress, await self._resolve(progress.cut))
        self._progress = progress
        return progress

    async def deliver(self, blocks: Sequence[DecodedBlock], *, log: LogIdentity = UNKNOWN_LOG) -> Delivery:
        """Delivers consecutive blocks of `log` that start at `next_offset` or before; on return all is committed.

        What of them is delivered already is left out. So a reader just goes on where its last blocks ended, also when
        progress has jumped ahead of it, over what a partly aborted cut had delivered.

        Usually one cut; more where dead letters alternate with rows so often that one cut could not name them.

        Raises:
            LeaseLost: somebody else holds the partition, or may; what was not committed is theirs to resolve.
            SinkUnavailable, AccessDenied, SinkUnfit: nothing is lost or doubled; `open` again.
            ValueError: the blocks don't follow on progress or on each other.
        """
        progress, self._log = self._opened(), log
        expected = min(blocks[0].start_offset, progress.next_offset) if blocks else 0
        for block in blocks:
            if block.start_offset != expected:
                raise ValueError(f"the block starts at {block.start_offset}; progress is at {expected}")
            expected = block.next_offset
        self._progress = None
        total = Delivery(progress=progress)
        for group in split(blocks, offset_column=self._spec.origin.offset):
            total = _sum(total, await self._deliver_cut(total.progress, group))
        self._progress = total.progress
        return total

    async def skip(self, *, to: int) -> ProgressRecord:
        """Goes on past the records below `to`, which the broker removed; counts those not delivered yet as lost."""
        wanted = cuts.skipped(self._opened(), to, token=self._token, at=self._clock.now())
        self._progress = None
        self._progress = await self._write(wanted)
        return self._progress

    async def _deliver_cut(self, progress: ProgressRecord, blocks: Sequence[DecodedBlock]) -> Delivery:
        end = blocks[-1].next_offset
        if end <= progress.next_offset:  # what is left of it was delivered before
            return Delivery(progress=progress)
        cpu_before_s = self._cpu_s
        plan = share(
            [block for block in blocks if block.next_offset > progress.next_offset],
            cuts.undelivered(progress, end),
            offset_column=self._spec.origin.offset,
            row_bytes=self._columns.row_bytes(),
        )
        shares: list[DataShare | DeadShare] = [*plan.data, *([plan.dead] if plan.dead else [])]
        if not shares:
            now = self._clock.now()
            return Delivery(progress=await self._write(cuts.passed(progress, end, token=self._token, at=now)))
        cut = self._plan(progress, end, shares, max(block.schema_version for block in blocks))
        written = await self._encode(cut, 0, shares[0])
        progress = await self._write(cuts.journalled(progress, cut))
        outcomes, bytes_out = {}, 0
        for number, content in enumerate(shares):
            if number:
                written = await self._encode(cut, number, content)
            outcomes[written.item.key] = await self._create(cut, written)
            bytes_out += len(written.body)
        return Delivery(
            progress=await self._settle(progress, outcomes),
            rows=sum(content.rows for content in plan.data),
            dead=len(plan.dead.records) if plan.dead else 0,
            objects=len(shares),
            bytes_out=bytes_out,
            cpu_s=self._cpu_s - cpu_before_s,
        )

    def _plan(
        self, progress: ProgressRecord, end: int, shares: Sequence[DataShare | DeadShare], schema_version: int
    ) -> Cut:
        self._cuts += 1
        cut_id = cuts.new_cut_id(token=self._token, number=self._cuts, nonce=self._nonce())
        return cuts.plan_cut(
            progress,
            cut_id=cut_id,
            token=self._token,
            end=end,
            objects=[self._object(progress.next_offset, cut_id, number, held) for number, held in enumerate(shares)],
            schema_version=schema_version,
            spec_hash=self._spec_hash,
        )

    def _object(self, start: int, cut_id: str, number: int, content: DataShare | DeadShare) -> CutObject:
        if isinstance(content, DataShare):
            key = layout.data_key(self._partition, start=start, cut=cut_id, number=number)
            return CutObject(key=key, ranges=content.ranges, role=DATA_ROLE)
        folder = self._spec.dead_letters.prefix
        key = layout.dead_letter_key(folder, self._partition, start=start, cut=cut_id)
        return CutObject(key=key, ranges=content.ranges, role=DEAD_LETTERS_ROLE)

    async def _encode(self, cut: Cut, number: int, content: DataShare | DeadShare) -> _Written:
        item = cut.objects[number]
        rows = content.rows if isinstance(content, DataShare) else len(content.records)
        mark = self._mark(State.DATA, cut, item, rows)
        compression, origin, now = self._spec.sink.compression, self._spec.origin, self._clock.now()

        def encoded() -> memoryview:
            if isinstance(content, DataShare):
                table = self._columns.unify(content.tables)
                return encode_rows(table, mark, compression=compression, ascending=(origin.offset, origin.timestamp))
            return encode_dead_letters(
                content.records, mark, partition=self._partition, at=now, compression=compression
            )

        body = await self._on_thread(self._encoders, encoded)
        return _Written(item=item, rows=rows, body=body, metadata=mark.metadata())

    async def _create(self, cut: Cut, written: _Written) -> Outcome:
        """Creates a data object, once, and says so; a key that is taken was either ours or somebody's resolution."""
        if await self._patiently(lambda: self._store.create(written.item.key, written.body, written.metadata)):
            return Outcome(State.DATA, written.rows)
        found = await self._found(cut, written.item)
        if found.state is State.ABORTED:
            raise LeaseLost(f"cut {cut.id} of {self._partition} was resolved by another holder")
        return found

    async def _resolve(self, cut: Cut) -> dict[str, Outcome]:
        """Decides every object of an open cut for ever: adopts what is written, aborts what is not."""
        if self._spec.delivery == "at_least_once":
            # Without conditional writes a marker would overwrite data and decide nothing: all of it is written again.
            return {item.key: Outcome(State.ABORTED) for item in cut.objects}
        return {item.key: await self._abort(cut, item) for item in cut.objects}

    async def _abort(self, cut: Cut, item: CutObject) -> Outcome:
        mark = self._mark(State.ABORTED, cut, item, 0)
        newest = await self._asked_of_etcd(self._columns.newest)
        schema = newest if item.role == DATA_ROLE else DEAD_LETTER_SCHEMA
        body = encode_aborted(schema, mark)
        if await self._patiently(lambda: self._store.create(item.key, body, mark.metadata())):
            ABORTED_OBJECTS.inc()
            return Outcome(State.ABORTED)
        found = await self._found(cut, item)
        if found.state is State.DATA:
            ADOPTED_OBJECTS.inc()
        return found

    async def _found(self, cut: Cut, item: CutObject) -> Outcome:
        stored = await self._patiently(lambda: self._store.head(item.key))
        if stored is None:
            raise SinkUnavailable(f"the object {item.key} was there and is gone: something else removes objects")
        return cuts.outcome(cut, item, stored.metadata)

    async def _settle(self, progress: ProgressRecord, outcomes: dict[str, Outcome]) -> ProgressRecord:
        return await self._write(cuts.settled(progress, outcomes, token=self._token, at=self._clock.now()))

    async def _read(self) -> KeyValue | None:
        """Progress as it is while the token holds the lease."""
        txn = cuts.read_txn(lease_key=self._lease_key, progress_key=self._progress_key, token=self._token)
        result = await self._asked_of_etcd(lambda: self._etcd.txn(txn))
        if not result.succeeded:
            raise self._lost()
        item = result.results[0]
        return item if isinstance(item, KeyValue) else None

    async def _write(self, wanted: ProgressRecord) -> ProgressRecord:
        """Writes progress under the token, or learns that an earlier try of ours did."""
        if self._log.topic_id:
            wanted = msgspec.structs.replace(wanted, topic_id=self._log.topic_id, leader_epoch=self._log.leader_epoch)
        txn = cuts.write_txn(
            lease_key=self._lease_key,
            progress_key=self._progress_key,
            token=self._token,
            revision=self._revision,
            record=wanted,
        )
        result = await self._asked_of_etcd(lambda: self._etcd.txn(txn))
        if result.succeeded:
            self._revision = result.revision
        else:
            kept = result.results[0]
            if not isinstance(kept, KeyValue) or decode(ProgressRecord, kept.value) != wanted:
                raise self._lost()
            self._revision = kept.mod_revision
        return wanted

    async def _asked_of_etcd(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """The answer to a request that may be sent twice; sent until the session's deadline has passed."""
        for pause_s in _pauses():
            self._session.check()
            try:
                return await request()
            except EtcdUnavailable:
                await self._sleep(pause_s)
        raise AssertionError("pauses never end")

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"token {self._token} does not hold {self._partition} any more")

    async def _patiently(self, call: Callable[[], Result]) -> Result:
        """A store's call on a thread, again while the store fails, the session holds and patience lasts."""

        def fenced() -> Result:
            self._session.check()
            return call()

        deadline_s = self._clock.monotonic() + self._patience_s
        for pause_s in _pauses():
            try:
                result = await self._on_thread(self._writers, fenced)
            except (SinkUnavailable, AccessDenied, SinkUnfit) as error:
                self._on_trouble(str(error))
                if not isinstance(error, SinkUnavailable) or self._clock.monotonic() + pause_s > deadline_s:
                    raise
                await self._sleep(pause_s)
            else:
                self._on_trouble("")
                return result
        raise AssertionError("pauses never end")

    async def _on_thread(self, executor: Executor | None, call: Callable[[], Result]) -> Result:
        def timed() -> tuple[Result, float]:
            started_s = time.thread_time()
            result = call()
            return result, time.thread_time() - started_s

        result, cpu_s = await asyncio.get_running_loop().run_in_executor(executor, timed)
        self._cpu_s += cpu_s
        return result

    def _mark(self, state: State, cut: Cut, item: CutObject, rows: int) -> Mark:
        return Mark.of(state, cut=cut, item=item, partition=str(self._partition), rows=rows, token=self._token)

    def _opened(self) -> ProgressRecord:
        if self._progress is None:
            raise RuntimeError("open() the sink first, and again after an error")
        return self._progress


def _pauses() -> Iterator[float]:
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


def _sum(total: Delivery, more: Delivery) -> Delivery:
    return Delivery(
        progress=more.progress,
        rows=total.rows + more.rows,
        dead=total.dead + more.dead,
        objects=total.objects + more.objects,
        bytes_out=total.bytes_out + more.bytes_out,
        cpu_s=total.cpu_s + more.cpu_s,
    )
