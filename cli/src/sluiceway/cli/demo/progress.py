"""Live progress on standard error: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sluiceway.cli.demo.conductor import Watching
from sluiceway.cli.demo.pour import Poured
from sluiceway.common.clock import Clock

_EVENTS = 8
_TERMINAL_S = 0.25
_LINES_S = 2.0


class Progress:
    """Shows how the demo is doing. `say` takes events, `follow` draws until it is cancelled."""

    def __init__(self, clock: Clock, *, total: int) -> None:
        self._clock, self._total = clock, total
        self._console = Console(file=sys.stderr)
        self._events: list[str] = []
        self._started = clock.monotonic()
        self._live: Live | None = None

    def say(self, event: str) -> None:
        """Notes one event."""
        line = f"{self._clock.monotonic() - self._started:6.1f} s  {event}"
        self._events = [*self._events[-_EVENTS + 1 :], line]
        if self._live is None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    async def follow(self, seen: Watching, poured: Poured) -> None:
        """Draws for ever."""
        if not self._console.is_terminal:
            await self._print_lines(seen, poured)
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            self._live = live
            try:
                while True:
                    live.update(self._draw(seen, poured))
                    await asyncio.sleep(_TERMINAL_S)
            finally:
                self._live = None

    async def _print_lines(self, seen: Watching, poured: Poured) -> None:
        while True:
            await asyncio.sleep(_LINES_S)
            view = seen.view
            done = view.delivered + view.dead_letters
            rates = sum(u.records / u.interval_s for load in view.loads.values() for u in load.partitions.values())
            held = " ".join(f"{worker}:{len(view.held_by(worker))}" for worker in sorted(view.loads))
            self.say(
                f"poured {poured.records:,} of {self._total:,}, delivered {done:,} "
                f"(lag {max(0, poured.records - done):,}, {rates:,.0f} records/s fetched), leases {held}"
            )

    def _draw(self, seen: Watching, poured: Poured) -> Group:
        view = seen.view
        done = view.delivered + view.dead_letters
        bars = Table.grid(padding=(0, 2))
        bars.add_row("poured", _bar(poured.records, self._total), f"{poured.records:,}")
        bars.add_row("delivered", _bar(done, self._total), f"{done:,}  lag {max(0, poured.records - done):,}")
        for worker, load in sorted(view.loads.items()):
            rate = sum(usage.records / usage.interval_s for usage in load.partitions.values())
            held = len(view.held_by(worker))
            memory = load.rss_bytes / 2**20
            bars.add_row(
                worker, _bar(held, max(1, len(view.holders))), f"{held} leases  {rate:,.0f} rec/s  {memory:,.0f} MiB"
            )
        return Group(bars, Text("\n".join(self._events)))


def _bar(value: float, total: float) -> ProgressBar:
    return ProgressBar(total=max(1.0, total), completed=min(value, total), width=40)
