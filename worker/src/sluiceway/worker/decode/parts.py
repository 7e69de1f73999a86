"""Rows that were decoded separately, put together again in the order of their records.

Role: what lets each record take the cheapest way that is sure to be right for it. Neighbours: `fast` and `general` make
parts. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from sluiceway.worker.decode.columns import Misfits, Rescued, rescue
from sluiceway.worker.decode.layout import Layout
from sluiceway.worker.decode.parsing import Rejected
from sluiceway.worker.decode.schema import Fields
from sluiceway.worker.decode.shapes import Rows

Columns = Sequence[pa.Array | pa.ChunkedArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some rows of a block: the data columns, the index of each row's record, and what found no place in the columns.

    All indexes are those of records in the block. `repeated` are members that stand more than once at the top of a
    record; `rejected` says why a record is no row at all.
    """

    arrays: Columns
    indexes: Rows
    misfits: Misfits = field(default_factory=dict)
    repeated: Rescued = field(default_factory=dict)
    rejected: dict[int, Rejected] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A block's rows in order. `kept` are the indexes of their records, `rescued` is by row.

    `wanted` are types for what is rescued now, not merged with the layout's.
    """

    arrays: Columns
    kept: Rows
    rescued: Rescued
    rejected: dict[int, Rejected]
    wanted: Fields


def join(parts: Sequence[Part], layout: Layout) -> Outcome:
    """All the parts' rows together. There must be a part, and each record must be in one of them."""
    kept = np.concatenate([part.indexes for part in parts])
    order = np.argsort(kept, kind="stable")
    arrays = [part.arrays for part in parts if len(part.indexes)] or [parts[0].arrays]
    rescued: Rescued = {index: members for part in parts for index, members in part.repeated.items()}
    wanted = rescue(_together([part.misfits for part in parts if part.misfits]), rescued, layout)
    kept = kept[order]
    rows = np.searchsorted(kept, list(rescued)).tolist()
    return Outcome(
        arrays=arrays[0] if len(arrays) == 1 else [_ordered(columns, order) for columns in zip(*arrays, strict=True)],
        kept=kept,
        rescued=dict(zip(rows, rescued.values(), strict=True)),
        rejected={index: why for part in parts for index, why in part.rejected.items()},
        wanted=wanted,
    )


def _together(all_misfits: Sequence[Misfits]) -> Misfits:
    if len(all_misfits) == 1:
        return all_misfits[0]
    together: Misfits = {}
    for misfits in all_misfits:
        for name, values in misfits.items():
            together.setdefault(name, []).extend(values)
    return together


def _ordered(columns: Sequence[pa.Array | pa.ChunkedArray], order: Rows) -> pa.Array:
    chunks: list[pa.Array] = []
    for column in columns:
        chunks.extend(column.chunks if isinstance(column, pa.ChunkedArray) else [column])
    return pa.concat_arrays(chunks).take(pa.array(order))
