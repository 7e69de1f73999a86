"""Workers as tables. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Final

from sluiceway.cli.tables import Column, Row, Table
from sluiceway.cli.units import age, amount
from sluiceway.cli.view import View
from sluiceway.common.resources import Resources

_WORKERS: Final = (
    Column("NAME", "name"),
    Column("STATUS", "status"),
    Column("CLASS", "worker_class"),
    Column("ZONE", "zone"),
    Column("PARTITIONS", "partitions", right=True),
    Column("CPU", "cpu"),
    Column("MEMORY", "memory"),
    Column("AGE", "age_s", age, right=True),
    Column("VERSION", "version", wide=True),
    Column("ADDRESS", "address", wide=True),
    Column("REASON", "reason"),
)


def workers(view: View) -> Table:
    """The registered workers, and those that are cordoned while away."""
    held = Counter(lease.record.holder for lease in view.leases.values())
    names = sorted({*view.workers, *view.cordons})
    return Table(
        columns=_WORKERS, rows=[worker(name, held[name], view) for name in names], empty="no worker is registered"
    )


def worker(name: str, partitions: int, view: View) -> Row:
    """One worker's row; cpu in cores, memory in bytes, as `used/capacity` for people."""
    record, load, cordon = view.workers.get(name), view.loads.get(name), view.cordons.get(name)
    capacity = record.capacity if record else Resources()
    used_cpu = load.cpu_s / load.interval_s if load and load.interval_s else None
    return {
        "name": name,
        "status": status(name, view),
        "worker_class": record.worker_class if record else None,
        "zone": record.zone if record else None,
        "labels": record.labels if record else {},
        "partitions": partitions,
        "cpu": f"{'-' if used_cpu is None else f'{used_cpu:.2f}'}/{capacity.cpu:g}",
        "memory": f"{amount(load.rss_bytes) if load else '-'}/{amount(capacity.memory)}",
        "cpu_used_cores": used_cpu,
        "memory_used_bytes": load.rss_bytes if load else None,
        "capacity": capacity,
        "age_s": round(view.now - record.started_at, 1) if record and record.started_at else None,
        "version": record.version if record else None,
        "address": record.address if record else None,
        "refuses": record.refuses if record else {},
        "reason": cordon.reason if cordon else None,
    }


def status(name: str, view: View) -> str:
    """Ready, Cordoned, Draining, or Absent when it is not registered."""
    cordon = view.cordons.get(name)
    if name not in view.workers:
        return "Absent"
    if cordon is None:
        return "Ready"
    return "Draining" if cordon.drain else "Cordoned"
