"""The worker-wide budget of bytes in flight. It bounds memory with any input.

Two accounts under one limit: what fetching asked for and buffers, and the blocks that were decoded and are held by
runners until they commit. What keeps it from dead-lock:

- fetching may use half of the limit, and only while blocks leave that half free; so blocks always have half;
- a block is granted whatever fetching uses when no other is held: what was fetched can always be decoded;
- what is there already (an answer or a record larger than asked for) is taken at once and may overdraw; then everyone
  else waits until enough is released.

Runners flush what they hold when `starved` turns true.
"""

from __future__ import annotations

import asyncio
from collections import deque

_Queue = deque[tuple[int, "asyncio.Future[None]"]]


class ByteBudget:
    """Bytes that may be in flight at once. Waiters of each account are served in order."""

    def __init__(self, limit: int) -> None:
        if limit <= 0:
            raise ValueError("a byte budget must be positive")
        self.limit = limit
        self.fetched = 0
        self.held = 0
        self.peak = 0
        self._fetches: _Queue = deque()
        self._blocks: _Queue = deque()
        self._starved = False

    @property
    def used(self) -> int:
        """Bytes of both accounts."""
        return self.fetched + self.held

    @property
    def free(self) -> int:
        """Bytes below the limit; negative while overdrawn."""
        return self.limit - self.used

    @property
    def starved(self) -> bool:
        """Whether someone waits for bytes: a sign to flush early."""
        return self._starved

    @property
    def fetch_limit(self) -> int:
        """The most that fetching uses, unless overdrawn."""
        return max(1, self.limit // 2)

    async def reserve(self, size: int) -> None:
        """Reserves bytes for a block, waiting until they fit or no block is held."""
        await self._reserve(size, self._blocks)

    def take(self, size: int) -> None:
        """Adds bytes of a block that is there already; may overdraw."""
        self.held += size
        self.peak = max(self.peak, self.used)

    def release(self, size: int) -> None:
        """Gives bytes of a block back."""
        assert 0 <= size <= self.held, f"released {size} of {self.held} bytes held"
        self.held -= size
        self._serve()

    async def reserve_fetch(self, size: int) -> None:
        """Reserves bytes for an answer, waiting until they fit."""
        await self._reserve(size, self._fetches)

    def take_fetched(self, size: int) -> None:
        """Adds bytes of an answer that is there already; may overdraw."""
        self.fetched += size
        self.peak = max(self.peak, self.used)

    def release_fetched(self, size: int) -> None:
        """Gives bytes of an answer back."""
        assert 0 <= size <= self.fetched, f"released {size} of {self.fetched} fetched bytes"
        self.fetched -= size
        self._serve()

    async def _reserve(self, size: int, queue: _Queue) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append((size, granted))
        self._serve()
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():
                self._give_back(size, queue)
            self._serve()
            raise

    def _give_back(self, size: int, queue: _Queue) -> None:
        if queue is self._blocks:
            self.release(size)
        else:
            self.release_fetched(size)

    def _serve(self) -> None:
        # Blocks first: decoding frees what was fetched.
        while (size := _next(self._blocks)) is not None and self._has_block(size):
            self.take(size)
            self._blocks.popleft()[1].set_result(None)
        while (size := _next(self._fetches)) is not None and self._has_fetch(size):
            self.take_fetched(size)
            self._fetches.popleft()[1].set_result(None)
        self._starved = bool(self._blocks or self._fetches)

    def _has_block(self, size: int) -> bool:
        return not self.held or self.held + size <= max(self.limit - self.fetched, self.limit - self.fetch_limit)

    def _has_fetch(self, size: int) -> bool:
        return not self.used or self.used + size <= self.fetch_limit


def _next(queue: _Queue) -> int | None:
    """The size that waits longest; forgets who gave up."""
    while queue and queue[0][1].done():
        queue.popleft()
    return queue[0][0] if queue else None
