"""Planned moves off workers that must be relieved, and onto new capacity. Pure.

A move is a revoke here: once the partition is released, the packer finds its new place. Two causes: a worker is above
its whole capacity and another has room; a nearly idle worker stands beside others that hold much more. The second has a
wide dead band (below half of the mean use it starts, at nine tenths it ends, and a fleet with little to do is left as
it is), so that noise in the estimates moves nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sluiceway.common.ids import PartitionId
from sluiceway.common.resources import Resources
from sluiceway.scheduler.placement.pack import Item, Slot, use
from sluiceway.scheduler.placement.reasons import Reason, Why

IDLE_SHARE = 0.5  # of the mean use: below it a worker counts as idle
IDLE_GAP = 0.05  # of capacity: a worker that holds something is idle only if it is this far below the mean
FILL_SHARE = 0.9  # of the mean use: spreading ends here
TRIES_PER_MOVE = 8


class Held(NamedTuple):
    """A granted partition at its holder."""

    item: Item
    worker: str


class Move(NamedTuple):
    partition: PartitionId
    worker: str  # that gives it up
    reason: Reason


@dataclass(slots=True)
class _Bin:
    slot: Slot
    load: Resources
    held: list[Held]

    def use(self, more: Resources | None = None) -> float:
        return use(self.load + more if more is not None else self.load, self.slot.capacity)

    def use_without(self, demand: Resources) -> float:
        return use(self.load + demand.scaled(-1.0), self.slot.capacity)

    def give(self, held: Held, to: _Bin) -> None:
        self.held.remove(held)
        self.load = self.load + held.item.demand.scaled(-1.0)
        to.load = to.load + held.item.demand


def relieve(
    slots: Sequence[Slot], held: Sequence[Held], takers: Mapping[str, frozenset[str]], headroom: float, limit: int
) -> list[Move]:
    """Moves, at most `limit`, off workers above their capacity, where another worker has room for what is moved."""
    bins = _bins(slots, held)
    moves: list[Move] = []
    for box in sorted(bins.values(), key=lambda b: (-b.use(), b.slot.worker)):
        before = box.use()
        if before <= 1.0 or len(moves) >= limit:
            break
        for candidate in _largest_first(box)[: limit * TRIES_PER_MOVE]:
            if box.use() <= 1.0 - headroom or len(box.held) < 2 or len(moves) >= limit:
                break
            receiver = _roomiest(bins, candidate, takers, 1.0 - headroom)
            if receiver is not None:
                box.give(candidate, receiver)
                facts = f"holder at {before:.0%} of capacity"
                moves.append(Move(candidate.item.partition, box.slot.worker, Reason(Why.OVER_CAPACITY, facts)))
    return moves


def spread(
    slots: Sequence[Slot], held: Sequence[Held], takers: Mapping[str, frozenset[str]], headroom: float, limit: int
) -> list[Move]:
    """Moves, at most `limit`, that give nearly idle workers their share of what the fullest ones hold."""
    open_ids = frozenset().union(*takers.values())
    bins = {worker: box for worker, box in _bins(slots, held).items() if worker in open_ids}
    if len(bins) < 2:
        return []
    mean = sum(box.use() for box in bins.values()) / len(bins)
    moves: list[Move] = []
    for receiver in sorted(bins.values(), key=lambda b: (b.use(), b.slot.worker)):
        if receiver.use() >= IDLE_SHARE * mean or len(moves) >= limit:
            break
        if receiver.held and mean - receiver.use() < IDLE_GAP:
            continue
        moves += _fill(receiver, bins, takers, mean, 1.0 - headroom, limit - len(moves))
    return moves


def _fill(
    receiver: _Bin,
    bins: Mapping[str, _Bin],
    takers: Mapping[str, frozenset[str]],
    mean: float,
    share: float,
    limit: int,
) -> list[Move]:
    moves: list[Move] = []
    donors = sorted(bins.values(), key=lambda b: (-b.use(), b.slot.worker))
    facts = f"worker {receiver.slot.worker} is idle beside a mean use of {mean:.1%}"
    for donor in donors:
        for candidate in _largest_first(donor):
            if len(moves) >= limit or receiver.use() >= FILL_SHARE * mean:
                return moves
            if donor.use() <= mean or len(donor.held) < 2:
                break
            if _improves(candidate, donor, receiver, takers, share):
                donor.give(candidate, receiver)
                moves.append(Move(candidate.item.partition, donor.slot.worker, Reason(Why.SPREAD, facts)))
    return moves


def _improves(candidate: Held, donor: _Bin, receiver: _Bin, takers: Mapping[str, frozenset[str]], share: float) -> bool:
    item, worker = candidate.item, receiver.slot.worker
    if worker not in takers[item.group] or worker in item.avoid:
        return False
    after = receiver.use(item.demand)
    return after <= share and after <= donor.use_without(item.demand)


def _bins(slots: Sequence[Slot], held: Sequence[Held]) -> dict[str, _Bin]:
    by_worker: dict[str, list[Held]] = defaultdict(list)
    for one in held:
        by_worker[one.worker].append(one)
    return {slot.worker: _Bin(slot, slot.load, by_worker[slot.worker]) for slot in slots}


def _largest_first(box: _Bin) -> list[Held]:
    return sorted(box.held, key=lambda h: (-use(h.item.demand, box.slot.capacity), h.item.partition))


def _roomiest(
    bins: Mapping[str, _Bin], candidate: Held, takers: Mapping[str, frozenset[str]], share: float
) -> _Bin | None:
    """The worker that is least used after taking the candidate, if it has room."""
    item = candidate.item
    others = sorted(takers[item.group] - item.avoid - {candidate.worker})
    if not others:
        return None
    best = min((bins[worker] for worker in others), key=lambda box: box.use(item.demand))
    return best if best.use(item.demand) <= share else None
