"""`python -m sluiceway.worker`: puts one worker together and runs it until SIGTERM has drained it.

Exit codes: 0 drained, 1 failed, 2 wrong settings.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import structlog

from sluiceway.common import http, logs, settings
from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import SluicewayError, SpecInvalid
from sluiceway.common.etcd.client import connect
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.keys import Keys
from sluiceway.common.records import WorkerRecord
from sluiceway.worker.agent import Identity, LeaseAgent
from sluiceway.worker.assembly import SharedParts
from sluiceway.worker.budget import ByteBudget
from sluiceway.worker.settings import WorkerSettings

log = structlog.get_logger()
VERSION = metadata.version("sluiceway-worker")

DESCRIPTION = """Runs one Sluiceway worker: it delivers the partitions that the scheduler leases to it.

Settings come from a TOML file named by SLUICEWAY_CONFIG, then SLUICEWAY_… variables, then these flags.

  SLUICEWAY_ETCD__ENDPOINTS='["etcd-0:2379"]' SLUICEWAY_CAPACITY__MEMORY=2147483648 python -m sluiceway.worker
"""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m sluiceway.worker",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--id", help="the worker's id, unique in the fleet")
    parser.add_argument("--fleet", help="which installation it belongs to")
    parser.add_argument("--worker-class", help="the class that pipelines may ask for")
    parser.add_argument("--http-port", type=int, help="port of /healthz, /readyz and /metrics; 0: any free one")
    flags = vars(parser.parse_args())
    try:
        wanted = settings.load(WorkerSettings, **flags)
    except SpecInvalid as error:
        print("\n".join(error.problems), file=sys.stderr)  # noqa: T201
        return 2
    logs.configure(component="worker", level=wanted.log_level, worker=wanted.id)
    # Records come as many small objects that die young together: the collector's default rhythm costs a third of
    # the fetch's CPU time (benchmarks/fetch.py) and finds nothing.
    gc.set_threshold(20_000, 20, 50)
    status = 0
    try:
        asyncio.run(run(wanted))
    except* SluicewayError as failed:
        log.error("worker_failed", error=str(failed.exceptions[0]))
        status = 1
    return status


async def run(wanted: WorkerSettings) -> None:
    """Starts everything in order, waits until the agent is drained, stops everything in reverse order."""
    clock, keys = SystemClock(), Keys(wanted.fleet)
    sock = http.listen(wanted.http_host, wanted.http_port)
    host, port = sock.getsockname()[:2]
    etcd = await connect(wanted.etcd)
    specs = Mirror(etcd, keys.specs)
    with ThreadPoolExecutor(max(1, round(wanted.capacity.cpu)), thread_name_prefix="decode") as decoders:
        parts = SharedParts(
            worker=wanted.id,
            etcd=etcd,
            keys=keys,
            clock=clock,
            specs=specs,
            budget=ByteBudget(wanted.buffer_bytes),
            decoders=decoders,
            patience_s=wanted.patience_s,
        )
        identity = _identity(wanted, address=f"{host}:{port}")
        agent = LeaseAgent(identity, etcd=etcd, keys=keys, clock=clock, specs=specs, assembly=parts)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.drain)
        app = http.make_app(title="Sluiceway worker", alive=lambda: None, ready=agent.problem)
        log.info("worker_started", address=identity.record.address, buffer_bytes=wanted.buffer_bytes, pid=os.getpid())
        try:
            async with asyncio.TaskGroup() as tasks:
                background: list[asyncio.Task[None]] = [
                    tasks.create_task(http.serve(app, sock), name="http"),
                    tasks.create_task(specs.run(), name="specs"),
                    tasks.create_task(parts.keep_warm(), name="keep warm"),
                ]
                await agent.run()
                for task in background:
                    task.cancel()
        finally:
            await parts.close()
            with contextlib.suppress(SluicewayError):
                await etcd.close()
            log.info("worker_stopped")


def _identity(wanted: WorkerSettings, *, address: str) -> Identity:
    return Identity(
        record=WorkerRecord(
            id=wanted.id,
            session=0,
            capacity=wanted.capacity.as_resources(),
            worker_class=wanted.worker_class,
            zone=wanted.zone,
            labels=wanted.labels,
            address=address,
            version=VERSION,
        ),
        ttl_s=wanted.session_ttl_s,
        margin_s=wanted.session_margin_s,
        report_interval_s=wanted.report_interval_s,
        drain_timeout_s=wanted.drain_timeout_s,
    )


if __name__ == "__main__":
    sys.exit(main())
