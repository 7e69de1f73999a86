"""The scheduler's Prometheus metrics, under conventional names."""

from __future__ import annotations

from collections import Counter as TallyOf

from prometheus_client import Counter, Gauge, Histogram

from sluiceway.scheduler.grants.commit import Outcome
from sluiceway.scheduler.grants.plan import Plan
from sluiceway.scheduler.observe import Observer
from sluiceway.scheduler.placement.reasons import Why

LEADING = Gauge("sluiceway_scheduler_leading", "1 while this replica leads")
TERM = Gauge("sluiceway_scheduler_term", "the term in which this replica leads, 0 while it follows")
CYCLES = Counter("sluiceway_scheduler_cycles", "decisions taken")
CYCLE_SECONDS = Histogram(
    "sluiceway_scheduler_cycle_seconds",
    "time of one cycle by phase",
    ["phase"],
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CHANGES = Counter("sluiceway_scheduler_changes", "changes committed", ["action"])
LOST_COMPARES = Counter("sluiceway_scheduler_lost_compares", "changes that found the fleet different from the plan")
UNKNOWN = Counter("sluiceway_scheduler_unknown_transactions", "transactions without an answer")
PARTITIONS = Gauge("sluiceway_partitions", "partitions that there should be")
LEASED = Gauge("sluiceway_partitions_leased", "partitions that are leased")
UNPLACED = Gauge("sluiceway_partitions_unplaced", "partitions without a holder", ["reason"])
WORKERS = Gauge("sluiceway_workers", "registered workers", ["state"])
LAG = Gauge("sluiceway_pipeline_lag_records", "records not yet delivered", ["pipeline"])
UNREADABLE = Gauge("sluiceway_scheduler_unreadable_keys", "keys in etcd whose value can't be read")
REJECTED = Gauge("sluiceway_scheduler_rejected_measurements", "measurements that could not be believed")
PLAN_REVISION = Gauge("sluiceway_scheduler_plan_revision", "etcd revision that the newest plan was made on")


def record(plan: Plan, outcome: Outcome, observer: Observer, decide_s: float, commit_s: float) -> None:
    """Publishes one cycle."""
    CYCLES.inc()
    CYCLE_SECONDS.labels("decide").observe(decide_s)
    CYCLE_SECONDS.labels("commit").observe(commit_s)
    for action in ("granted", "revoked", "deleted", "quarantined"):
        CHANGES.labels(action).inc(getattr(outcome, action))
    LOST_COMPARES.inc(outcome.lost_compares)
    UNKNOWN.inc(outcome.unknown)
    PARTITIONS.set(plan.partitions)
    LEASED.set(plan.leased)
    unplaced = TallyOf(reason.why for reason in plan.unplaced.values())
    for why in Why:
        UNPLACED.labels(why).set(unplaced[why])
    snapshot = observer.snapshot
    WORKERS.labels("cordoned").set(len(snapshot.cordons.keys() & snapshot.workers.keys()))
    WORKERS.labels("open").set(len(snapshot.workers.keys() - snapshot.cordons.keys()))
    for name, state in snapshot.states.items():
        LAG.labels(name).set(state.record.lag_records)
    UNREADABLE.set(len(snapshot.problems))
    REJECTED.set(observer.estimator.rejected)
    PLAN_REVISION.set(snapshot.revision)
