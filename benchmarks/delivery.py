"""What delivering costs: Apache Kafka → Parquet on an S3 store by one worker, beside pyarrow alone on the same bytes.

The topic is filled first. Then one worker process of the real thing delivers it; its CPU seconds (user and system, of
the whole process, from before the pipeline exists until the last record is committed) are set against the floor: one
process that parses the same bytes with `pyarrow.json` and writes Parquet (zstd) into memory. So that pyarrow can read
them at all, the generated events have one type a field and none is malformed.

Progress goes to standard error; the last line of standard output is the result as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.json
import pyarrow.parquet

from sluiceway.cli.demo.conductor import delivered, watching
from sluiceway.cli.demo.fleet import FleetOptions, LocalFleet
from sluiceway.cli.demo.generate import Traffic, events
from sluiceway.cli.demo.pour import Poured, create_topics, pour
from sluiceway.cli.demo.sources import GENERATED_TOPIC, generated
from sluiceway.common import logs
from sluiceway.common.clock import SystemClock

FLOOR_BYTES = 32 * 2**20  # in one Parquet file, as much as the worker puts into one


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    records: int
    value_bytes: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="the worker's declared memory")
    parser.add_argument("--broker", choices=["kafka", "embedded"], default="kafka")
    wanted = parser.parse_args()
    logs.configure(component="benchmark", level="error")
    traffic = Traffic(
        records=wanted.records,
        malformed_share=0,
        steady_types=True,
        start_ms=int(time.time() * 1000) - wanted.records // 20,
    )
    with tempfile.TemporaryDirectory(prefix="sluiceway-bench-") as folder:
        options = FleetOptions(
            directory=Path(folder),
            broker=wanted.broker,
            workers=0,
            worker_memory_bytes=wanted.memory * 2**20,
            worker_cpu=2.0,
            session_ttl_s=10,
            report_interval_s=1.0,
            quick_kafka=False,
        )
        say(f"starting {wanted.broker}, etcd, an object store, a scheduler")
        with LocalFleet(options) as fleet:
            measured = asyncio.run(deliver(fleet, traffic, wanted.partitions))
    say("the floor: pyarrow alone on the same bytes")
    floor_cpu_s = floor(traffic)
    print(json.dumps(result(measured, floor_cpu_s)))


async def deliver(fleet: LocalFleet, traffic: Traffic, partitions: int) -> Delivered:
    """Fills the topic, then measures one worker."""
    clock, poured = SystemClock(), Poured()
    await create_topics(fleet.stack.bootstrap, [GENERATED_TOPIC], partitions)
    say(f"filling the topic with {traffic.records:,} records")
    await pour(fleet.stack.bootstrap, [generated(traffic)], poured)
    worker = await asyncio.to_thread(fleet.launch_worker, "worker-0")
    await asyncio.to_thread(worker.wait_ready)
    process = psutil.Process(worker.pid)
    async with watching(fleet, say) as (etcd, seen):
        say(f"delivering {poured.value_bytes / 1e6:,.0f} MB from {partitions} partitions")
        began, cpu_before = clock.monotonic(), process.cpu_times()
        await fleet.apply(etcd, fleet.documents([GENERATED_TOPIC], max_age_s=2, max_bytes=FLOOR_BYTES), clock)
        await delivered(seen, poured.by_partition)
        seconds, cpu = clock.monotonic() - began, process.cpu_times()
    return Delivered(
        records=poured.records,
        value_bytes=poured.value_bytes,
        seconds=seconds,
        cpu_seconds=cpu.user + cpu.system - cpu_before.user - cpu_before.system,
        peak_rss_bytes=seen.memory.peaks["worker-0"],
    )


def floor(traffic: Traffic) -> float:
    """CPU seconds that parsing and encoding take without anything around them."""
    spent_s = 0.0
    for lines in joined(traffic):
        began = time.process_time()
        table = pyarrow.json.read_json(io.BytesIO(lines))
        pyarrow.parquet.write_table(table, io.BytesIO(), compression="zstd")
        spent_s += time.process_time() - began
    return spent_s


def joined(traffic: Traffic) -> Iterator[bytes]:
    """The records' values as lines, in pieces of `FLOOR_BYTES`."""
    lines: list[bytes] = []
    size = 0
    for chunk in events(traffic):
        values = [value for _, value, _ in chunk if value is not None]
        lines += values
        size += sum(map(len, values))
        if size >= FLOOR_BYTES:
            yield b"\n".join(lines)
            lines, size = [], 0
    if lines:
        yield b"\n".join(lines)


def result(measured: Delivered, floor_cpu_s: float) -> dict[str, float]:
    gigabytes = measured.value_bytes / 1e9
    return {
        "records": measured.records,
        "bytes": measured.value_bytes,
        "seconds": round(measured.seconds, 2),
        "records_per_second": round(measured.records / measured.seconds),
        "mb_per_second": round(measured.value_bytes / measured.seconds / 1e6, 1),
        "cpu_seconds_per_gb": round(measured.cpu_seconds / gigabytes, 1),
        "floor_cpu_seconds_per_gb": round(floor_cpu_s / gigabytes, 1),
        "ratio_to_floor": round(measured.cpu_seconds / floor_cpu_s, 2),
        "peak_rss_mb": measured.peak_rss_bytes >> 20,
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
