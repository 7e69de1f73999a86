"""Record batches unpacked within a bound, and read tolerantly where the fast decoder can't. Pure.

Not the client library's decompression: that one lets a hostile producer's batch unpack to any size, and a made-up
Snappy block length keep it busy for ever.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import cramjam
import numpy as np

HEADER = struct.Struct(">qiibIhiqqqhii")
_ATTRIBUTES_AT = 21
_ATTRIBUTES = struct.Struct(">h")
_CODEC_MASK = 0x07
_LOG_APPEND_TIME = 0x08
_XERIAL_HEADER = b"\x82SNAPPY\x00"
_XERIAL_HEADER_SIZE = 16
_LIKELY_RATIO = 24  # room that is not used costs nothing: its pages are never touched
_TOO_SMALL = "failed to write whole buffer"


class TooLarge(ValueError):
    """A batch unpacks to more than the bound."""


class _IntoBuffer(Protocol):
    def decompress_into(self, packed: memoryview, into: memoryview) -> int: ...


def unpacked(batch: memoryview, *, max_bytes: int) -> memoryview:
    """The batch without compression: its header, marked so, and plain records; the same object when it has none.

    Raises:
        TooLarge: the records have more than `max_bytes`.
        Exception: whatever a codec raises at broken input.
    """
    attributes = _ATTRIBUTES.unpack_from(batch, _ATTRIBUTES_AT)[0]
    packed = batch[HEADER.size :]
    match attributes & _CODEC_MASK:
        case 0:
            return batch
        case 1:
            plain = _gunzipped(packed, max_bytes)
        case 2:
            plain = _unsnapped(packed, max_bytes)
        case 3:
            plain = _unpacked_into(cramjam.lz4, packed, max_bytes)
        case 4:
            plain = _unpacked_into(cramjam.zstd, packed, max_bytes)
        case codec:
            raise ValueError(f"compression codec {codec} does not exist")
    plain[: HEADER.size] = batch[: HEADER.size]
    _ATTRIBUTES.pack_into(plain, _ATTRIBUTES_AT, attributes & ~_CODEC_MASK)
    return plain


def _room(size: int) -> memoryview:
    """Room for a header and records, not zeroed: filling it twice would cost as much as unpacking."""
    return np.empty(HEADER.size + size, np.uint8).data


def _unpacked_into(codec: _IntoBuffer, packed: memoryview, max_bytes: int) -> memoryview:
    size = max(4096, _LIKELY_RATIO * len(packed))
    while True:
        plain = _room(min(size, max_bytes))
        try:
            written = codec.decompress_into(packed, plain[HEADER.size :])
        except cramjam.DecompressionError as error:
            if _TOO_SMALL not in str(error):
                raise
            if size >= max_bytes:
                raise TooLarge(f"it unpacks to more than {max_bytes} bytes") from error
            size *= 8
            continue
        return plain[: HEADER.size + written]


def _gunzipped(packed: memoryview, max_bytes: int) -> memoryview:
    plain = bytearray(HEADER.size)
    rest: bytes | memoryview = packed
    while len(rest):  # a gzip stream may have several members
        member = zlib.decompressobj(31)
        plain += member.decompress(rest, max_bytes + HEADER.size + 1 - len(plain))
        if len(plain) > max_bytes + HEADER.size:
            raise TooLarge(f"it unpacks to more than {max_bytes} bytes")
        if not member.eof:
            raise ValueError("the gzip stream ends early")
        rest = member.unused_data
    return memoryview(plain)


def _unsnapped(packed: memoryview, max_bytes: int) -> memoryview:
    blocks = [packed]
    if len(packed) > _XERIAL_HEADER_SIZE and packed[: len(_XERIAL_HEADER)] == _XERIAL_HEADER:
        blocks = list(_xerial_blocks(packed))
    sizes = [cramjam.snappy.decompress_raw_len(block) for block in blocks]
    if sum(sizes) > max_bytes:
        raise TooLarge(f"it unpacks to {sum(sizes)} bytes, more than {max_bytes}")
    plain = _room(sum(sizes))
    at = HEADER.size
    for block, size in zip(blocks, sizes, strict=True):
        if size:
            cramjam.snappy.decompress_raw_into(block, plain[at : at + size])
        at += size
    return plain


def _xerial_blocks(packed: memoryview) -> Iterator[memoryview]:
    at = _XERIAL_HEADER_SIZE
    while at < len(packed):
        size = int.from_bytes(packed[at : at + 4], "big")
        if size == 0 or at + 4 + size > len(packed):
            raise ValueError(f"a Snappy block claims {size} bytes")
        yield packed[at + 4 : at + 4 + size]
        at += 4 + size


class PlainRecord(NamedTuple):
    """A record as read here."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def tolerant_records(batch: memoryview) -> Iterator[PlainRecord]:
    """The records of an uncompressed batch, slowly; bytes of a header's name that are not UTF-8 come out escaped.

    The fast decoder refuses a whole batch for one such name, and a partition must not stand still for that.

    Raises:
        ValueError, IndexError: the records are malformed.
    """
    base, _, _, _, _, attributes, _, first_ms, max_ms, _, _, _, count = HEADER.unpack_from(batch)
    fields = _Fields(batch)
    for _ in range(count):
        fields.varint()  # length
        fields.raw(1)  # attributes
        timestamp = first_ms + fields.varint()
        offset = base + fields.varint()
        key, value = fields.nullable(), fields.nullable()
        headers = [(_name(fields.nullable()), fields.nullable()) for _ in range(fields.varint())]
        yield PlainRecord(offset, max_ms if attributes & _LOG_APPEND_TIME else timestamp, key, value, headers)
    if fields.at != len(batch):
        raise ValueError(f"{len(batch) - fields.at} bytes are left after the last record")


def _name(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "backslashreplace")


class _Fields:
    """Reads the fields of records one after the other."""

    __slots__ = ("_batch", "at")

    def __init__(self, batch: memoryview) -> None:
        self._batch = batch
        self.at = HEADER.size

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._batch[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
            if shift > 63:
                raise ValueError("a variable-length integer has more than ten bytes")

    def raw(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self._batch):
            raise ValueError(f"a field claims {length} bytes")
        taken = bytes(self._batch[self.at : end])
        self.at = end
        return taken

    def nullable(self) -> bytes | None:
        length = self.varint()
        return self.raw(length) if length >= 0 else None
