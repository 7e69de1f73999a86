"""What a decision is made on. Pure; see `decide`, and `states` for what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from sluiceway.common.keys import Keys
from sluiceway.scheduler.estimate.demand import Estimator
from sluiceway.scheduler.grants.sightings import Ages
from sluiceway.scheduler.snapshot import FleetSnapshot
from sluiceway.scheduler.source_view import SourceView


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a decision depends on. `now_s` stamps states for people; `refresh_counters` lets counters of a state be
    written that change all the time."""

    keys: Keys
    snapshot: FleetSnapshot
    sources: SourceView
    estimator: Estimator
    ages: Ages = field(default_factory=Ages)
    now_s: float = 0.0
    refresh_counters: bool = True
