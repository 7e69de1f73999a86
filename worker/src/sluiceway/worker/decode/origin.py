"""The origin columns: where each row comes from, so that any row leads back to its record.

Types: `_topic` dictionary of strings, `_epoch` and `_partition` int32, `_offset` int64, `_timestamp` milliseconds
in UTC, `_key` binary. The key is binary whatever it holds: keys are bytes in Kafka, one type for all files matters more
than looks, and readers show printable bytes as text anyway (in SQL: `decode(_key)`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sluiceway.common.ids import PartitionId
from sluiceway.common.specs.models import Origin
from sluiceway.worker.batches import RecordBlock

TIMESTAMP = pa.timestamp("ms", tz="UTC")


def reserved_names(origin: Origin) -> frozenset[str]:
    """The origin columns' names in lower case: fields of the data can't have them."""
    return frozenset(name.lower() for name in origin.model_dump().values() if name)


def origin_columns(
    partition: PartitionId, origin: Origin, block: RecordBlock, kept: Sequence[int] | None
) -> dict[str, pa.Array]:
    """The columns by name for the records at `kept` indexes, or for all of them; an empty name leaves one out."""
    offsets, stamps, keys = block.offsets, block.timestamps_ms, block.keys
    if kept is not None:
        offsets, stamps = [offsets[index] for index in kept], [stamps[index] for index in kept]
        keys = [keys[index] for index in kept]
    rows = len(offsets)
    columns = {
        origin.topic: _constant_text(partition.topic, rows),
        origin.epoch: pa.array(np.full(rows, partition.epoch, np.int32)),
        origin.partition: pa.array(np.full(rows, partition.number, np.int32)),
        origin.offset: _offsets(offsets),
        origin.timestamp: pa.array(stamps, pa.int64()).view(TIMESTAMP),
        origin.key: pa.array(keys, pa.binary()),
    }
    return {name: column for name, column in columns.items() if name}


def _offsets(offsets: list[int]) -> pa.Array:
    if offsets and offsets[-1] - offsets[0] == len(offsets) - 1:  # they only ascend, so there are no gaps
        return pa.array(np.arange(offsets[0], offsets[-1] + 1, dtype=np.int64))
    return pa.array(offsets, pa.int64())


def _constant_text(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text], pa.string()))
