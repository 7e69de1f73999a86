"""The worker-wide budget of bytes in flight: asked of brokers, buffered, or held by runners until they commit.

It bounds memory with any input. What keeps it from dead-lock:

- when nothing is reserved, any reservation is granted, also one above the limit: a record larger than the budget gets
  through alone;
- fetching reserves below a lower ceiling than decoding, so bytes that were fetched can always be decoded;
- what can't be refused any more (a record turned out larger than asked for) is taken at once and may overdraw; then
  everyone else waits until enough is released.

Runners flush what they hold when `starved` turns true.
"""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """Bytes that may be reserved at once; waiters of one ceiling are served in order."""

    def __init__(self, limit: int) -> None:
        if limit <= 0:
            raise ValueError("a byte budget must be positive")
        self.limit = limit
        self.used = 0
        self.peak = 0
        self._waiting: dict[int, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._starved = asyncio.Event()

    @property
    def free(self) -> int:
        """Bytes below the limit; negative while overdrawn."""
        return self.limit - self.used

    @property
    def starved(self) -> bool:
        """Whether someone waits for bytes: a sign to flush early."""
        return self._starved.is_set()

    async def wait_starved(self) -> None:
        """Returns once someone waits for bytes."""
        await self._starved.wait()

    async def reserve(self, size: int, *, ceiling: int | None = None) -> None:
        """Reserves bytes, waiting until they fit below `ceiling` (the limit by default) or nothing else is reserved."""
        line = self.limit if ceiling is None else min(ceiling, self.limit)
        queue = self._waiting.setdefault(line, deque())
        if not queue and self._fits(size, line):
            self.take(size)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append((size, granted))
        self._starved.set()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(size)
            raise
        finally:
            self._serve()

    def take(self, size: int) -> None:
        """Reserves bytes that are there already, without waiting; may overdraw."""
        self.used += size
        self.peak = max(self.peak, self.used)

    def release(self, size: int) -> None:
        """Gives bytes back."""
        assert 0 <= size <= self.used, f"released {size} of {self.used} reserved bytes"
        self.used -= size
        self._serve()

    def _fits(self, size: int, line: int) -> bool:
        return self.used == 0 or self.used + size <= line

    def _serve(self) -> None:
        # The highest ceiling first: decoding frees fetched bytes, so it goes before fetching more.
        for line in sorted(self._waiting, reverse=True):
            queue = self._waiting[line]
            while queue and (queue[0][1].done() or self._fits(queue[0][0], line)):
                size, granted = queue.popleft()
                if not granted.done():
                    self.take(size)
                    granted.set_result(None)
            if not queue:
                del self._waiting[line]
        if not self._waiting:
            self._starved.clear()
