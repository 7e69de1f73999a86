"""Fetched bytes become exactly the committed records, for any layout of batches; corruption never passes unnoticed."""

from __future__ import annotations

from dataclasses import dataclass, field

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from record_batches import ABORT, COMMIT, HEADER_SIZE, Sample, batch, marker, repacked, sealed
from sluiceway.common.errors import SourceUnavailable
from sluiceway.worker.batches import RecordBlock
from sluiceway.worker.fetch.records import RecordReader, extent

maybe_bytes = st.none() | st.binary(max_size=40)
headers = st.lists(st.tuples(st.text(max_size=5), maybe_bytes), max_size=2)
payloads = st.tuples(maybe_bytes, maybe_bytes, st.integers(0, 2**41), headers)


@dataclass
class Log:
    """A partition's log with what a committed reader must see of it."""

    batches: list[tuple[int, bytes]] = field(default_factory=list)  # end offset, bytes
    committed: list[Sample] = field(default_factory=list)
    aborted: list[tuple[int, int, int]] = field(default_factory=list)  # producer, first offset, marker's offset
    end: int = 0

    def fetched_from(self, wanted: int) -> tuple[bytes, list[tuple[int, int]]]:
        """The broker's answer: from the batch that holds the offset, with the aborted transactions that matter."""
        raw = b"".join(raw for end, raw in self.batches if end > wanted)
        return raw, [(producer, first) for producer, first, last in self.aborted if last >= wanted]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log = Log(end=draw(st.sampled_from([0, 1000, 2**40])))
    open_: dict[int, tuple[int, list[Sample]]] = {}
    for _ in range(draw(st.integers(1, 12))):
        producer = draw(st.integers(-1, 2))  # -1: outside of transactions
        if producer in open_ and draw(st.booleans()):
            _end_transaction(log, open_, producer, draw(st.sampled_from([ABORT, COMMIT])))
            continue
        base, records = log.end + draw(st.integers(0, 3)), []
        offset = base
        for key, value, timestamp_ms, extra in draw(st.lists(payloads, max_size=20)):
            offset += draw(st.sampled_from([0, 0, 0, 1, 5]))
            records.append(Sample(offset=offset, key=key, value=value, timestamp_ms=timestamp_ms, headers=extra))
            offset += 1
        log.end = max(base + 1, offset + draw(st.integers(0, 2)))
        codec = draw(st.integers(0, 4))
        raw = batch(
            records, base=base, end=log.end, codec=codec, producer=producer, transactional=producer >= 0, epoch=3
        )
        log.batches.append((log.end, raw))
        if producer < 0:
            log.committed += records
        else:
            open_.setdefault(producer, (base, []))[1].extend(records)
    for producer in list(open_):
        _end_transaction(log, open_, producer, draw(st.sampled_from([ABORT, COMMIT])))
    log.committed.sort(key=lambda record: record.offset)
    return log


def _end_transaction(log: Log, open_: dict[int, tuple[int, list[Sample]]], producer: int, kind: int) -> None:
    first, records = open_.pop(producer)
    log.batches.append((log.end + 1, marker(log.end, producer=producer, kind=kind)))
    if kind == ABORT:
        log.aborted.append((producer, first, log.end))
    else:
        log.committed += records
    log.end += 1


def read_all(reader: RecordReader, max_bytes: int) -> list[RecordBlock]:
    blocks = []
    while (block := reader.next_block(max_bytes)) is not None:
        blocks.append(block)
    return blocks


def samples(blocks: list[RecordBlock]) -> list[Sample]:
    return [
        Sample(
            offset=offset,
            key=block.keys[index],
            value=block.values[index],
            timestamp_ms=block.timestamps_ms[index],
            headers=block.headers.get(index, []),
        )
        for block in blocks
        for index, offset in enumerate(block.offsets)
    ]


@given(log=logs(), start=st.floats(0, 1), max_bytes=st.integers(1, 2000), cut=st.integers(0, 80))
@settings(max_examples=300, deadline=None)
def test_a_reader_yields_exactly_the_committed_records_from_the_wanted_offset(
    log: Log, start: float, max_bytes: int, cut: int
) -> None:
    wanted = int(start * log.end)
    raw, aborted = log.fetched_from(wanted)
    partial = log.batches[-1][1][:cut] if cut < len(log.batches[-1][1]) else b""
    reader = RecordReader(memoryview(raw + partial), wanted=wanted, aborted=aborted)
    blocks = read_all(reader, max_bytes)
    assert samples(blocks) == [record for record in log.committed if record.offset >= wanted]
    assert [block.start_offset for block in blocks] == [wanted, *(block.next_offset for block in blocks[:-1])][
        : len(blocks)
    ]
    assert reader.position == extent(memoryview(raw + partial), wanted).next_offset == max(wanted, log.end)
    for block in blocks:
        held = [*block.keys, *block.values]
        named = [part for several in block.headers.values() for key, value in several for part in (key.encode(), value)]
        assert block.size_bytes == sum(len(part) for part in [*held, *named] if part)


@given(log=logs(), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_corrupt_byte_is_an_error_or_harmless_but_never_loses_or_alters_a_record(
    log: Log, place: float, flip: int
) -> None:
    first = log.batches[0][0]
    raw, aborted = log.fetched_from(0)
    at = int(place * len(raw))
    damaged = bytearray(raw)
    damaged[at] ^= flip
    reader = RecordReader(memoryview(bytes(damaged)), wanted=0, aborted=aborted)
    blocks: list[RecordBlock] = []
    failed = False
    try:
        while (block := reader.next_block(500)) is not None:
            blocks.append(block)
    except SourceUnavailable:
        failed = True
    seen = samples(blocks)
    if _is_checked(raw, at):
        # What comes out is a prefix of the truth, and the position is right behind it: a retry loses nothing.
        assert seen == [record for record in log.committed if record.offset < reader.position]
        assert failed or reader.position in {0, first, *(end for end, _ in log.batches)}
    else:  # base offsets and epochs have no checksum in Kafka's format; the contents still do
        truth = {(record.key, record.value) for record in log.committed}
        assert {(record.key, record.value) for record in seen} <= truth


def _is_checked(raw: bytes, at: int) -> bool:
    """Whether a byte is a batch's length, magic or covered by its checksum."""
    begin = 0
    while True:
        length = int.from_bytes(raw[begin + 8 : begin + 12], "big")
        if at < begin + 12 + length:
            return 8 <= at - begin < 12 or at - begin >= 16
        begin += 12 + length


@given(raw=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    reader = RecordReader(memoryview(raw), wanted=5)
    try:
        assert all(not block.offsets for block in read_all(reader, 100))
    except SourceUnavailable:
        assert reader.position == 5


def test_log_append_time_is_the_batchs_time() -> None:
    records = [Sample(offset=0, value=b"a", timestamp_ms=5), Sample(offset=1, value=b"b", timestamp_ms=7)]
    raw = batch(records, base=0, end=2, attributes=0x08, max_timestamp_ms=99)
    (block,) = read_all(RecordReader(memoryview(raw), wanted=0), 1000)
    assert block.timestamps_ms == [99, 99]


def test_records_before_a_corrupt_batch_come_out_before_the_error() -> None:
    good = batch([Sample(offset=0, value=b"a")], base=0, end=1)
    bad = bytearray(batch([Sample(offset=1, value=b"b" * 50)], base=1, end=2))
    bad[-5] ^= 1
    reader = RecordReader(memoryview(good + bytes(bad)), wanted=0)
    block = reader.next_block(10_000)
    assert block is not None
    assert block.next_offset == 1
    for _ in range(2):
        with pytest.raises(SourceUnavailable, match="offset 1 is corrupt"):
            reader.next_block(10_000)


def test_an_old_message_format_is_refused_by_name() -> None:
    raw = bytearray(batch([Sample(offset=0, value=b"a")], base=0, end=1))
    raw[16] = 1
    with pytest.raises(SourceUnavailable, match="message format 1"):
        RecordReader(memoryview(bytes(raw)), wanted=0).next_block(1)


def test_a_block_stops_near_its_limit_and_goes_on_from_there() -> None:
    records = [Sample(offset=offset, value=b"x" * 100) for offset in range(10_000)]
    reader = RecordReader(memoryview(batch(records, base=0, end=10_000, codec=4)), wanted=0)
    blocks = read_all(reader, 50_000)
    assert max(block.size_bytes for block in blocks) < 60_000
    assert [offset for block in blocks for offset in block.offsets] == list(range(10_000))


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_batch_that_unpacks_to_too_much_is_refused(codec: int) -> None:
    raw = batch([Sample(offset=0, value=bytes(5_000_000))], base=0, end=1, codec=codec)
    assert len(raw) < 300_000
    with pytest.raises(SourceUnavailable, match="unpacks to"):
        RecordReader(memoryview(raw), wanted=0, max_batch_bytes=1_000_000).next_block(1)


@pytest.mark.parametrize("length", [b"\x00\x00\x00\x00", b"\xff\xff\xff\xfc", b"\x7f\xff\xff\xff"])
def test_a_made_up_snappy_block_length_is_refused(length: bytes) -> None:
    raw = batch([Sample(offset=0, value=b"a" * 1000)], base=0, end=1, codec=2)
    packed = bytearray(raw[HEADER_SIZE:])
    packed[16:20] = length
    with pytest.raises(SourceUnavailable, match="Snappy block claims"):
        RecordReader(memoryview(repacked(raw, bytes(packed))), wanted=0).next_block(1)


@pytest.mark.parametrize("codec", [0, 4])
def test_a_header_name_that_is_not_utf8_comes_out_escaped(codec: int) -> None:
    records = [Sample(offset=n, key=b"k", value=b"v", timestamp_ms=n, headers=[("name", b"x")]) for n in range(40)]
    plain = bytearray(batch(records, base=0, end=40))
    at = plain.rindex(b"name")
    plain[at : at + 1] = b"\xff"
    raw = sealed(plain)
    if codec:
        raw = repacked(raw, bytes(cramjam.zstd.compress(raw[HEADER_SIZE:])), codec=4)
    seen = samples(read_all(RecordReader(memoryview(raw), wanted=3), 10**6))
    last = Sample(offset=39, key=b"k", value=b"v", timestamp_ms=39, headers=[("\\xffame", b"x")])
    assert seen == [*records[3:39], last]


def test_records_without_bytes_still_fill_blocks() -> None:
    raw = batch([Sample(offset=n, value=None) for n in range(50_000)], base=0, end=50_000)
    blocks = read_all(RecordReader(memoryview(raw), wanted=0), 100_000)
    assert max(len(block.offsets) for block in blocks) <= 8192
    assert sum(len(block.offsets) for block in blocks) == 50_000


def test_a_block_holds_a_bounded_number_of_records_however_small_they_are() -> None:
    raw = batch([Sample(offset=n, value=b"{}") for n in range(40_000)], base=0, end=40_000)
    blocks = read_all(RecordReader(memoryview(raw), wanted=0), 2**30)
    assert sum(len(block.offsets) for block in blocks) == 40_000
    assert max(len(block.offsets) for block in blocks) <= 16_384 + 128
