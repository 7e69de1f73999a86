"""JSON records to Arrow: one decoder for each partition.

Role: takes one fetched block at a time and gives a table, dead letters, or the wish for a wider schema. Neighbours:
`fast` takes the records that it surely reads right and `general` the others, with the same rows wherever both apply;
`parts` joins them; `blocks` runs it on threads and advances the schema. Must not do I/O: the schema comes as an
argument and the wish goes out as a value.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import SchemaRecord
from sluiceway.common.specs.models import JsonFormat, Origin
from sluiceway.worker.batches import DeadRecord, DecodedBlock, RecordBlock
from sluiceway.worker.decode import fast, general
from sluiceway.worker.decode.columns import rescued_column
from sluiceway.worker.decode.layout import Layout, layout_of, table_of
from sluiceway.worker.decode.origin import origin_columns, reserved_names
from sluiceway.worker.decode.parsing import Rejected
from sluiceway.worker.decode.parts import Outcome, join
from sluiceway.worker.decode.schema import RESCUED, Fields, Limits, merge_fields

MAX_REST: Final = 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Widening:
    """The block needs a wider schema than it was decoded with: `fields` is that schema, merged already."""

    fields: Fields
    cpu_s: float


class JsonDecoder:
    """Decodes the blocks of one partition. `decode` may run on any thread, one call at a time.

    Its only state is what the last blocks were like: which path is tried first never changes a result.
    """

    def __init__(self, partition: PartitionId, format: JsonFormat, origin: Origin) -> None:  # noqa: A002
        self._partition, self._format, self._origin = partition, format, origin
        self.limits = limits_of(format, origin)
        self._tidy = False  # whether the fast path took all of the last block
        self._rest = self._resting = 0  # blocks for which the fast path is left out, after it gave up

    def decode(self, block: RecordBlock, schema: SchemaRecord, *, final: bool = False) -> DecodedBlock | Widening:
        """The block as a table of this schema, or, unless `final`, the wider schema that it asks for.

        Every record becomes a row or a dead letter. With `final`, values without a place are rescued.
        """
        started = time.thread_time()
        layout = layout_of(tuple(schema.fields.items()), self.limits)
        outcome = self._read(block.values, layout)
        wider = merge_fields(layout.fields, {} if final else outcome.wanted, self.limits)
        if wider != layout.fields:
            return Widening(fields=wider, cpu_s=time.thread_time() - started)
        kept = outcome.kept.tolist() if outcome.rejected else None
        return DecodedBlock(
            partition=self._partition,
            start_offset=block.start_offset,
            next_offset=block.next_offset,
            table=table_of(
                layout,
                outcome.arrays,
                rescued_column(outcome.rescued, len(outcome.kept)),
                origin_columns(self._partition, self._origin, block, kept),
            ),
            dead=[_dead(block, index, why) for index, why in sorted(outcome.rejected.items())],
            schema_version=schema.version,
            rescued=len(outcome.rescued),
            size_bytes=block.size_bytes,
            cpu_s=time.thread_time() - started,
        )

    def _read(self, values: Sequence[bytes | None], layout: Layout) -> Outcome:
        found = self._try_fast(values, layout)
        parts = [] if found.part is None else [found.part]
        if found.others or not parts:
            parts += general.read(values, found.others, layout, self._format.max_record_bytes)
        return join(parts, layout)

    def _try_fast(self, values: Sequence[bytes | None], layout: Layout) -> fast.Reading:
        if self._resting:
            self._resting -= 1
            return fast.Reading(None, range(len(values)))
        found = fast.read(values, layout, self._format.max_record_bytes, whole=self._tidy)
        self._tidy = not found.others
        self._rest = min(2 * self._rest + 1, MAX_REST) if found.gave_up else 0
        self._resting = self._rest
        return found


def limits_of(format: JsonFormat, origin: Origin) -> Limits:  # noqa: A002
    """How far the schema of a pipeline may widen, and which names its data can't have."""
    return Limits(max_columns=format.max_columns, reserved=reserved_names(origin) | {RESCUED})


def _dead(block: RecordBlock, index: int, why: Rejected) -> DeadRecord:
    return DeadRecord(
        offset=block.offsets[index],
        timestamp_ms=block.timestamps_ms[index],
        key=block.keys[index],
        value=block.values[index],
        headers=block.headers.get(index, []),
        error=why.code,
        detail=why.detail,
    )
