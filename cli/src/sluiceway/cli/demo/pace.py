"""How fast the demo pours: as fast as it can, at a rate, and slowly while a killed worker is being replaced."""

from __future__ import annotations

import asyncio
import math

from sluiceway.common.clock import Clock


class Pace:
    """A gate for `pour`.

    Args:
        records_per_second: the usual rate; infinite for the broker's own.
        brake_after: from this many records on, pour at `brake_rate` until `release`, so that records still flow while
            a worker is killed and its partitions come back.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        records_per_second: float = math.inf,
        brake_after: float = math.inf,
        brake_rate: float = math.inf,
    ) -> None:
        self._clock = clock
        self._rate, self._brake_after, self._brake_rate = records_per_second, brake_after, brake_rate
        self._released = asyncio.Event()
        self._passed = 0
        self._due = 0.0

    def release(self) -> None:
        """Back to the usual rate, for good."""
        self._released.set()

    async def gate(self, records: int) -> None:
        """Returns when the next `records` may be sent."""
        braking = self._passed >= self._brake_after and not self._released.is_set()
        rate = min(self._rate, self._brake_rate) if braking else self._rate
        self._passed += records
        now = self._clock.monotonic()
        self._due = max(self._due, now) + records / rate
        if self._due <= now:
            await asyncio.sleep(0)
        elif braking:
            await self._wait(self._due - now)
        else:
            await asyncio.sleep(self._due - now)

    async def _wait(self, span_s: float) -> None:
        try:
            async with asyncio.timeout(span_s):
                await self._released.wait()
        except TimeoutError:
            return
        self._due = 0.0
