"""How fast a mirror of 100,000 lease keys under 500 session leases loads, follows and resyncs, on a real etcd.

`python -m benchmarks.mirror [--keys N] [--sessions N] [--changes N]` prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from typing import Any

from sluiceway.cli.stack.etcd import EtcdServer
from sluiceway.common.etcd.api import Etcd, Op, Put, Txn
from sluiceway.common.etcd.client import connect
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.settings import EtcdSettings

PREFIX = "/sluiceway/bench/leases/"
VALUE = b'{"holder":"worker-000123","state":"granted","reason":"placed","granted_at":1764000000.123}'
KEYS_A_TXN = 100
WRITERS = 8


async def measure(*, keys: int, sessions: int, changes: int) -> dict[str, Any]:
    """Writes the keys, then takes the figures; `equal`: the mirror had exactly etcd's keys at the end of each step."""
    with EtcdServer(durable=False) as server:
        etcd = await connect(EtcdSettings(endpoints=[server.endpoint], timeout_s=30))
        try:
            return await _measure(etcd, server, keys, sessions, changes)
        finally:
            await etcd.close()


async def _measure(etcd: Etcd, server: EtcdServer, keys: int, sessions: int, changes: int) -> dict[str, Any]:
    leases = [await etcd.grant(3600) for _ in range(sessions)]
    written_s = await _timed(_write(etcd, leases, range(keys)))
    before_kb = _peak_rss_kb()
    mirror = Mirror(etcd, PREFIX)
    running = asyncio.create_task(mirror.run())
    load_s = await _timed(mirror.wait_for(1))
    equal = await _equal(mirror, etcd)
    load_kb = _peak_rss_kb() - before_kb

    started = time.monotonic()
    last = await _write(etcd, leases, range(changes))
    change_s = time.monotonic() - started
    await mirror.wait_for(last)
    follow_s = time.monotonic() - started
    equal = await _equal(mirror, etcd) and equal

    running.cancel()
    await asyncio.wait([running])
    await etcd.revoke(leases[0])
    revision = (await etcd.newest(PREFIX)).revision
    await asyncio.to_thread(server.ctl, "compaction", str(revision))
    resyncs, running = mirror.resyncs, asyncio.create_task(mirror.run())
    resync_s = await _timed(mirror.wait_for(revision))
    equal = await _equal(mirror, etcd) and equal and mirror.resyncs == resyncs + 1
    running.cancel()
    await asyncio.wait([running])
    return {
        "keys": keys,
        "sessions": sessions,
        "write_keys_per_s": round(keys / written_s),
        "load_seconds": round(load_s, 2),
        "follow_events_per_s": round(changes / follow_s),
        "write_events_per_s": round(changes / change_s),
        "resync_seconds": round(resync_s, 2),
        "mirror_mb": round(load_kb / 1024, 1),
        "peak_rss_mb": round(_peak_rss_kb() / 1024, 1),
        "equal": equal,
    }


async def _write(etcd: Etcd, leases: list[int], numbers: range) -> int:
    """Puts the numbers' keys by several writers at once; returns the last revision."""

    async def part(first: int) -> int:
        revision = 0
        for start in range(numbers.start + first * KEYS_A_TXN, numbers.stop, WRITERS * KEYS_A_TXN):
            some = numbers[start - numbers.start : start - numbers.start + KEYS_A_TXN]
            ops: list[Op] = [Put(_key(n), VALUE, leases[n % len(leases)]) for n in some]
            revision = (await etcd.txn(Txn([], ops))).revision
        return revision

    return max(await asyncio.gather(*map(part, range(WRITERS))))


def _key(number: int) -> str:
    return f"{PREFIX}pipeline-{number % 40}/topic-{number % 400}@0/{number}"


async def _equal(mirror: Mirror, etcd: Etcd) -> bool:
    listing = await etcd.list(PREFIX)
    snapshot = await mirror.wait_for(listing.revision)
    return dict(snapshot.items) == {item.key: item for item in listing.items}


async def _timed(work: Any) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


def _peak_rss_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--changes", type=int, default=20_000)
    print(json.dumps(asyncio.run(measure(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
