"""Writes lines of standard input as records to a topic, which it creates if need be.

python examples/produce.py 127.0.0.1:9092 events < records.ndjson
"""

from __future__ import annotations

import asyncio
import sys

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic


async def create(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        if topic not in await admin.list_topics():
            await admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, lines: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        for acknowledged in [await producer.send(topic, line) for line in lines]:
            await acknowledged
    finally:
        await producer.stop()


async def main(bootstrap: str, topic: str) -> None:
    lines = sys.stdin.buffer.read().splitlines()
    await create(bootstrap, topic)
    await produce(bootstrap, topic, lines)
    sys.stdout.write(f"{len(lines)} records are written to {topic}\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/produce.py BOOTSTRAP TOPIC < records.ndjson")
    asyncio.run(main(sys.argv[1], sys.argv[2]))
