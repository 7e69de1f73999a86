"""Pipelines, topics and clusters as tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sluiceway.cli.tables import Column, Row, Table
from sluiceway.cli.units import age, count
from sluiceway.cli.view import View
from sluiceway.common.records import Condition, PipelineState, SpecRecord

_PIPELINES: Final = (
    Column("NAME", "name"),
    Column("CONDITION", "condition"),
    Column("PARTITIONS", "leased_of_all"),
    Column("LAG", "lag_records", count, right=True),
    Column("DELIVERED", "delivered", count, right=True),
    Column("DEAD LETTERS", "dead_letters", count, right=True),
    Column("QUARANTINED", "quarantined", count, wide=True, right=True),
    Column("TOPICS", "topics", wide=True),
    Column("SINK", "sink", wide=True),
    Column("SEEN", "seconds_since_seen", age, wide=True, right=True),
    Column("MESSAGE", "message"),
)
_TOPICS: Final = (
    Column("NAME", "name"),
    Column("CLUSTER", "cluster"),
    Column("PHYSICAL", "physical"),
    Column("PIPELINES", "pipelines"),
    Column("SPEC", "spec_hash", wide=True),
)
_CLUSTERS: Final = (
    Column("NAME", "name"),
    Column("BOOTSTRAP", "bootstrap"),
    Column("SECURITY", "security"),
    Column("TOPICS", "topics", count, right=True),
    Column("SPEC", "spec_hash", wide=True),
)


def pipelines(view: View) -> Table:
    rows = [pipeline(name, record, view) for name, record in sorted(view.named("pipelines").items())]
    return Table(columns=_PIPELINES, rows=rows, empty="no pipelines; `sluiceway apply -f` makes one")


def pipeline(name: str, record: SpecRecord, view: View) -> Row:
    """One pipeline's row; every number is raw."""
    spec = spec_of(record)
    state = view.states.get(name) or _unseen(paused=bool(spec.get("paused")))
    return {
        "name": name,
        "condition": state.condition.value,
        "leased_of_all": f"{state.leased}/{state.partitions}",
        "leased": state.leased,
        "partitions": state.partitions,
        "quarantined": state.quarantined,
        "unplaced": state.unplaced,
        "lag_records": state.lag_records,
        "delivered": state.delivered,
        "dead_letters": state.dead_letters,
        "topics": spec.get("topics", []),
        "sink": spec.get("sink", {}).get("url"),
        "spec_hash": record.hash,
        "seconds_since_seen": round(view.now - state.at, 1) if state.at else None,
        "message": state.message,
    }


def _unseen(*, paused: bool) -> PipelineState:
    """Nobody has looked at it yet."""
    condition = Condition.PAUSED if paused else Condition.PENDING
    return PipelineState(condition=condition, message="no scheduler has looked at it yet")


def topics(view: View) -> Table:
    rows = [_topic(name, record, view) for name, record in sorted(view.named("topics").items())]
    return Table(columns=_TOPICS, rows=rows, empty="no topics; `sluiceway apply -f` makes one")


def _topic(name: str, record: SpecRecord, view: View) -> Row:
    spec = spec_of(record)
    return {
        "name": name,
        "cluster": spec.get("cluster"),
        "physical": spec.get("physical") or name,
        "pipelines": pipelines_of(name, view),
        "spec_hash": record.hash,
    }


def pipelines_of(topic: str, view: View) -> list[str]:
    """The pipelines that read a topic."""
    return sorted(n for n, record in view.named("pipelines").items() if topic in spec_of(record).get("topics", []))


def clusters(view: View) -> Table:
    rows = [_cluster(name, record, view) for name, record in sorted(view.named("clusters").items())]
    return Table(columns=_CLUSTERS, rows=rows, empty="no clusters; `sluiceway apply -f` makes one")


def _cluster(name: str, record: SpecRecord, view: View) -> Row:
    spec = spec_of(record)
    return {
        "name": name,
        "bootstrap": spec.get("bootstrap", []),
        "security": _security(spec),
        "topics": len(topics_of(name, view)),
        "spec_hash": record.hash,
    }


def topics_of(cluster: str, view: View) -> list[str]:
    """The topics on a cluster."""
    return sorted(name for name, record in view.named("topics").items() if spec_of(record).get("cluster") == cluster)


def _security(spec: Mapping[str, Any]) -> str:
    transport = "TLS" if spec.get("tls") is not None else "plaintext"
    return f"{transport}, {spec['sasl'].get('mechanism')}" if spec.get("sasl") else transport


def spec_of(record: SpecRecord) -> Mapping[str, Any]:
    """The `spec` part of a stored document."""
    spec = record.document.get("spec")
    return spec if isinstance(spec, dict) else {}
