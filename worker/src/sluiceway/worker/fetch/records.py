"""Fetched bytes of one partition become blocks of records. Pure.

Only committed records of the current message format (magic 2) come out. Nothing is ever skipped silently: what can't be
read raises, after all records before it were handed out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple, Protocol

from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch

from sluiceway.common.errors import SourceUnavailable
from sluiceway.worker.batches import RecordBlock
from sluiceway.worker.fetch.unpack import HEADER, tolerant_records, unpacked

_LENGTH_AT = 8
_BEFORE_LENGTH = 12  # base offset and the length itself, which the length does not count
_MAGIC_AT = 16
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
_FIRST_CHUNK = 16  # records; what they measure sizes the next chunk
_LARGEST_CHUNK = 128  # fewer than what lets the garbage collector run while they are turned into columns
_MOST_RECORDS = 16_384  # in a block: under a schema of 2,000 columns even empty ones take 10 kB of Arrow each
_RECORD_OVERHEAD_BYTES = 32  # so that many empty records also fill a block


class _Record(Protocol):
    """A record as the client library's decoder gives it."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> list[tuple[str, bytes | None]]: ...


class Extent(NamedTuple):
    """What whole batches there are in fetched bytes: where a fetch goes on, and the last batch's leader epoch."""

    next_offset: int
    leader_epoch: int
    whole_bytes: int


def extent(raw: memoryview, offset: int) -> Extent:
    """Looks at the headers only. A partial batch at the end does not count."""
    at, next_offset, leader_epoch = 0, offset, -1
    while (end := _batch_end(raw, at)) is not None:
        base_offset, _, leader_epoch, _, _, _, last_delta, *_ = HEADER.unpack_from(raw, at)
        next_offset = max(next_offset, base_offset + last_delta + 1)
        at = end
    return Extent(next_offset, leader_epoch, at)


def _batch_end(raw: memoryview, at: int) -> int | None:
    """Where the whole batch that starts at `at` ends; None when there is none or its length makes no sense."""
    if len(raw) - at < HEADER.size:
        return None
    length: int = struct.unpack_from(">i", raw, at + _LENGTH_AT)[0]
    end = at + _BEFORE_LENGTH + length
    return end if at + HEADER.size <= end <= len(raw) else None


@dataclass(slots=True, kw_only=True)
class _Batch:
    """The batch that is being read."""

    view: memoryview  # unpacked
    records: Iterator[_Record]
    next_offset: int
    chunk: int


class RecordReader:
    """Cuts the fetched bytes of one partition into blocks, decoding only as far as asked."""

    def __init__(
        self,
        raw: memoryview,
        *,
        wanted: int,
        aborted: Sequence[tuple[int, int]] = (),
        max_batch_bytes: int = 128 * 2**20,
    ) -> None:
        """`aborted` are the response's aborted transactions: producer id and first offset.

        A batch that unpacks to more than `max_batch_bytes` is refused.
        """
        self._raw = raw
        self._max_batch_bytes = max_batch_bytes
        self._at = 0
        self._aborted = sorted(aborted, key=lambda transaction: transaction[1], reverse=True)
        self._aborting: set[int] = set()
        self._batch: _Batch | None = None
        self._failure: SourceUnavailable | None = None
        self._record_bytes = 0.0  # mean size of the records of the batch that is being read
        self.position = wanted

    @property
    def unread_bytes(self) -> int:
        """Fetched bytes whose decoding has not begun."""
        return len(self._raw) - self._at

    def next_block(self, max_bytes: int) -> RecordBlock | None:
        """The next records, about `max_bytes` of them (always at least one); None when all are read.

        A block may be empty when only aborted or control batches are left: it then moves the position.

        Raises:
            SourceUnavailable: a batch is corrupt or of an unknown format; the position is before it.
        """
        block = RecordBlock(
            offsets=[],
            timestamps_ms=[],
            keys=[],
            values=[],
            start_offset=self.position,
            next_offset=self.position,
            size_bytes=0,
        )
        try:
            self._fill(block, max_bytes)
        except SourceUnavailable as failure:
            self._failure = failure
        block.next_offset = self.position
        if block.next_offset > block.start_offset:
            return block
        if self._failure is not None:
            raise self._failure
        return None

    def _fill(self, block: RecordBlock, max_bytes: int) -> None:
        while (room := max_bytes - _weight(block)) > 0 and len(block.offsets) < _MOST_RECORDS and self._failure is None:
            if self._batch is None and not self._open_batch():
                return
            assert self._batch is not None
            chunk = self._read_chunk(self._batch, room)
            if chunk:
                self._append(block, chunk)
            else:
                self.position = max(self.position, self._batch.next_offset)
                self._batch = None

    def _read_chunk(self, batch: _Batch, room_bytes: int) -> list[_Record]:
        """Some records of the batch; none at its end."""
        size = batch.chunk
        if self._record_bytes:
            size = max(1, min(_LARGEST_CHUNK, int(room_bytes / self._record_bytes)))
        try:
            return list(islice(batch.records, size))
        except UnicodeDecodeError:
            batch.records = tolerant_records(batch.view)
            return self._read_chunk(batch, room_bytes)
        except Exception as error:  # decoders of four codecs raise as they please; all of it means the same
            raise _corrupt(self.position, f"{type(error).__name__}: {error}") from error

    def _append(self, block: RecordBlock, chunk: list[_Record]) -> None:
        if chunk[0].offset < self.position:
            chunk = [record for record in chunk if record.offset >= self.position]
            if not chunk:
                return
        keys = [record.key for record in chunk]
        values = [record.value for record in chunk]
        size = sum(map(len, filter(None, keys))) + sum(map(len, filter(None, values)))
        at = len(block.offsets)
        for index, headers in enumerate([record.headers for record in chunk], at):
            if headers:
                block.headers[index] = headers
                size += sum(len(key.encode()) + len(value or b"") for key, value in headers)
        block.offsets += [record.offset for record in chunk]
        block.timestamps_ms += [record.timestamp for record in chunk]
        block.keys += keys
        block.values += values
        block.size_bytes += size
        self._record_bytes = size / len(chunk) + _RECORD_OVERHEAD_BYTES
        self.position = block.offsets[-1] + 1

    def _open_batch(self) -> bool:
        """Goes to the next batch that has records for us; False at the end of the whole batches."""
        while (end := _batch_end(self._raw, self._at)) is not None:
            view = self._raw[self._at : end]
            base, _, _, magic, _, attributes, last_delta, _, _, producer, _, _, count = HEADER.unpack_from(view)
            next_offset = base + last_delta + 1
            batch = _checked(view, magic=magic, at=self.position)
            if last_delta < 0 or count < 0 or next_offset < self.position - last_delta:
                raise _corrupt(self.position, f"a batch claims the offsets {base} to {next_offset - 1}")
            is_empty = count == 0 or next_offset <= self.position  # compaction leaves batches without records
            if is_empty or not self._is_wanted(batch, attributes, producer, next_offset):
                self.position = max(self.position, next_offset)
                self._at = end
                continue
            chunk = max(1, min(_FIRST_CHUNK, _FIRST_CHUNK * 4096 * count // len(view)))
            self._record_bytes = 0.0
            plain = self._unpacked(view)
            records = chain(batch if plain is view else DefaultRecordBatch(plain))
            self._batch = _Batch(view=plain, records=records, next_offset=next_offset, chunk=chunk)
            self._at = end
            return True
        return False

    def _unpacked(self, view: memoryview) -> memoryview:
        try:
            return unpacked(view, max_bytes=self._max_batch_bytes)
        except Exception as error:  # as in _read_chunk
            raise _corrupt(self.position, f"{type(error).__name__}: {error}") from error

    def _is_wanted(self, batch: DefaultRecordBatch, attributes: int, producer: int, next_offset: int) -> bool:
        """Whether a batch holds committed records; follows the transactions of its producer."""
        while self._aborted and self._aborted[-1][1] < next_offset:
            self._aborting.add(self._aborted.pop()[0])
        if attributes & _CONTROL:
            if _is_abort_marker(batch, self.position):
                self._aborting.discard(producer)
            return False
        return not (attributes & _TRANSACTIONAL and producer in self._aborting)


def _weight(block: RecordBlock) -> int:
    return block.size_bytes + _RECORD_OVERHEAD_BYTES * len(block.offsets)


def _checked(view: memoryview, *, magic: int, at: int) -> DefaultRecordBatch:
    if magic != 2:
        raise SourceUnavailable(
            f"a batch near offset {at} has message format {magic}; only format 2 (Kafka 0.11 and newer) can be read"
        )
    batch = DefaultRecordBatch(view)
    if not batch.validate_crc():
        raise _corrupt(at, "its checksum does not match")
    return batch


def _is_abort_marker(batch: DefaultRecordBatch, at: int) -> bool:
    try:
        record = next(iter(batch))
        return bool(ControlRecord.parse(record.key) == ABORT_MARKER)
    except Exception as error:
        raise _corrupt(at, f"a control batch can't be read: {type(error).__name__}: {error}") from error


def _corrupt(offset: int, detail: str) -> SourceUnavailable:
    return SourceUnavailable(f"the record batch at offset {offset} is corrupt: {detail}")
