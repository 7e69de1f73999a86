"""Vector packing of partitions onto unequal workers.

Largest first by their binding dimension; each goes to the worker whose binding dimension is least used afterwards, so
that a hot partition finds a large worker and small ones spread over what is left (longest-processing-time rule on
vectors). Large ones are compared with every worker in numpy; for small ones, whose own size hardly changes the order, a
heap by present use gives the same choice at the cost of a few comparisons. Where no worker has room within the
headroom, the least harmed one takes the partition and the placement says so (INV-LEASE-6). Ties go to the smaller id.
Pure; reads nothing but its arguments.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sluiceway.common.ids import PartitionId
from sluiceway.common.resources import Resources
from sluiceway.scheduler.placement.reasons import Reason, Why

DIMENSIONS = ("cpu", "memory", "network_in", "network_out")
SMALL = 0.05  # share of a typical worker below which a partition is placed by present use alone
Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A worker as the packer sees it: what it has, and what it holds already."""

    worker: str
    capacity: Resources
    load: Resources


class Item(NamedTuple):
    """A partition to place. `group` names its set of workers that may take it; `avoid` are taken only as a last
    resort, when no other is left."""

    partition: PartitionId
    demand: Resources
    group: str
    avoid: frozenset[str] = frozenset()


class Placed(NamedTuple):
    item: Item
    worker: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    placed: list[Placed]
    homeless: list[Item]  # their group has no worker


def limits(capacity: Resources) -> tuple[float, ...]:
    """The capacity by dimension; a dimension that is not declared (zero, negative, not finite) does not bind."""
    return tuple(c if 0.0 < c < float("inf") else float("inf") for c in capacity.as_tuple())


def use(load: Resources, capacity: Resources) -> float:
    """The share of capacity used in the binding dimension."""
    return max(amount / limit for amount, limit in zip(load.as_tuple(), limits(capacity), strict=True))


def pack(
    slots: Sequence[Slot], items: Sequence[Item], takers: Mapping[str, frozenset[str]], headroom: float
) -> Packing:
    """Places every item whose group has a worker.

    Args:
        slots: the workers, in any order.
        items: what to place, in any order.
        takers: for each group the workers that may take its items.
        headroom: share of each capacity that is kept free, 0 to 1.
    """
    placeable = [item for item in items if takers[item.group]]
    homeless = sorted(item for item in items if not takers[item.group])
    if not placeable:
        return Packing(placed=[], homeless=homeless)
    fleet = _Fleet(sorted(slots, key=lambda slot: slot.worker), takers, 1.0 - headroom)
    demands = np.array([item.demand.as_tuple() for item in placeable])
    sizes = (demands / fleet.typical).max(axis=1)
    order = sorted(range(len(placeable)), key=lambda i: (-sizes[i], placeable[i].partition))
    placed = [fleet.place(placeable[i], demands[i], bool(sizes[i] >= SMALL)) for i in order]
    return Packing(placed=placed, homeless=homeless)


@dataclass(slots=True)
class _Fleet:
    """The packer's running state: loads, and one heap by use for each group."""

    slots: list[Slot]
    takers: Mapping[str, frozenset[str]]
    share: float
    capacity: Vectors = field(init=False)
    load: Vectors = field(init=False)
    typical: Vectors = field(init=False)
    _index: dict[str, int] = field(init=False)
    _rows: list[tuple[list[float], tuple[float, ...]]] = field(init=False)
    _members: dict[frozenset[str], npt.NDArray[np.intp]] = field(default_factory=dict)
    _heaps: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # groups of equal members share theirs

    def __post_init__(self) -> None:
        self.capacity = np.array([limits(slot.capacity) for slot in self.slots])
        self.load = np.array([slot.load.as_tuple() for slot in self.slots])
        self.typical = np.median(self.capacity, axis=0)
        self._index = {slot.worker: i for i, slot in enumerate(self.slots)}
        self._rows = [(list(slot.load.as_tuple()), limits(slot.capacity)) for slot in self.slots]

    def place(self, item: Item, demand: Vectors, large: bool) -> Placed:
        needs = item.demand.as_tuple()
        chosen = None if large else self._first_fit_by_use(item, needs)
        reason = Reason(Why.FITS) if chosen is not None else None
        if chosen is None:
            chosen, reason = self._least_used_after(item, demand)
        self.load[chosen] += demand
        held = self._rows[chosen][0]
        for d, need in enumerate(needs):
            held[d] += need
        assert reason is not None
        return Placed(item, self.slots[chosen].worker, reason)

    def _first_fit_by_use(self, item: Item, needs: tuple[float, ...]) -> int | None:
        """The least used worker that has room, if it is among the first few of the heap."""
        heap = self._heap(item.group)
        tried: list[tuple[float, int]] = []
        found: int | None = None
        while heap and found is None and len(tried) < 8:
            use, i = heapq.heappop(heap)
            held, capacity = self._rows[i]
            now = max(map(_ratio, held, capacity))
            if now != use:  # written since through another group or by a large partition
                heapq.heappush(heap, (now, i))
                continue
            if self.slots[i].worker not in item.avoid and self._fits(held, capacity, needs):
                found = i
                now = max((h + n) / c for h, n, c in zip(held, needs, capacity, strict=True))
            tried.append((now, i))
        for entry in tried:
            heapq.heappush(heap, entry)
        return found

    def _fits(self, held: list[float], capacity: tuple[float, ...], needs: tuple[float, ...]) -> bool:
        share = self.share
        return all(h + n <= c * share for h, n, c in zip(held, needs, capacity, strict=True))

    def _least_used_after(self, item: Item, demand: Vectors) -> tuple[int, Reason]:
        """Compares all workers of the group; beyond the headroom if none has room."""
        members = self._members_of(item.group)
        if item.avoid:
            others = members[[self.slots[i].worker not in item.avoid for i in members]]
            members = others if len(others) else members
        capacity = self.capacity[members]
        after = ((self.load[members] + demand) / capacity).max(axis=1)
        best = int(after.argmin())
        if after[best] <= self.share:
            return int(members[best]), Reason(Why.FITS)
        alone = (demand / capacity).max(axis=1)
        why = Why.OVERCOMMITTED if (alone <= self.share).any() else Why.LARGER_THAN_ANY_WORKER
        return int(members[best]), Reason(why, self._facts(int(members[best]), demand, float(after[best])))

    def _facts(self, i: int, demand: Vectors, after: float) -> str:
        shares = (self.load[i] + demand) / self.capacity[i]
        binding = DIMENSIONS[int(shares.argmax())]
        return f"{binding} at {after:.0%} of capacity, {self.share:.0%} allowed"

    def _members_of(self, group: str) -> npt.NDArray[np.intp]:
        workers = self.takers[group]
        if workers not in self._members:
            self._members[workers] = np.array(sorted(self._index[worker] for worker in workers), dtype=np.intp)
        return self._members[workers]

    def _heap(self, group: str) -> list[tuple[float, int]]:
        if group not in self._heaps:
            twin = next((other for other in self._heaps if self.takers[other] == self.takers[group]), None)
            self._heaps[group] = self._new_heap(group) if twin is None else self._heaps[twin]
        return self._heaps[group]

    def _new_heap(self, group: str) -> list[tuple[float, int]]:
        members: list[int] = self._members_of(group).tolist()
        heap = [(max(map(_ratio, *self._rows[i])), i) for i in members]
        heapq.heapify(heap)
        return heap


def _ratio(amount: float, limit: float) -> float:
    return amount / limit
