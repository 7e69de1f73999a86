"""What lies in the sink: which offsets every Parquet file holds, and the rows behind them.

Role: the sink's half of the verification. It reads a plain listing of a folder and trusts no journal, footer or
progress.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Offsets = npt.NDArray[np.int64]

_SLICE_ROWS: Final = 500


class Source(NamedTuple):
    """A partition of a physical topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: Path
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    key: bytes | None
    value: bytes | None
    error: str


@dataclass(slots=True)
class SinkIndex:
    """Offsets by partition, with repetitions; `dead` by partition and offset."""

    offsets: dict[Source, list[Offsets]] = field(default_factory=lambda: defaultdict(list))
    dead_offsets: dict[Source, list[int]] = field(default_factory=lambda: defaultdict(list))
    dead: dict[tuple[Source, int], DeadLetter] = field(default_factory=dict)
    files_of: dict[Source, list[_File]] = field(default_factory=lambda: defaultdict(list))
    files: int = 0
    empty_files: int = 0
    rescued: int = 0
    file_bytes: int = 0

    def rows(self, source: Source) -> Rows:
        """A reader of the partition's rows, for offsets that rise."""
        return Rows(source, sorted(self.files_of[source], key=lambda file: file.first))


def index_sink(data: Iterable[Path], dead_letters: Iterable[Path]) -> SinkIndex:
    """Reads the origin columns of all data files, and all dead letters."""
    index = SinkIndex()
    for path in sorted(data):
        _index_data(index, path)
    for path in sorted(dead_letters):
        _index_dead_letters(index, path)
    return index


def _index_data(index: SinkIndex, path: Path) -> None:
    index.file_bytes += path.stat().st_size
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            index.empty_files += 1
            return
        table = file.read(columns=["_topic", "_partition", "_offset", "_rescued"])
    index.files += 1
    index.rescued += table.num_rows - table["_rescued"].null_count
    for source, own in _by_source(table, "_topic", "_partition"):
        offsets = own["_offset"].to_numpy()
        index.offsets[source].append(offsets)
        index.files_of[source].append(_File(path=path, first=int(offsets.min()), last=int(offsets.max())))


def _index_dead_letters(index: SinkIndex, path: Path) -> None:
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            index.empty_files += 1
            return
        table = file.read(columns=["topic", "partition", "offset", "key", "value", "error"])
    index.files += 1
    for row in table.to_pylist():
        source = Source(row["topic"], row["partition"])
        index.dead_offsets[source].append(row["offset"])
        index.dead[source, row["offset"]] = DeadLetter(key=row["key"], value=row["value"], error=row["error"])


def _by_source(table: pa.Table, topic: str, partition: str) -> list[tuple[Source, pa.Table]]:
    pairs = table.group_by([topic, partition]).aggregate([]).to_pylist()
    sources = [Source(pair[topic], pair[partition]) for pair in pairs]
    if len(sources) == 1:
        return [(sources[0], table)]
    return [(source, table.filter(_belongs(table, source))) for source in sources]


def _belongs(table: pa.Table, source: Source) -> pa.Array:
    return pc.and_(pc.equal(table["_topic"], source.topic), pc.equal(table["_partition"], source.partition))


class Rows:
    """Rows of one partition by offset; holds only the files whose range has been reached and not passed."""

    def __init__(self, source: Source, files: list[_File]) -> None:
        self._source = source
        self._waiting = files[::-1]
        self._open: list[_OpenFile] = []

    def find(self, offset: int) -> dict[str, Any] | None:
        """The row of an offset not smaller than any asked for before."""
        while self._waiting and self._waiting[-1].first <= offset:
            self._open.append(_OpenFile(self._waiting.pop(), self._source))
        self._open = [file for file in self._open if file.last >= offset]
        for file in self._open:
            if (row := file.find(offset)) is not None:
                return row
        return None


class _OpenFile:
    def __init__(self, file: _File, source: Source) -> None:
        self.last = file.last
        with pq.ParquetFile(file.path) as parquet:
            table = parquet.read()
        self._table = table.filter(_belongs(table, source)).sort_by("_offset")
        self._offsets: Offsets = self._table["_offset"].to_numpy()
        self._slice, self._rows = -1, list[dict[str, Any]]()

    def find(self, offset: int) -> dict[str, Any] | None:
        place = int(np.searchsorted(self._offsets, offset))
        if place == len(self._offsets) or self._offsets[place] != offset:
            return None
        number, within = divmod(place, _SLICE_ROWS)
        if number != self._slice:
            some = self._table.slice(number * _SLICE_ROWS, _SLICE_ROWS)
            # Of hundreds of columns most are null in a few hundred rows, and nulls are no values.
            used = [name for name in some.column_names if some[name].null_count < some.num_rows]
            self._slice, self._rows = number, some.select(used).to_pylist()
        return self._rows[within]
