"""When buffered records become a cut. Pure: time is an argument.

Role: what one runner holds between fetch and sink, and the decision to flush it. Neighbours: `runner` asks, `sinks`
write what is taken. It must not wait, read a clock or touch a budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sluiceway.common.specs.models import CutPolicy
from sluiceway.worker.batches import DecodedBlock


class CutCause(StrEnum):
    """Why a cut is made now."""

    BYTES = "bytes"
    RECORDS = "records"
    AGE = "age"
    MEMORY = "memory"
    REVOKE = "revoke"
    SOURCE = "source"  # what comes next can't be read


@dataclass(slots=True, kw_only=True)
class Buffer:
    """Decoded blocks of one partition in offset order, with their sizes in bytes as fetched."""

    policy: CutPolicy
    blocks: list[DecodedBlock] = field(default_factory=list)
    size_bytes: int = 0
    held_bytes: int = 0  # of memory, which the budget counts
    records: int = 0
    oldest_at: float = 0.0  # monotonic seconds at which the oldest buffered block was fetched

    def add(self, block: DecodedBlock, *, at: float, held_bytes: int) -> None:
        if not self.blocks:
            self.oldest_at = at
        self.blocks.append(block)
        self.size_bytes += block.size_bytes
        self.held_bytes += held_bytes
        self.records += block.table.num_rows + len(block.dead)

    def take(self) -> list[DecodedBlock]:
        """Empties the buffer."""
        blocks, self.blocks = self.blocks, []
        self.size_bytes = self.held_bytes = self.records = 0
        return blocks

    @property
    def is_full(self) -> bool:
        """Whether it holds a cut's worth by size."""
        return self.size_bytes >= self.policy.max_bytes or self.records >= self.policy.max_records

    def due(self, *, now: float, under_pressure: bool = False) -> CutCause | None:
        """Why what is buffered must be cut now, or None."""
        if not self.blocks:
            return None
        if self.size_bytes >= self.policy.max_bytes:
            return CutCause.BYTES
        if self.records >= self.policy.max_records:
            return CutCause.RECORDS
        if now - self.oldest_at >= self.policy.max_age_s:
            return CutCause.AGE
        return CutCause.MEMORY if under_pressure else None

    def seconds_until_due(self, *, now: float) -> float | None:
        """How long until age alone makes a cut due; None while nothing is buffered."""
        return max(0.0, self.oldest_at + self.policy.max_age_s - now) if self.blocks else None


def relieve(buffered: Mapping[str, int], *, held_bytes: int) -> frozenset[str]:
    """The fewest holders whose cuts free half of the bytes held, with what is not buffered (it is being written, and so
    will be free soon): largest buffers first, ties by name."""
    chosen: list[str] = []
    freed = held_bytes - sum(buffered.values())
    for name, size in sorted(buffered.items(), key=lambda entry: (-entry[1], entry[0])):
        if 2 * freed >= held_bytes or size == 0:
            break
        chosen.append(name)
        freed += size
    return frozenset(chosen)
