"""`python -m sluiceway.scheduler`: puts the parts together, runs until SIGTERM or SIGINT, exits 0 then."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial

import structlog

from sluiceway.common import http, logs, settings
from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import EtcdUnavailable, SluicewayError, SpecInvalid
from sluiceway.common.etcd.api import Etcd
from sluiceway.common.etcd.client import connect
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.kafka import connect as connect_kafka
from sluiceway.common.keys import Keys
from sluiceway.common.settings import EtcdSettings
from sluiceway.scheduler.api import make_api
from sluiceway.scheduler.cycle import Identity, Scheduler
from sluiceway.scheduler.grants.decide import Policy
from sluiceway.scheduler.settings import SchedulerSettings
from sluiceway.scheduler.sources import Sources

log = structlog.get_logger(__name__)

RECONNECT_S = 1.0
KAFKA_TIMEOUT_S = 10.0


def main() -> int:
    """The process's exit code: 0 after a signal, 1 after a failure, 2 for wrong settings."""
    try:
        configured = settings.load(SchedulerSettings, **_flags())
    except SpecInvalid as error:
        print(error, file=sys.stderr)  # noqa: T201 (logging is not set up yet)
        return 2
    replica = configured.id or f"{socket.gethostname()}-{os.getpid()}"
    logs.configure(component="scheduler", level=configured.log_level, scheduler=replica)
    return asyncio.run(_until_signal(configured, replica))


async def _until_signal(configured: SchedulerSettings, replica: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    serving = asyncio.ensure_future(_serve(configured, replica))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    log.info("scheduler_stopping", signalled=stop.is_set())
    stopping.cancel()
    serving.cancel()
    await asyncio.wait([serving])
    return _exit_code(serving)


def _exit_code(served: asyncio.Future[None]) -> int:
    """0 if it was told to stop; raises what is a bug."""
    if served.cancelled():
        return 0
    error = served.exception()
    leaves = list(_leaves(error)) if error is not None else []
    if not leaves or not all(isinstance(leaf, SluicewayError) for leaf in leaves):
        served.result()
    log.error("scheduler_failed", causes=[str(leaf) for leaf in leaves])
    return 1


async def _serve(configured: SchedulerSettings, replica: str) -> None:
    etcd = await _reach(configured.etcd)
    try:
        await _run(etcd, configured, replica)
    finally:
        await etcd.close()


async def _reach(endpoints: EtcdSettings) -> Etcd:
    """Waits for etcd for as long as it takes."""
    while True:
        try:
            return await connect(endpoints)
        except EtcdUnavailable as error:
            log.warning("waiting_for_etcd", endpoints=endpoints.endpoints, cause=str(error))
            await asyncio.sleep(RECONNECT_S)


async def _run(etcd: Etcd, configured: SchedulerSettings, replica: str) -> None:
    """Composes one replica and runs its parts side by side; one that fails ends the others."""
    clock, keys = SystemClock(), Keys(configured.fleet)
    mirror = Mirror(etcd, keys.root)
    kafka = partial(connect_kafka, client_id=f"sluiceway-{replica}", request_timeout_s=KAFKA_TIMEOUT_S)
    sources = Sources(kafka, clock, poll_s=configured.poll_sources_s, on_change=lambda: scheduler.poke())
    scheduler = Scheduler(
        etcd=etcd,
        keys=keys,
        mirror=mirror,
        sources=sources,
        clock=clock,
        identity=Identity(id=replica, session_ttl_s=configured.session_ttl_s),
        policy=Policy(
            headroom=configured.headroom,
            revoke_timeout_s=configured.revoke_timeout_s,
            moves_in_flight=configured.moves_in_flight,
        ),
    )
    api = make_api(
        snapshot=lambda: scheduler.observer.snapshot,
        standing=scheduler.standing,
        ready=lambda: None if mirror.loaded else "the fleet's keys are not loaded yet: waiting for etcd",
    )
    listening = http.listen(configured.http_host, configured.http_port)
    host, port = listening.getsockname()[:2]
    log.info("scheduler_started", fleet=configured.fleet, http=f"{host}:{port}")
    async with asyncio.TaskGroup() as group:
        group.create_task(mirror.run(), name="mirror")
        group.create_task(sources.run(), name="sources")
        group.create_task(http.serve(api, listening), name="http")
        group.create_task(scheduler.run(), name="scheduler")


def _flags() -> dict[str, object]:
    parser = argparse.ArgumentParser(
        prog="python -m sluiceway.scheduler",
        description="A scheduler replica: decides who holds which partition and grants the leases in etcd.",
        epilog="Every setting is also an environment variable (SLUICEWAY_HEADROOM) and a key of the TOML file that "
        "SLUICEWAY_CONFIG names. Settings of etcd: SLUICEWAY_ETCD__ENDPOINTS='[\"host:2379\"]' and so on.",
    )
    for name, field in SchedulerSettings.model_fields.items():
        if name != "etcd":
            text = f"{field.description or name.replace('_', ' ')} (default: {field.default!r})"
            parser.add_argument(f"--{name.replace('_', '-')}", help=text.replace("%", "%%"))
    parser.add_argument("--etcd", nargs="+", metavar="HOST:PORT", help="endpoints of etcd")
    chosen = vars(parser.parse_args())
    if (endpoints := chosen.pop("etcd")) is not None:
        chosen["etcd"] = {"endpoints": endpoints}
    return chosen


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())
