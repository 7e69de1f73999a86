"""Reads what a command shows from etcd, one listing a part."""

from __future__ import annotations

from collections.abc import Set

from sluiceway.cli.connection import Fleet, decoded
from sluiceway.cli.view import Held, Part, View
from sluiceway.common.records import (
    CordonRecord,
    EventRecord,
    FailureRecord,
    LeaseRecord,
    LoadReport,
    PipelineState,
    ProgressRecord,
    SpecRecord,
    WorkerRecord,
)


async def read_view(fleet: Fleet, parts: Set[Part], pipeline: str | None = None) -> View:
    """Reads the parts, one listing each.

    Args:
        pipeline: of leases, progress and failures, only this pipeline's.
    """
    keys, read = fleet.keys, fleet.read_all
    wants = parts.__contains__
    below = f"{pipeline}/" if pipeline is not None else ""
    return View(
        now=fleet.clock.now(),
        specs=await read(SpecRecord, keys.specs) if wants(Part.SPECS) else {},
        states=await read(PipelineState, keys.states) if wants(Part.STATES) else {},
        workers=await read(WorkerRecord, keys.workers) if wants(Part.WORKERS) else {},
        cordons=await read(CordonRecord, keys.cordons) if wants(Part.CORDONS) else {},
        leases=await _leases(fleet, below) if wants(Part.LEASES) else {},
        progress=await read(ProgressRecord, keys.progress_of_all, below) if wants(Part.PROGRESS) else {},
        failures=await read(FailureRecord, keys.failures, below) if wants(Part.FAILURES) else {},
        loads=await read(LoadReport, keys.loads) if wants(Part.LOADS) else {},
        events=await read(EventRecord, keys.events) if wants(Part.EVENTS) else {},
        led=await fleet.etcd.get(keys.leader) is not None if wants(Part.LEADER) else True,
    )


async def _leases(fleet: Fleet, below: str) -> dict[str, Held]:
    prefix = fleet.keys.leases
    return {
        item.key.removeprefix(prefix): Held(
            record=decoded(LeaseRecord, item.key, item.value), token=item.create_revision
        )
        for item in (await fleet.etcd.list(prefix + below)).items
    }
