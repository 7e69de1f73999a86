"""Learns the demand of partitions.

Per partition: arrival rate from the growth of the log end, whoever reported it, and rate of work from usage reports;
backlog from position and log end. Per pipeline, over all of its partitions: bytes a record, CPU seconds a byte, bytes
out per byte in. `Estimator.demand` joins both, so that a partition which no one has held yet is priced by its pipeline.
Measurements that are not finite, negative or absurd are dropped and counted. Pure: time comes as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import PartitionUsage
from sluiceway.common.resources import Resources
from sluiceway.common.specs.models import CutPolicy
from sluiceway.scheduler.estimate.smoothing import sane, smoothed

PRIOR_RECORD_BYTES = 512.0
PRIOR_CPU_S_PER_BYTE = 25e-9  # 40 MB/s a core
PRIOR_OUT_PER_IN = 0.3
PRIOR_WEIGHT_BYTES = 32e6  # how many bytes of evidence the priors are worth
FORGET = 0.999  # share of the evidence kept at each report: the model follows a changed workload
CATCH_UP_S = 600.0  # a backlog is priced as if it had to be gone in this time
BACKLOG_CPU_LIMIT = 0.5  # cores: a backlog never makes one partition claim more, because it can wait
FLOOR = Resources(cpu=0.005, memory=2 * 2**20, network_in=1e3, network_out=1e3)
BUFFER_FACTOR = 1.5  # decoded rows beside the raw bytes while a cut is encoded

MAX_INTERVAL_S = 3600.0
MAX_RATE = 1e11  # records or bytes per second that no partition reaches
MAX_CPU_CORES = 1024.0
MAX_BUFFER_BYTES = 1e13
MIN_GROWTH_S = 1.0  # log ends seen closer together than this say little about a rate


@dataclass(slots=True)
class _Partition:
    arrival_records: float | None = None  # per second
    worked_bytes: float | None = None  # per second
    buffer_bytes: float | None = None
    position: int = -1
    log_end: int = -1
    log_end_at_s: float = 0.0


@dataclass(slots=True)
class _Pipeline:
    """Decayed sums of evidence, starting at the priors."""

    bytes_in: float = PRIOR_WEIGHT_BYTES
    bytes_out: float = PRIOR_WEIGHT_BYTES * PRIOR_OUT_PER_IN
    records: float = PRIOR_WEIGHT_BYTES / PRIOR_RECORD_BYTES
    cpu_s: float = PRIOR_WEIGHT_BYTES * PRIOR_CPU_S_PER_BYTE

    def add(self, usage: PartitionUsage) -> None:
        self.bytes_in = self.bytes_in * FORGET + usage.bytes_in
        self.bytes_out = self.bytes_out * FORGET + usage.bytes_out
        self.records = self.records * FORGET + usage.records
        self.cpu_s = self.cpu_s * FORGET + usage.cpu_s


@dataclass(slots=True)
class Estimator:
    """What has been learned so far. A new leader starts from the priors and has real figures within two reports."""

    rejected: int = 0  # measurements that could not be believed
    _partitions: dict[PartitionId, _Partition] = field(default_factory=dict)
    _pipelines: dict[str, _Pipeline] = field(default_factory=dict)

    def learn_usage(self, partition: PartitionId, usage: PartitionUsage, at_s: float) -> None:
        """Takes one runner's report of what it used in the interval that ended about `at_s` (monotonic seconds)."""
        if not _believable(usage):
            self.rejected += 1
            return
        known = self._partitions.setdefault(partition, _Partition())
        known.worked_bytes = smoothed(known.worked_bytes, usage.bytes_in / usage.interval_s)
        known.buffer_bytes = smoothed(known.buffer_bytes, float(usage.peak_buffer_bytes))
        known.position = usage.position
        if usage.bytes_in > 0:
            self._pipelines.setdefault(partition.pipeline, _Pipeline()).add(usage)
        if usage.log_end >= 0:
            self.learn_log_end(partition, usage.log_end, at_s)

    def learn_log_end(self, partition: PartitionId, log_end: int, at_s: float) -> None:
        """Takes the log end offset as seen at `at_s` (monotonic seconds)."""
        if log_end < 0:
            self.rejected += 1
            return
        known = self._partitions.setdefault(partition, _Partition())
        elapsed = at_s - known.log_end_at_s
        grown = log_end - known.log_end
        if known.log_end >= 0 and grown >= 0:
            if elapsed < MIN_GROWTH_S:
                return
            if not sane(grown / elapsed, MAX_RATE):
                self.rejected += 1
                return
            known.arrival_records = smoothed(known.arrival_records, grown / elapsed)
        known.log_end, known.log_end_at_s = log_end, at_s

    def learn_position(self, partition: PartitionId, next_offset: int) -> None:
        """Takes how far a partition is delivered, for the backlog of one that no one holds."""
        known = self._partitions.setdefault(partition, _Partition())
        known.position = max(known.position, next_offset)

    def forget_all_but(self, partitions: Iterable[PartitionId]) -> None:
        """Drops partitions that no longer exist, so that memory stays bounded by what does."""
        keep = set(partitions)
        self._partitions = {one: known for one, known in self._partitions.items() if one in keep}
        pipelines = {partition.pipeline for partition in keep}
        self._pipelines = {name: model for name, model in self._pipelines.items() if name in pipelines}

    def log_end(self, partition: PartitionId) -> int:
        """The newest log end offset known, -1 for none."""
        known = self._partitions.get(partition)
        return -1 if known is None else known.log_end

    def demand(self, partition: PartitionId, cut: CutPolicy) -> Resources:
        """What the partition needs to keep up and to work its backlog off in ten minutes."""
        known = self._partitions.get(partition, _NOTHING)
        model = self._pipelines.get(partition.pipeline, _PRIOR)
        record_bytes = model.bytes_in / max(model.records, 1.0)
        cpu_s_per_byte = model.cpu_s / model.bytes_in
        bytes_in = _arriving(known, record_bytes) + min(
            _backlog(known) * record_bytes / CATCH_UP_S, BACKLOG_CPU_LIMIT / max(cpu_s_per_byte, 1e-12)
        )
        modelled = min(cut.max_bytes, bytes_in * cut.max_age_s) * BUFFER_FACTOR
        buffers = modelled if known.buffer_bytes is None else known.buffer_bytes
        return Resources(
            cpu=FLOOR.cpu + bytes_in * cpu_s_per_byte,
            memory=FLOOR.memory + buffers,
            network_in=FLOOR.network_in + bytes_in,
            network_out=FLOOR.network_out + bytes_in * model.bytes_out / model.bytes_in,
        )


_NOTHING = _Partition()
_PRIOR = _Pipeline()


def _arriving(known: _Partition, record_bytes: float) -> float:
    """Bytes per second that arrive; what was worked on stands in where no log end is known."""
    if known.arrival_records is not None:
        return known.arrival_records * record_bytes
    if known.log_end < 0 and known.worked_bytes is not None:
        return known.worked_bytes
    return 0.0


def _backlog(known: _Partition) -> int:
    return max(0, known.log_end - max(known.position, 0)) if known.log_end >= 0 else 0


def _believable(usage: PartitionUsage) -> bool:
    interval_s = usage.interval_s
    return (
        sane(interval_s, MAX_INTERVAL_S)
        and interval_s > 0
        and sane(usage.records, MAX_RATE * interval_s)
        and sane(usage.bytes_in, MAX_RATE * interval_s)
        and sane(usage.bytes_out, MAX_RATE * interval_s)
        and sane(usage.cpu_s, MAX_CPU_CORES * interval_s)
        and sane(usage.peak_buffer_bytes, MAX_BUFFER_BYTES)
        and usage.position >= 0
    )
