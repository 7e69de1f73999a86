"""What each runner uses: the estimator's input and the metrics.

Role: counters that the runner bumps and the agent reads every few seconds. Neighbours: `runner`, `agent`.
"""

from __future__ import annotations

from dataclasses import dataclass

import prometheus_client

from sluiceway.common.records import PartitionUsage

RECORDS = prometheus_client.Counter(
    "sluiceway_delivered_records_total", "Records delivered into the sink and committed", ["pipeline"]
)
DEAD_LETTERS = prometheus_client.Counter(
    "sluiceway_dead_letters_total", "Records delivered into the dead letters and committed", ["pipeline"]
)
RESCUED = prometheus_client.Counter(
    "sluiceway_rescued_records_total", "Delivered records with values that did not fit the schema", ["pipeline"]
)
BYTES_IN = prometheus_client.Counter(
    "sluiceway_fetched_bytes_total", "Bytes of keys, values and headers fetched", ["pipeline"]
)
BYTES_OUT = prometheus_client.Counter("sluiceway_written_bytes_total", "Bytes written into the sink", ["pipeline"])
CUTS = prometheus_client.Counter("sluiceway_cuts_total", "Cuts committed, by cause", ["pipeline", "cause"])
LAG = prometheus_client.Gauge("sluiceway_partition_lag_records", "Records not yet fetched", ["partition"])
LEASES = prometheus_client.Gauge("sluiceway_worker_leases", "Leases held")
BUFFERED = prometheus_client.Gauge("sluiceway_worker_buffered_bytes", "Bytes of records in flight")


@dataclass(slots=True, kw_only=True)
class Usage:
    """Counters of one runner since its last report; bytes, seconds, records."""

    pipeline: str
    records: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cpu_s: float = 0.0
    peak_buffer_bytes: int = 0
    position: int = 0
    log_end: int = -1
    dead_letters: int = 0
    rescued: int = 0
    state: str = "recovering"
    detail: str = ""
    sink_problem: str = ""  # why the sink can't be written now, while it is retried

    def fetched(self, *, records: int, size_bytes: int, buffered_bytes: int, cpu_s: float) -> None:
        self.records += records
        self.bytes_in += size_bytes
        self.cpu_s += cpu_s
        self.peak_buffer_bytes = max(self.peak_buffer_bytes, buffered_bytes)
        BYTES_IN.labels(self.pipeline).inc(size_bytes)

    def delivered(self, *, rows: int, rescued: int, dead: int, bytes_out: int, cpu_s: float, cause: str) -> None:
        self.dead_letters += dead
        self.rescued += rescued
        self.bytes_out += bytes_out
        self.cpu_s += cpu_s
        RECORDS.labels(self.pipeline).inc(rows)
        RESCUED.labels(self.pipeline).inc(rescued)
        DEAD_LETTERS.labels(self.pipeline).inc(dead)
        BYTES_OUT.labels(self.pipeline).inc(bytes_out)
        CUTS.labels(self.pipeline, cause).inc()

    def report(self, *, interval_s: float, loop_cpu_s: float) -> PartitionUsage:
        """What was used since the last report; `loop_cpu_s` is this runner's share of the event loop's time."""
        usage = PartitionUsage(
            interval_s=interval_s,
            records=self.records,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            cpu_s=self.cpu_s + loop_cpu_s,
            peak_buffer_bytes=self.peak_buffer_bytes,
            position=self.position,
            log_end=self.log_end,
            dead_letters=self.dead_letters,
            rescued=self.rescued,
            state="paused" if self.sink_problem else self.state,
            detail=f"sink: {self.sink_problem}" if self.sink_problem else self.detail,
        )
        self.records = self.bytes_in = self.bytes_out = self.peak_buffer_bytes = self.dead_letters = self.rescued = 0
        self.cpu_s = 0.0
        return usage
