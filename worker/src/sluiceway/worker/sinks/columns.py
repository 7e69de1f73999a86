"""The columns of a pipeline's files: blocks of several schema versions become one table of the newest.

Neighbours: `decode` owns schemas and values; the Parquet sink asks here, so that it knows of neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from sluiceway.worker.batches import DecodedBlock, RecordBlock
from sluiceway.worker.decode.json_records import JsonDecoder
from sluiceway.worker.decode.registry import SchemaRegistry
from sluiceway.worker.decode.unify import unify

NULL_BYTES: Final = 5
_NO_RECORDS: Final = RecordBlock(
    offsets=[], timestamps_ms=[], keys=[], values=[], start_offset=0, next_offset=0, size_bytes=0
)


class InferredColumns:
    """The columns of one topic's inferred schema, as far as this process has seen it widen."""

    def __init__(self, decoder: JsonDecoder, registry: SchemaRegistry) -> None:
        self._decoder, self._registry = decoder, registry

    def unify(self, tables: Sequence[pa.Table]) -> pa.Table:
        """One table of all rows. CPU work: run it on a thread."""
        return unify(tables, self._registry.current(), self._decoder.limits)

    def row_bytes(self) -> int:
        """What a row takes at least in memory: a null needs an offset and a bit in each column."""
        return NULL_BYTES * len(self._registry.current().fields)

    async def newest(self) -> pa.Schema:
        """The columns that a file written now would have.

        Raises:
            EtcdUnavailable, AccessDenied: the schema can't be read.
        """
        block = self._decoder.decode(_NO_RECORDS, await self._registry.refresh(), final=True)
        assert isinstance(block, DecodedBlock)
        return block.table.schema
