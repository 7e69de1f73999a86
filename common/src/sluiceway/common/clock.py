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


_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's clocks. `monotonic` goes on while the machine is suspended, where the system can: etcd's leases end
    then, so our deadlines must pass as well."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.clock_gettime(_SINCE_BOOT)
