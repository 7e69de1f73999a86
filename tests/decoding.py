"""What the tests of decoding share: blocks made of values, and decoding with the schema widened in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import SchemaRecord
from sluiceway.common.specs.models import JsonFormat, Origin
from sluiceway.worker.batches import DecodedBlock, RecordBlock
from sluiceway.worker.decode import general
from sluiceway.worker.decode.json_records import JsonDecoder, Widening
from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parts import Outcome, join
from sluiceway.worker.decode.restore import restore, same
from sluiceway.worker.decode.schema import Fields, to_text

PARTITION = PartitionId("pipe", "events", 0, 3)
EMPTY = SchemaRecord(version=0, fields={})


def new_decoder(*, max_columns: int = 2000, max_record_bytes: int = 2**24, origin: Origin | None = None) -> JsonDecoder:
    """A decoder with small changes to the defaults."""
    spec = JsonFormat(max_columns=max_columns, max_record_bytes=max_record_bytes)
    return JsonDecoder(PARTITION, spec, origin or Origin())


class GeneralDecoder(JsonDecoder):
    """A decoder that sends every record through the general path: what all others are compared with."""

    def _read(self, values: Sequence[bytes | None], layout: Layout) -> Outcome:
        return join(general.read(values, range(len(values)), layout, self._format.max_record_bytes), layout)


def general_decoder() -> JsonDecoder:
    """A decoder that never takes the fast path."""
    return GeneralDecoder(PARTITION, JsonFormat(), Origin())


def block_of(values: Sequence[bytes | None], start: int = 0) -> RecordBlock:
    """A block of these values with offsets from `start`."""
    count = len(values)
    return RecordBlock(
        offsets=list(range(start, start + count)),
        timestamps_ms=[1000 + index for index in range(count)],
        keys=[None if index % 3 == 2 else b"k%d\xff" % index for index in range(count)],
        values=list(values),
        start_offset=start,
        next_offset=start + count,
        size_bytes=sum(len(value or b"") for value in values),
    )


def schema_of(fields: Fields, version: int = 1) -> SchemaRecord:
    """The schema record of some fields."""
    return SchemaRecord(version=version, fields={name: to_text(kind) for name, kind in fields.items()})


def decode(
    values: Sequence[bytes | None], schema: SchemaRecord = EMPTY, decoder: JsonDecoder | None = None, start: int = 0
) -> tuple[DecodedBlock, SchemaRecord]:
    """The block decoded, with the schema widened as it asks for; and the schema."""
    decoder = decoder or new_decoder()
    while isinstance(outcome := decoder.decode(block_of(values, start), schema), Widening):
        schema = schema_of(outcome.fields, schema.version + 1)
    return outcome, schema


def rows_of(block: DecodedBlock) -> list[dict[str, object]]:
    """The block's rows with their data columns and rescued members only."""
    rows: list[dict[str, object]] = block.table.to_pylist()
    return [restore(row) for row in rows]


def assert_delivered(values: Sequence[bytes | None], block: DecodedBlock, start: int = 0) -> None:
    """Every value is a row that gives it back, or a dead letter with its bytes; each one once and in order."""
    rows = {row["_offset"]: row for row in block.table.to_pylist()}
    dead = {letter.offset: letter for letter in block.dead}
    assert sorted([*rows, *dead]) == list(range(start, start + len(values)))
    assert list(rows) == sorted(rows)
    for offset, value in enumerate(values, start):
        if offset in dead:
            assert dead[offset].value == value
        else:
            source = {} if value is None else json.loads(value)
            assert same(source, restore(rows[offset])), (source, rows[offset])
