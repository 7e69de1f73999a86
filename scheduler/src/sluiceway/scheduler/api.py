"""The scheduler's HTTP API: health, metrics, and what it sees, from memory and on any replica. Read-only."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Response

from sluiceway.common.http import make_app
from sluiceway.scheduler.cycle import Standing
from sluiceway.scheduler.snapshot import FleetSnapshot

Limit = Annotated[int, Query(ge=1, le=10_000)]


def make_api(*, snapshot: Callable[[], FleetSnapshot], standing: Standing, ready: Callable[[], str | None]) -> FastAPI:
    """The app; `ready` returns None or why this replica can't answer yet."""
    app = make_app(title="Sluiceway scheduler", alive=lambda: None, ready=ready)

    @app.get("/api/v1/status")
    def status() -> Response:
        plan = standing.plan
        return _json(
            {
                "leading": standing.term > 0,
                "term": standing.term,
                "cycles": standing.cycles,
                "plan": plan.id,
                "partitions": plan.partitions,
                "leased": plan.leased,
                "unplaced": len(plan.unplaced),
                "revision": snapshot().revision,
                "unreadable": dict(islice(sorted(snapshot().problems.items()), 100)),
            }
        )

    @app.get("/api/v1/pipelines")
    def pipelines() -> Response:
        seen = snapshot()
        states = {name: state.record for name, state in seen.states.items()}
        return _json([{"name": name, "state": states.get(name)} for name in sorted(seen.pipelines)])

    @app.get("/api/v1/workers")
    def workers() -> Response:
        seen = snapshot()
        held: dict[str, int] = {}
        for lease in seen.leases.values():
            held[lease.record.holder] = held.get(lease.record.holder, 0) + 1
        return _json([_worker(seen, name, held.get(name, 0)) for name in sorted(seen.workers)])

    @app.get("/api/v1/leases")
    def leases(pipeline: str | None = None, worker: str | None = None, limit: Limit = 1000) -> Response:
        chosen = (
            lease
            for _, lease in sorted(snapshot().leases.items())
            if pipeline in (None, lease.partition.pipeline) and worker in (None, lease.record.holder)
        )
        return _json(
            [
                {"partition": str(lease.partition), "token": lease.token, **msgspec.to_builtins(lease.record)}
                for lease in islice(chosen, limit)
            ]
        )

    return app


def _worker(seen: FleetSnapshot, name: str, held: int) -> dict[str, Any]:
    worker, load = seen.workers[name], seen.loads.get(name)
    return {
        **msgspec.to_builtins(worker.record),
        "leases": held,
        "cordon": seen.cordons.get(name),
        "load": None if load is None else msgspec.structs.replace(load.record, partitions={}),
    }


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
