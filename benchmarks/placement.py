"""How long placing takes: a full plan of 100,000 partitions on 1,000 workers, and the plan after losing one of them.

Prints one JSON line. `python -m benchmarks.placement [--partitions N] [--workers W]`.
"""

from __future__ import annotations

import argparse
import json
import random
import time

from sluiceway.common.ids import PartitionId
from sluiceway.common.resources import Resources
from sluiceway.scheduler.placement.pack import Item, Slot, limits, pack, use

HEADROOM = 0.2
PIPELINES = 50
CLASSES = (Resources(cpu=2, memory=4e9, network_in=2e8, network_out=1e8), Resources(cpu=8, memory=16e9, network_in=8e8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1000)
    arguments = parser.parse_args()
    capacities = {f"w{i:05}": CLASSES[i % len(CLASSES)] for i in range(arguments.workers)}
    items = _items(arguments.partitions, 0.6 * sum(capacity.cpu for capacity in capacities.values()))
    takers = {f"p{i}": frozenset(capacities) for i in range(PIPELINES)}
    slots = [Slot(worker=name, capacity=capacity, load=Resources()) for name, capacity in capacities.items()]

    started_s = time.perf_counter()
    full = pack(slots, items, takers, HEADROOM)
    full_s = time.perf_counter() - started_s

    loads = dict.fromkeys(capacities, Resources())
    for placed in full.placed:
        loads[placed.worker] += placed.item.demand
    lost = sorted(capacities)[0]
    orphans = [placed.item for placed in full.placed if placed.worker == lost]
    rest = {group: workers - {lost} for group, workers in takers.items()}
    left = [Slot(worker=n, capacity=c, load=loads[n]) for n, c in capacities.items() if n != lost]
    started_s = time.perf_counter()
    pack(left, orphans, rest, HEADROOM)
    emergency_s = time.perf_counter() - started_s

    shares = [use(loads[name], capacity) for name, capacity in capacities.items()]
    print(
        json.dumps(
            {
                "partitions": len(items),
                "workers": len(slots),
                "full_plan_seconds": round(full_s, 3),
                "emergency_plan_seconds": round(emergency_s, 4),
                "orphans": len(orphans),
                "beyond_headroom": sum(placed.reason.why != "fits" for placed in full.placed),
                "use_mean": round(sum(shares) / len(shares), 3),
                "use_max": round(max(shares), 3),
                "dimensions": len(limits(CLASSES[0])),
            }
        )
    )


def _items(count: int, cpu: float) -> list[Item]:
    """Heavy-tailed sizes that add up to `cpu` cores."""
    chance = random.Random(1)
    weights = [min(chance.paretovariate(1.2), 1000.0) for _ in range(count)]
    unit = cpu / sum(weights)
    return [
        Item(
            PartitionId(f"p{number % PIPELINES}", "t", 0, number),
            Resources(
                cpu=weight * unit,
                memory=2e6 + weight * unit * 1.5e9 * chance.random(),
                network_in=weight * unit * 4e7,
                network_out=weight * unit * 1.2e7,
            ),
            f"p{number % PIPELINES}",
        )
        for number, weight in enumerate(weights)
    ]


if __name__ == "__main__":
    main()
