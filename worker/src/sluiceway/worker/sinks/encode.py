"""Parquet bytes of data, of dead letters and of aborted marks. CPU work: run it on a thread.

Neighbours: `shares` gives the records, `marks` the footer. Holds one encoded object at a time; no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from sluiceway.common.ids import PartitionId
from sluiceway.worker.batches import DeadRecord
from sluiceway.worker.sinks.marks import Mark

ROW_GROUP_BYTES: Final = 64 * 2**20  # of Arrow data
ROW_GROUP_ROWS: Final = 512 * 1024
DEAD_RECORDS_A_GROUP: Final = 4096
ZSTD_LEVEL: Final = 1  # on security events level 3 saves 5 % of the bytes

_HEADER = pa.struct([pa.field("name", pa.string()), pa.field("value", pa.binary())])
DEAD_LETTER_SCHEMA: Final = pa.schema(
    [
        pa.field("topic", pa.string()),
        pa.field("epoch", pa.int32()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("timestamp", pa.timestamp("ms", tz="UTC")),
        pa.field("key", pa.binary()),
        pa.field("value", pa.large_binary()),
        pa.field("headers", pa.list_(_HEADER)),
        pa.field("error", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("at", pa.timestamp("ms", tz="UTC")),
    ]
)


def encode_rows(table: pa.Table, mark: Mark, *, compression: str) -> memoryview:
    """One Parquet file of the table's rows."""
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    with _Writer(table.schema, mark, compression) as parquet:
        parquet.write(table, max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // row_bytes)))
    return parquet.bytes()


def encode_dead_letters(
    records: Sequence[DeadRecord], mark: Mark, *, partition: PartitionId, at: float, compression: str
) -> memoryview:
    """One Parquet file of dead letters, their bytes unchanged. `at`: when they were set aside, epoch seconds."""
    with _Writer(DEAD_LETTER_SCHEMA, mark, compression) as parquet:
        for first in range(0, len(records), DEAD_RECORDS_A_GROUP):
            some = records[first : first + DEAD_RECORDS_A_GROUP]
            parquet.write(_dead_letter_table(some, partition, int(at * 1000)), len(some))
    return parquet.bytes()


def encode_aborted(schema: pa.Schema, mark: Mark) -> memoryview:
    """A Parquet file without rows, which says that its key is aborted for ever.

    It has the columns of its neighbours, because engines take the columns of a folder from any one of its files.
    """
    with _Writer(schema, mark, "none") as parquet:
        pass
    return parquet.bytes()


def _dead_letter_table(records: Sequence[DeadRecord], partition: PartitionId, at_ms: int) -> pa.Table:
    count = len(records)
    columns = {
        "topic": [partition.topic] * count,
        "epoch": [partition.epoch] * count,
        "partition": [partition.number] * count,
        "offset": [record.offset for record in records],
        "timestamp": [record.timestamp_ms for record in records],
        "key": [record.key for record in records],
        "value": [record.value for record in records],
        "headers": [[{"name": name, "value": value} for name, value in record.headers] for record in records],
        "error": [record.error for record in records],
        "detail": [record.detail for record in records],
        "at": [at_ms] * count,
    }
    return pa.table(columns, schema=DEAD_LETTER_SCHEMA)


class _Writer:
    """A Parquet writer into memory with the mark in its footer."""

    def __init__(self, schema: pa.Schema, mark: Mark, compression: str) -> None:
        self._buffer = pa.BufferOutputStream()
        self._mark = mark
        self._parquet = pq.ParquetWriter(
            self._buffer,
            schema,
            compression=compression,
            compression_level=ZSTD_LEVEL if compression == "zstd" else None,
            use_dictionary=True,
        )

    def __enter__(self) -> _Writer:
        return self

    def write(self, table: pa.Table, rows_a_group: int) -> None:
        self._parquet.write_table(table, row_group_size=rows_a_group)

    def __exit__(self, *_: object) -> None:
        self._parquet.add_key_value_metadata(self._mark.footer())
        self._parquet.close()

    def bytes(self) -> memoryview:
        return memoryview(self._buffer.getvalue())
