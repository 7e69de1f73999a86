"""Parquet bytes of data, of dead letters and of aborted marks. CPU work: run it on a thread.

Neighbours: `shares` gives the records, `marks` the footer. Holds one encoded object at a time; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sluiceway.common.ids import PartitionId
from sluiceway.worker.batches import DeadRecord
from sluiceway.worker.sinks.marks import Mark

ROW_GROUP_BYTES: Final = 64 * 2**20  # of Arrow data
ROW_GROUP_ROWS: Final = 512 * 1024
DEAD_RECORDS_A_GROUP: Final = 4096
LARGE_VALUE_BYTES: Final = 2**20
DICTIONARY_BYTES: Final = 64 * 2**10  # larger ones are of values that hardly repeat: they cost time and bytes
ZSTD_LEVEL: Final = 1  # on security events level 3 saves 5 % of the bytes
LONG_VALUE_BYTES: Final = 4096  # Parquet keeps no minimum and maximum above this
RETURNED_BYTES: Final = 4 * 2**20  # after more, Arrow's spare memory goes back to the system

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
_SHORT_DEAD_LETTER_COLUMNS: Final = [
    name for name in DEAD_LETTER_SCHEMA.names if name not in ("key", "value", "headers", "detail")
]


def encode_rows(table: pa.Table, mark: Mark, *, compression: str, ascending: Sequence[str] = ()) -> memoryview:
    """One Parquet file of the table's rows. `ascending` are columns of integers or times that hardly ever descend."""
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    with _Writer(table.schema, mark, compression, short=_short_columns(table), ascending=ascending) as parquet:
        parquet.write(table, max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // row_bytes)))
    _return_spare(table.nbytes)
    return parquet.bytes()


def encode_dead_letters(
    records: Sequence[DeadRecord], mark: Mark, *, partition: PartitionId, at: float, compression: str
) -> memoryview:
    """One Parquet file of dead letters, their bytes unchanged. `at`: when they were set aside, epoch seconds."""
    with _Writer(DEAD_LETTER_SCHEMA, mark, compression, short=_SHORT_DEAD_LETTER_COLUMNS) as parquet:
        for some in _groups(records):
            parquet.write(_dead_letter_table(some, partition, int(at * 1000)), len(some))
    _return_spare(sum(len(record.value or b"") for record in records))
    return parquet.bytes()


def encode_aborted(schema: pa.Schema, mark: Mark) -> memoryview:
    """A Parquet file without rows, which says that its key is aborted for ever.

    It has the columns of its neighbours, because engines take the columns of a folder from any one of its files.
    """
    with _Writer(schema, mark, "none") as parquet:
        pass
    return parquet.bytes()


def _groups(records: Sequence[DeadRecord]) -> Iterator[Sequence[DeadRecord]]:
    """Row groups; a large record is alone in its own, where its value need not be copied."""
    first = 0
    for index, record in enumerate(records):
        is_large = len(record.value or b"") >= LARGE_VALUE_BYTES
        if first < index and (is_large or index - first == DEAD_RECORDS_A_GROUP):
            yield records[first:index]
            first = index
        if is_large:
            yield records[index : index + 1]
            first = index + 1
    if first < len(records):
        yield records[first:]


def _values(records: Sequence[DeadRecord]) -> pa.Array:
    if len(records) > 1 or (value := records[0].value) is None:
        return pa.array([record.value for record in records], pa.large_binary())
    ends = pa.array([0, len(value)], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(value)])


def _dead_letter_table(records: Sequence[DeadRecord], partition: PartitionId, at_ms: int) -> pa.Table:
    count = len(records)
    columns = {
        "topic": [partition.topic] * count,
        "epoch": [partition.epoch] * count,
        "partition": [partition.number] * count,
        "offset": [record.offset for record in records],
        "timestamp": [record.timestamp_ms for record in records],
        "key": [record.key for record in records],
        "value": _values(records),
        "headers": [[{"name": name, "value": value} for name, value in record.headers] for record in records],
        "error": [record.error for record in records],
        "detail": [record.detail for record in records],
        "at": [at_ms] * count,
    }
    return pa.table(columns, schema=DEAD_LETTER_SCHEMA)


def _short_columns(table: pa.Table) -> list[str] | bool:
    """True: all of them."""
    long = {name for name, column in zip(table.column_names, table.columns, strict=True) if _is_long(column)}
    return [name for name in table.column_names if name not in long] if long else True


def _is_long(column: pa.ChunkedArray) -> bool:
    """Whether a column of text or bytes has a long value."""
    if column.nbytes <= LONG_VALUE_BYTES or not (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
        return False
    longest = pc.max(pc.binary_length(column)).as_py()
    return longest is not None and longest > LONG_VALUE_BYTES


def _return_spare(encoded_bytes: int) -> None:
    """Arrow keeps what it has freed, which nobody else can use: too much after an object of this size."""
    if encoded_bytes > RETURNED_BYTES:
        pa.default_memory_pool().release_unused()


def _leaves(field: pa.Field, above: str = "") -> Iterator[str]:
    """The names that Parquet gives to what a column is made of."""
    path = f"{above}{field.name}"
    if pa.types.is_struct(field.type):
        for part in field.type:
            yield from _leaves(part, f"{path}.")
    elif pa.types.is_list(field.type):
        yield from _leaves(field.type.value_field.with_name("element"), f"{path}.list.")
    else:
        yield path


class _Writer:
    """A Parquet writer into memory with the mark in its footer.

    Only the `short` columns get dictionaries and statistics: for a value of many megabytes both take several copies of
    it and are then left out of the file.
    """

    def __init__(
        self,
        schema: pa.Schema,
        mark: Mark,
        compression: str,
        *,
        short: list[str] | bool = True,
        ascending: Sequence[str] = (),
    ) -> None:
        fields = [field for field in schema if short is True or (short and field.name in short)]
        self._buffer = pa.BufferOutputStream()
        self._mark = mark
        self._parquet = pq.ParquetWriter(
            self._buffer,
            schema,
            compression=compression,
            compression_level=ZSTD_LEVEL if compression == "zstd" else None,
            use_dictionary=[path for field in fields if field.name not in ascending for path in _leaves(field)],
            dictionary_pagesize_limit=DICTIONARY_BYTES,
            column_encoding={name: "DELTA_BINARY_PACKED" for name in ascending if name in schema.names},
            write_statistics=[path for field in fields for path in _leaves(field)],
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
