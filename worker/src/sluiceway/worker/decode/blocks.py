"""Decoding a block to its end: on a thread, with the schema widened as often as the block needs it.

Neighbours: `json_records` decodes, `registry` widens; the runner calls this for each fetched block, one at a time for a
partition.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final

from sluiceway.common.errors import EtcdUnavailable
from sluiceway.common.records import SchemaRecord
from sluiceway.worker.batches import DecodedBlock, RecordBlock
from sluiceway.worker.decode.json_records import JsonDecoder, Widening
from sluiceway.worker.decode.registry import SchemaRegistry
from sluiceway.worker.decode.schema import Fields

RETRY_S: Final = 0.2
MAX_WIDENINGS: Final = 10  # one is usual; after this many the block is decoded with what the schema is by then


async def decode_block(
    decoder: JsonDecoder, block: RecordBlock, registry: SchemaRegistry, executor: Executor
) -> DecodedBlock:
    """The decoded block, with a schema that holds all of its values that can be held. Without etcd a block that needs a
    wider schema waits for as long as it is not cancelled.

    Raises:
        AccessDenied: the schema couldn't be widened.
    """
    loop = asyncio.get_running_loop()
    schema, cpu_s = registry.current(), 0.0
    for widenings in range(MAX_WIDENINGS + 1):
        final = widenings == MAX_WIDENINGS
        outcome = await loop.run_in_executor(executor, lambda: decoder.decode(block, schema, final=final))  # noqa: B023
        if not isinstance(outcome, Widening):
            outcome.cpu_s += cpu_s
            return outcome
        cpu_s += outcome.cpu_s
        schema = await _widened(registry, outcome.fields)
    raise AssertionError("a final decode gives a block")


async def _widened(registry: SchemaRegistry, fields: Fields) -> SchemaRecord:
    while True:
        try:
            return await registry.widen(fields)
        except EtcdUnavailable:
            await asyncio.sleep(RETRY_S)
