"""Time as an argument: the only place that reads the machine's clocks."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What code that waits or stamps depends on."""

    def now(self) -> float:
        """Wall time in seconds since the epoch, for people."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back, for deadlines."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
