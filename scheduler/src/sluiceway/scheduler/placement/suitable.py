"""Which workers may hold a pipeline's partitions, and which constraint forbids the others. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sluiceway.common.specs.models import PipelineSpec
from sluiceway.scheduler.snapshot import FleetSnapshot, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Suitable:
    """`holders` may keep what they hold, `takers` may also receive grants; `refusals` says what forbids the rest."""

    holders: frozenset[str]
    takers: frozenset[str]
    refusals: str

    @property
    def none_at_all(self) -> bool:
        return not self.takers


Objection = Callable[[str, PipelineSpec, Worker], str]


def _class(_: str, spec: PipelineSpec, worker: Worker) -> str:
    wanted = spec.placement.worker_class
    return f"class is not {wanted}" if wanted not in (None, worker.record.worker_class) else ""


def _labels(_: str, spec: PipelineSpec, worker: Worker) -> str:
    has = worker.record.labels
    missing = sorted(f"{k}={v}" for k, v in spec.placement.labels.items() if has.get(k) != v)
    return f"lacks {', '.join(missing)}" if missing else ""


def _refuses(pipeline: str, _: PipelineSpec, worker: Worker) -> str:
    why = worker.record.refuses.get(pipeline)
    return f"refuses: {why}" if why is not None else ""


_OBJECTIONS: tuple[Objection, ...] = (_class, _labels, _refuses)


def suitable(snapshot: FleetSnapshot) -> Mapping[str, Suitable]:
    """By pipeline. Cordoned workers are holders and no takers."""
    return {name: _of_pipeline(name, spec, snapshot) for name, spec in sorted(snapshot.pipelines.items())}


def _of_pipeline(name: str, spec: PipelineSpec, snapshot: FleetSnapshot) -> Suitable:
    holders: list[str] = []
    takers: list[str] = []
    refusals: Counter[str] = Counter()
    for worker in snapshot.workers.values():
        objection = next((text for check in _OBJECTIONS if (text := check(name, spec, worker))), "")
        if objection:
            refusals[objection] += 1
            continue
        holders.append(worker.id)
        if worker.id in snapshot.cordons:
            refusals["cordoned"] += 1
        else:
            takers.append(worker.id)
    ranked = sorted(refusals.items(), key=lambda item: (-item[1], item[0]))
    return Suitable(
        holders=frozenset(holders),
        takers=frozenset(takers),
        refusals="; ".join(f"{count} x {text}" for text, count in ranked[:5]),
    )
