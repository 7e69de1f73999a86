"""Whatever the fleet: capacity, cordons, determinism and isolation hold in every plan."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling import Fleet, partition
from sluiceway.common.records import LeaseState, PartitionUsage
from sluiceway.common.resources import Resources
from sluiceway.common.specs.models import CutPolicy
from sluiceway.scheduler.estimate.demand import Estimator
from sluiceway.scheduler.grants.decide import Policy, decide
from sluiceway.scheduler.grants.plan import Plan
from sluiceway.scheduler.placement.pack import Item, Slot, pack, use
from sluiceway.scheduler.placement.reasons import Why

HEADROOM = 0.2

amounts = st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 1.0, 2.0, 7.0])
vectors = st.builds(Resources, cpu=amounts, memory=amounts, network_in=amounts, network_out=amounts)
workers = st.sampled_from(["a", "b", "c", "d", "e"])


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[Slot], list[Item], dict[str, frozenset[str]]]:
    names = draw(st.lists(workers, unique=True, min_size=1))
    slots = [Slot(worker=name, capacity=draw(vectors), load=draw(vectors)) for name in names]
    takers = {group: frozenset(draw(st.sets(st.sampled_from(names)))) for group in ("p", "q")}
    demands = draw(st.lists(st.tuples(vectors, st.sampled_from(["p", "q"]), st.frozensets(workers)), max_size=12))
    items = [Item(partition(i, group), demand, group, avoid) for i, (demand, group, avoid) in enumerate(demands)]
    return slots, items, takers


@given(packings())
@settings(deadline=None)
def test_capacity_is_exceeded_only_where_nothing_else_has_room(
    packing: tuple[list[Slot], list[Item], dict[str, frozenset[str]]],
) -> None:
    """INV-LEASE-6"""
    slots, items, takers = packing
    capacity = {slot.worker: slot.capacity for slot in slots}
    load = {slot.worker: slot.load for slot in slots}
    result = pack(slots, items, takers, HEADROOM)
    for item, worker, reason in result.placed:
        assert worker in takers[item.group]
        fits = use(load[worker] + item.demand, capacity[worker]) <= 1 - HEADROOM + 1e-9
        assert fits == (reason.why is Why.FITS)
        others = takers[item.group] - item.avoid or takers[item.group]
        assert worker in others
        if not fits:
            assert all(use(load[o] + item.demand, capacity[o]) > 1 - HEADROOM - 1e-9 for o in others)
        load[worker] += item.demand
    placed = {item.partition for item, _, _ in result.placed}
    homeless = {item.partition for item in result.homeless}
    assert placed | homeless == {item.partition for item in items}
    assert homeless == {item.partition for item in items if not takers[item.group]}


@given(packings(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_input_does_not_matter(
    packing: tuple[list[Slot], list[Item], dict[str, frozenset[str]]], chance: random.Random
) -> None:
    slots, items, takers = packing
    shuffled_slots, shuffled_items = slots.copy(), items.copy()
    chance.shuffle(shuffled_slots)
    chance.shuffle(shuffled_items)
    assert pack(slots, items, takers, HEADROOM) == pack(shuffled_slots, shuffled_items, takers, HEADROOM)


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    count = draw(st.integers(1, 6))
    fleet = Fleet(partitions=count)
    names: list[str] = draw(st.lists(workers, unique=True, max_size=5))
    for name in names:
        fleet.worker(name, cpu=draw(st.sampled_from([0.5, 1.0, 4.0])), worker_class=draw(st.sampled_from(["x", "y"])))
        if draw(st.booleans()):
            fleet.cordon(name, drain=draw(st.booleans()))
    if draw(st.booleans()):
        fleet.pipeline("p", placement={"worker_class": "x"})
    for number in range(count - 1):
        fleet.load(partition(number), draw(st.sampled_from([0.0, 0.1, 0.5, 3.0])))
        if draw(st.booleans()) and names:
            state = draw(st.sampled_from(list(LeaseState)))
            fleet.lease(partition(number), draw(st.sampled_from(names)), state=state)
    return fleet


@given(fleets())
@settings(deadline=None)
def test_no_cordoned_worker_gets_a_grant_and_each_partition_has_a_holder_or_a_reason(fleet: Fleet) -> None:
    """INV-LEASE-5, INV-LEASE-8"""
    view = fleet.view()
    plan = decide(view, Policy())
    assert not {grant.worker for grant in plan.grants} & view.snapshot.cordons.keys()
    granted = {grant.partition for grant in plan.grants}
    assert len(granted) == len(plan.grants)
    assert not granted & view.snapshot.leases.keys()
    for number in range(fleet.sources.topics["t"].partitions or 0):
        lease = view.snapshot.leases.get(partition(number))
        held = lease is not None and lease.record.state is LeaseState.GRANTED
        assert held + (partition(number) in granted) + (partition(number) in plan.unplaced) == 1


@given(fleets())
@settings(deadline=None)
def test_the_same_view_gives_the_same_plan(fleet: Fleet) -> None:
    assert decide(fleet.view(), Policy()) == decide(fleet.view(), Policy())


@given(fleets(), st.integers(1, 50), st.sets(workers), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_partition_that_fails_changes_nothing_for_its_neighbours(
    fleet: Fleet, count: int, failed: set[str], quarantined: bool
) -> None:
    """INV-LEASE-7"""
    last = partition((fleet.sources.topics["t"].partitions or 0) - 1)
    fleet.failure(last, *sorted(failed), count=count, quarantined=quarantined)
    with_it = decide(fleet.view(), Policy())
    fleet.sources = Fleet(partitions=last.number).sources
    without_it = decide(fleet.view(), Policy())
    assert moves(with_it) == moves(without_it)


def moves(plan: Plan) -> tuple[object, ...]:
    return plan.grants, plan.revokes, plan.deletions


usages = st.fixed_dictionaries(
    {
        "interval_s": st.floats(),
        "records": st.integers(),
        "bytes_in": st.integers(),
        "bytes_out": st.integers(),
        "cpu_s": st.floats(),
        "peak_buffer_bytes": st.integers(),
        "position": st.integers(),
        "log_end": st.integers(),
    }
)


@given(st.lists(st.tuples(usages, st.floats(0, 1e6)), max_size=8))
@settings(deadline=None)
def test_no_report_makes_a_demand_absurd(reports: list[tuple[dict[str, float], float]]) -> None:
    estimator = Estimator()
    for fields, at_s in reports:
        estimator.learn_usage(partition(0), PartitionUsage(**fields), at_s)  # type: ignore[arg-type]
    for amount in estimator.demand(partition(0), CutPolicy()).as_tuple():
        assert math.isfinite(amount)
        assert amount > 0
