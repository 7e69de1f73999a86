"""One runner a leased partition: fetch → decode → buffer → cut → deliver, until told to stop.

Role: moves the records of one partition under one token. Neighbours: `agent` starts and stops it; feed, decoder and
sink come by constructor. It must not know of other partitions, and never touches etcd itself: the sink commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sluiceway.common.clock import Clock
from sluiceway.common.errors import AccessDenied, OffsetOutOfRange, SourceUnavailable
from sluiceway.common.ids import PartitionId
from sluiceway.common.records import ProgressRecord
from sluiceway.common.specs.models import PipelineSpec
from sluiceway.worker.batches import DecodedBlock, LogIdentity, RecordBlock
from sluiceway.worker.buffer import Buffer, CutCause
from sluiceway.worker.failures import DeadLetterRate, SourceDenied
from sluiceway.worker.sinks.parquet import Delivery
from sluiceway.worker.usage import Usage

FLUSH_WORTH_BYTES = 2**20  # on revoke, fewer buffered bytes than this are cheaper to read again than to write


class Feed(Protocol):
    """The records of one partition, in order, from an offset on."""

    @property
    def position(self) -> int: ...

    @property
    def log_end(self) -> int: ...

    @property
    def problem(self) -> str | None: ...

    @property
    def log(self) -> LogIdentity: ...

    async def next(self) -> RecordBlock: ...

    async def close(self) -> None: ...


class Sink(Protocol):
    """One partition's way into the sink, under one token."""

    async def open(self, *, initial_offset: Callable[[], Awaitable[int]]) -> ProgressRecord: ...

    async def deliver(self, blocks: Sequence[DecodedBlock], *, log: LogIdentity) -> Delivery: ...

    async def skip(self, *, to: int) -> ProgressRecord: ...


class Source(Protocol):
    """Where the partition is read from."""

    async def open(self, offset: int, log: LogIdentity) -> Feed: ...

    async def first_offset(self) -> int:
        """Where a partition without progress starts, by the pipeline's policy."""


class Budget(Protocol):
    """The worker's bytes in flight; a block's bytes are reserved from its fetch until they are released."""

    def take(self, size_bytes: int) -> None: ...

    def release(self, size_bytes: int) -> None: ...


Decode = Callable[[RecordBlock], Awaitable[DecodedBlock]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a runner is to do: one partition, under one token, by one version of the specs."""

    partition: PartitionId
    token: int
    spec: PipelineSpec
    spec_hash: str


class Runner:
    """Delivers one partition. `run` returns after `stop`; it raises what a lease can't survive."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        source: Source,
        decode: Decode,
        sink: Sink,
        budget: Budget,
        clock: Clock,
        usage: Usage,
        on_first_delivery: Callable[[], Awaitable[None]],
    ) -> None:
        self.assignment = assignment
        self._usage = usage
        self._feed: Feed | None = None
        self._source, self._decode, self._sink = source, decode, sink
        self._budget, self._clock = budget, clock
        self._on_first_delivery: Callable[[], Awaitable[None]] | None = on_first_delivery
        self._buffer = Buffer(policy=assignment.spec.cut)
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._under_pressure = False
        self._log = LogIdentity()
        policy = assignment.spec.dead_letters
        self._dead_letter_rate = DeadLetterRate(max_share=policy.max_share, min_records=policy.min_records)

    @property
    def usage(self) -> Usage:
        """The counters, and how the feed is doing now."""
        if self._feed is not None:
            self._watch(self._feed)
        return self._usage

    @property
    def buffered_bytes(self) -> int:
        return self._buffer.held_bytes

    def stop(self) -> None:
        """Asks the runner to stop intake, to flush what is worth it, and to return."""
        self._stopping.set()
        self._changed.set()

    def relieve(self) -> None:
        """Asks for a cut now because the worker's memory is short."""
        self._under_pressure = True
        self._changed.set()

    async def run(self) -> None:
        """Runs until `stop`.

        Raises:
            LeaseLost: the token or the session is gone; nothing may be written any more.
            SluicewayError: the lease must be given back; see `failures.classify`.
        """
        progress = await self._sink.open(initial_offset=self._source.first_offset)
        try:
            while not self._stopping.is_set():
                try:
                    self._log = LogIdentity(progress.topic_id, progress.leader_epoch)
                    await self._deliver_from(progress.next_offset)
                except OffsetOutOfRange as gap:
                    progress = await self._skip(gap)
        finally:
            self._budget.release(self._buffer.held_bytes)
            self._buffer.take()

    async def _deliver_from(self, offset: int) -> None:
        feed = self._feed = await self._source.open(offset, self._log)
        intake = asyncio.create_task(self._intake(feed), name=f"intake {self.assignment.partition}")
        intake.add_done_callback(lambda _: self._changed.set())
        try:
            while not self._stopping.is_set() and not intake.done():
                await self._wait_until_due()
                await self._cut_if_due()
            if not self._stopping.is_set():
                if isinstance(intake.exception(), (SourceUnavailable, OffsetOutOfRange)) and self._buffer.blocks:
                    await self._cut(CutCause.SOURCE)  # what came before may not be there to be read again
                await intake
            intake.cancel()
            await asyncio.wait([intake])
            await self._flush()
        finally:
            self._feed = None
            intake.cancel()
            try:
                await asyncio.wait([intake])
            finally:  # cancelled once more while waiting
                await feed.close()

    async def _intake(self, feed: Feed) -> None:
        self._watch(feed)
        while True:
            block = await _next(feed)
            self._watch(feed)
            decoded = None
            try:
                decoded = await self._decode(block)
            finally:
                if decoded is None:
                    self._budget.release(block.size_bytes)
            # Short records, and those with few of very many columns, take more room than their bytes.
            # Not `nbytes`, which looks into every column and takes the event loop milliseconds a block.
            held_bytes = max(block.size_bytes, decoded.table.get_total_buffer_size())
            self._budget.take(held_bytes - block.size_bytes)
            self._buffer.add(decoded, at=self._clock.monotonic(), held_bytes=held_bytes)
            records, dead = decoded.table.num_rows + len(decoded.dead), len(decoded.dead)
            self._usage.fetched(
                records=records,
                size_bytes=block.size_bytes,
                buffered_bytes=self._buffer.size_bytes,
                cpu_s=decoded.cpu_s,
            )
            self._watch(feed)
            example = f"offset {decoded.dead[0].offset}: {decoded.dead[0].error}" if dead else ""
            self._dead_letter_rate.count(records=records, dead=dead, example=example)
            self._changed.set()
            if self._buffer.is_full:  # one cut being written and one waiting are enough: the memory is everybody's
                self._taken.clear()
                await self._taken.wait()

    def _watch(self, feed: Feed) -> None:
        self._log = feed.log
        self._usage.position, self._usage.log_end = feed.position, feed.log_end
        self._usage.state, self._usage.detail = ("paused", feed.problem) if feed.problem else ("running", "")

    async def _wait_until_due(self) -> None:
        timeout_s = self._buffer.seconds_until_due(now=self._clock.monotonic())
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    async def _cut_if_due(self) -> None:
        cause = self._buffer.due(now=self._clock.monotonic(), under_pressure=self._under_pressure)
        self._under_pressure = False
        if cause is not None:
            await self._cut(cause)

    async def _flush(self) -> None:
        if self._buffer.size_bytes >= FLUSH_WORTH_BYTES:
            self._usage.state = "draining"
            await self._cut(CutCause.REVOKE)

    async def _cut(self, cause: CutCause) -> None:
        held_bytes, blocks = self._buffer.held_bytes, self._buffer.take()
        self._taken.set()
        try:
            delivery = await self._sink.deliver(blocks, log=self._log)
        finally:
            self._budget.release(held_bytes)
        self._usage.delivered(
            rows=delivery.rows,
            rescued=sum(block.rescued for block in blocks),
            dead=delivery.dead,
            bytes_out=delivery.bytes_out,
            cpu_s=delivery.cpu_s,
            cause=cause,
        )
        if self._on_first_delivery is not None:
            await self._on_first_delivery()
            self._on_first_delivery = None

    async def _skip(self, gap: OffsetOutOfRange) -> ProgressRecord:
        """Goes on past records that the broker removed, by policy, and accounts for them as lost."""
        policy = self.assignment.spec.on_offset_out_of_range
        target = gap.earliest if policy == "earliest" else gap.latest
        if policy == "fail" or gap.recreated or target <= gap.wanted:
            raise gap
        return await self._sink.skip(to=target)


async def _next(feed: Feed) -> RecordBlock:
    try:
        return await feed.next()
    except AccessDenied as error:
        raise SourceDenied(str(error)) from error
