"""Builds fetched bytes as a broker lays them out: record batches with offsets, epochs, transactions and markers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

HEADER_SIZE = 61
ATTRIBUTES_AT = 21
CONTROL = 0x20
ABORT, COMMIT = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A record as it was produced."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    timestamp_ms: int = 0
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


def batch(
    records: Sequence[Sample],
    *,
    base: int,
    end: int,
    codec: int = 0,
    producer: int = -1,
    transactional: bool = False,
    attributes: int = 0,
    epoch: int = 0,
    max_timestamp_ms: int | None = None,
) -> bytes:
    """One batch that covers `[base, end)`; the offsets of `records` lie in it, some may be missing."""
    builder = DefaultRecordBatchBuilder(2, codec, int(transactional), producer, 0, 0, 1 << 30)
    for record in records:
        builder.append(record.offset - base, record.timestamp_ms, record.key, record.value, record.headers)
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, base)
    struct.pack_into(">i", raw, 12, epoch)
    (built,) = struct.unpack_from(">h", raw, ATTRIBUTES_AT)
    struct.pack_into(">h", raw, ATTRIBUTES_AT, built | attributes)
    struct.pack_into(">i", raw, 23, end - base - 1)
    if max_timestamp_ms is not None:
        struct.pack_into(">q", raw, 35, max_timestamp_ms)
    return sealed(raw)


def marker(offset: int, *, producer: int, kind: int) -> bytes:
    """A control batch that ends a producer's transaction."""
    key = struct.pack(">hh", 0, kind)
    record = Sample(offset=offset, key=key, value=bytes(6))
    return batch([record], base=offset, end=offset + 1, producer=producer, transactional=True, attributes=CONTROL)


def sealed(raw: bytearray) -> bytes:
    """The batch with a checksum that fits."""
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[ATTRIBUTES_AT:])))
    return bytes(raw)


def repacked(raw: bytes, payload: bytes, *, codec: int | None = None) -> bytes:
    """The batch with other bytes after its header, and a fitting length and checksum."""
    changed = bytearray(raw[:HEADER_SIZE] + payload)
    struct.pack_into(">i", changed, 8, len(changed) - 12)
    if codec is not None:
        changed[ATTRIBUTES_AT + 1] = changed[ATTRIBUTES_AT + 1] & ~7 | codec
    return sealed(changed)
