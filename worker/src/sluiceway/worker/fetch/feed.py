"""One partition's stream of blocks: the runner takes at one end, the fetcher fills the other.

The feed decides nothing about connections; it holds what was fetched, where the next fetch begins, and what went wrong.
Its bytes are accounted for in the worker's budget from before they are asked for; the bytes of a block that was taken
stay reserved until the runner releases them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sluiceway.common.errors import AccessDenied, OffsetOutOfRange, SluicewayError, SourceUnavailable
from sluiceway.common.kafka import TopicPartition
from sluiceway.common.kafka.protocol import Fetched
from sluiceway.common.kafka.wire import NO_UUID
from sluiceway.worker.batches import LogIdentity, RecordBlock
from sluiceway.worker.budget import ByteBudget
from sluiceway.worker.fetch.lanes import backoff_s, smoothed_rate
from sluiceway.worker.fetch.records import RecordReader, extent


@dataclass(slots=True, kw_only=True)
class _Share:
    """One answer's bytes: `size` is reserved until the reader is done with them."""

    reader: RecordReader
    size: int


class Feed:
    """Blocks of one partition, in offset order. For one reader at a time."""

    def __init__(
        self,
        *,
        partition: TopicPartition,
        offset: int,
        topic_id: bytes,
        leader_epoch: int,
        give_up_after_s: float,
        block_bytes: int,
        budget: ByteBudget,
        on_room: Callable[[Feed], None],
        on_close: Callable[[Feed], None],
    ) -> None:
        self.partition = partition
        self.position = offset
        self.topic_id = topic_id  # all zeros: not known
        self.leader_epoch = leader_epoch  # of the newest batch fetched; -1: not known
        self.log_end = -1  # the broker's high watermark; -1: not known yet
        self.stable_end = -1  # below it all transactions are decided
        self.problem: str | None = None  # why nothing arrives now, while it is retried
        # What follows is the fetcher's.
        self.fetch_offset = offset
        self.attempts = 0
        self.retry_at = 0.0
        self.in_flight = False
        self.unchecked = False  # whether a new leader's log was compared with what we have
        self.served = 0
        self.rate = 0.0
        self.oversize = 0
        self.closed = False
        self._give_up_after_s = give_up_after_s
        self._block_bytes = block_bytes
        self._budget = budget
        self._on_room = on_room
        self._on_close = on_close
        self._shares: deque[_Share] = deque()
        self._buffered = 0
        self._expansion = 1.0
        self._troubled_since: float | None = None
        self._corrupt = False
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._rated_at = asyncio.get_running_loop().time()
        self._received = 0

    @property
    def log(self) -> LogIdentity:
        """Which log the offsets belong to, as far as it is known by now."""
        return LogIdentity(self.topic_id.hex() if self.topic_id != NO_UUID else "", self.leader_epoch)

    @property
    def buffered_bytes(self) -> int:
        """Bytes fetched and not taken yet."""
        return self._buffered

    async def next(self) -> RecordBlock:
        """The next block; waits for one. Cancelling loses nothing.

        The block's `size_bytes` stay reserved in the worker's budget: release them once they are committed or dropped.
        A block may be empty: it then only moves the position past what has no records for us.

        Raises:
            OffsetOutOfRange: the position does not exist on the broker, or the topic was re-created or truncated.
            AccessDenied: the cluster refuses to let us read.
            SourceUnavailable: the partition can't be read since longer than the limit given when it was opened.
        """
        while True:
            if self._shares:
                block = await self._decode()
                if block is not None:
                    return block
            elif self._failure is not None:
                raise self._failure
            else:
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        """Drops what is buffered; nothing is fetched any more. Blocks that were taken stay the runner's."""
        if not self.closed:
            self.closed = True
            self._drop()
            self._on_close(self)
            self.fail(SourceUnavailable(f"the feed of partition {self.partition} is closed"))

    # -- for the fetcher --

    def accept(self, fetched: Fetched, records: memoryview, asked_bytes: int) -> None:
        """Takes an answer whose bytes are reserved already; `records` is ours to keep."""
        self.log_end = fetched.high_watermark
        self.stable_end = fetched.last_stable_offset
        reach = extent(records, self.fetch_offset)
        if len(records) and not reach.whole_bytes:
            self._budget.release_fetched(len(records))
            self._corrupt = True
            self.trouble(SourceUnavailable(f"partition {self.partition}: no whole batch at {self.fetch_offset}"))
            return
        if not self._corrupt:
            self._recovered()
        if not len(records):
            return
        self.oversize = len(records) if len(records) > asked_bytes else 0
        reader = RecordReader(records, wanted=self.fetch_offset, aborted=fetched.aborted)
        self._shares.append(_Share(reader=reader, size=len(records)))
        self._buffered += len(records)
        self._received += len(records)
        self.fetch_offset = reach.next_offset
        self.leader_epoch = max(self.leader_epoch, reach.leader_epoch)
        self._changed.set()

    def trouble(self, error: SluicewayError) -> None:
        """Notes a failed try: retried after a while, given up past the limit, at once when access is denied."""
        now = asyncio.get_running_loop().time()
        self.attempts += 1
        self.problem = str(error)
        self.retry_at = now + backoff_s(self.attempts)
        if self._troubled_since is None:
            self._troubled_since = now
        if isinstance(error, AccessDenied) or now - self._troubled_since >= self._give_up_after_s:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Ends the feed: what is buffered can still be taken, then the error is raised."""
        if self._failure is None:
            self._failure = error
            self.problem = str(error)
        self._changed.set()

    @property
    def failed(self) -> bool:
        """Whether nothing more will be fetched."""
        return self._failure is not None

    def room(self, buffer_bytes: int) -> int:
        """How many bytes may be fetched now: nothing until a quarter of the buffer is free, since many small requests
        cost more than they bring."""
        free = buffer_bytes - self._buffered
        return free if free >= buffer_bytes // 4 else 0

    def truncated_to(self, end: int) -> None:
        """The log lost what it had from `end` on: what is buffered is read again, what was taken is an error."""
        self._drop()
        if end < self.position:
            self.fail(OffsetOutOfRange(self.position, 0, end))

    def update_rate(self) -> float:
        """Bytes per second lately."""
        now = asyncio.get_running_loop().time()
        self.rate = smoothed_rate(self.rate, received=self._received, elapsed_s=now - self._rated_at)
        self._received, self._rated_at = 0, now
        return self.rate

    async def _decode(self) -> RecordBlock | None:
        """A block from the oldest share, or None when that share had no more."""
        share = self._shares[0]
        room = min(self._block_bytes, max(4096, int(share.size * self._expansion)))
        await self._budget.reserve(room)
        if not self._shares or self._shares[0] is not share:  # dropped while we waited
            self._budget.release(room)
            return None
        size = 0
        try:
            block = share.reader.next_block(room)
            size = block.size_bytes if block is not None else 0
        except SourceUnavailable as failure:
            self._drop()
            self._corrupt = True
            self.trouble(SourceUnavailable(f"partition {self.partition}: {failure}"))
            self._on_room(self)
            return None
        finally:
            self._settle(room, size)
        if block is None:
            self._finish(share)
            return None
        self._expansion = max(1.0, size / max(1, share.size))
        self.position = block.next_offset
        if self._corrupt:
            self._corrupt = False
            self._recovered()
        return block

    def _settle(self, reserved: int, size: int) -> None:
        if size > reserved:
            self._budget.take(size - reserved)
        else:
            self._budget.release(reserved - size)

    def _finish(self, share: _Share) -> None:
        self._shares.popleft()
        self._buffered -= share.size
        self._budget.release_fetched(share.size)
        self._on_room(self)

    def _drop(self) -> None:
        self._shares.clear()
        self._budget.release_fetched(self._buffered)
        self._buffered = 0
        self.fetch_offset = self.position

    def _recovered(self) -> None:
        self.attempts = 0
        self.retry_at = 0.0
        self.problem = None
        self._troubled_since = None
