"""Measures fetching alone: bytes in Apache Kafka's log become blocks of records, which are dropped.

Prints one JSON line a codec: records and megabytes (of keys and values) a second, and CPU seconds a gigabyte of this
process. Run with `python -m benchmarks.fetch [--records N] [--partitions P] [--codecs none,zstd]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sluiceway.cli.stack import KafkaCluster
from sluiceway.common.kafka import connect
from sluiceway.common.specs.models import ClusterSpec
from sluiceway.worker.budget import ByteBudget
from sluiceway.worker.fetch.feed import Feed
from sluiceway.worker.fetch.fetcher import Fetcher

RECORD_BYTES = 300
BATCH_RECORDS = 1500


async def fill(bootstrap: str, topic: str, *, records: int, partitions: int, codec: str) -> None:
    """Writes whole batches, so that the producer's cost a record does not matter."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, partitions, 1)])
    await admin.close()
    compression = None if codec == "none" else codec
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=2**20, compression_type=compression)
    await producer.start()
    try:
        for number in range(0, records, BATCH_RECORDS):
            batch = producer.create_batch()
            for one in range(number, min(records, number + BATCH_RECORDS)):
                batch.append(key=b"%012d" % one, value=value(one), timestamp=None)
            await producer.send_batch(batch, topic, partition=number // BATCH_RECORDS % partitions)
        await producer.flush()
    finally:
        await producer.stop()


def value(number: int) -> bytes:
    """A JSON event of `RECORD_BYTES` bytes; digits of a mixed number so that it does not compress to nothing."""
    mixed = number * 2654435761 % 2**32
    text = b'{"event":"login","user":"user-%d","ip":"10.%d.%d.%d","status":%d,"text":"' % (
        mixed,
        mixed & 255,
        mixed >> 8 & 255,
        mixed >> 16 & 255,
        mixed % 600,
    )
    filler = (b"%x" % (mixed**24))[: RECORD_BYTES - len(text) - 2]
    return text + filler + b'"}'


async def drain(feed: Feed, budget: ByteBudget, end: int) -> tuple[int, int]:
    """Takes blocks up to `end`; returns their records and bytes."""
    records = size = 0
    while feed.position < end:
        block = await feed.next()
        records += len(block.offsets)
        size += block.size_bytes
        budget.release(block.size_bytes)
    return records, size


async def measure(bootstrap: str, topic: str, *, partitions: int) -> dict[str, float]:
    """Fetches the whole topic once."""
    cluster = connect(ClusterSpec(bootstrap=bootstrap.split(",")), client_id="benchmark")
    budget = ByteBudget(256 * 2**20)
    fetcher = Fetcher(cluster, budget)
    try:
        feeds = [await fetcher.open(topic, number, 0) for number in range(partitions)]
        bounds = await cluster.offsets([feed.partition for feed in feeds])
        ends = [found[1] for feed in feeds if isinstance(found := bounds[feed.partition], tuple)]
        cpu, began = cpu_s(), time.perf_counter()
        totals = await asyncio.gather(
            *(drain(feed, budget, end) for feed, end in zip(feeds, ends, strict=True)),
        )
        elapsed, used = time.perf_counter() - began, cpu_s() - cpu
    finally:
        await fetcher.close()
        await cluster.close()
    records, size = (sum(column) for column in zip(*totals, strict=True))
    return {
        "records": records,
        "records_per_s": round(records / elapsed),
        "records_per_cpu_s": round(records / used),
        "mb_per_s": round(size / elapsed / 1e6, 1),
        "cpu_s_per_gb": round(used / (size / 1e9), 2),
        "peak_budget_mb": round(budget.peak / 1e6, 1),
    }


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def run(options: argparse.Namespace, bootstrap: str) -> None:
    for codec in options.codecs.split(","):
        topic = f"fetch-{codec}"
        await fill(bootstrap, topic, records=options.records, partitions=options.partitions, codec=codec)
        figures = await measure(bootstrap, topic, partitions=options.partitions)
        print(json.dumps({"benchmark": "fetch", "codec": codec, "partitions": options.partitions, **figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--codecs", default="none,zstd")
    options = parser.parse_args()
    with KafkaCluster(quick=False) as servers:
        asyncio.run(run(options, servers.bootstrap))


if __name__ == "__main__":
    main()
