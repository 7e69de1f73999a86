"""Where objects lie below a sink's url. Pure.

    data/<topic>/e<epoch>-p<partition>/<start>-<cut>[-<n>].parquet      rows, and empty aborted objects
    <dead letters>/<topic>/e<epoch>-p<partition>/<start>-<cut>.parquet  dead letters; `_dead_letters` by default
    _probe/…                                                            short-lived, while a worker starts

`data/**/*.parquet` is every delivered row exactly once. No folder is of the form `name=value`, because engines would
make a column of it that hides a field of the same name. Every attempt has a cut id of its own, so no key is used twice.
"""

from __future__ import annotations

from typing import Final

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.ids import PartitionId
from sluiceway.worker.objects.api import PROBE_FOLDER

DATA_FOLDER: Final = "data"


def data_key(partition: PartitionId, *, start: int, cut: str, number: int = 0) -> str:
    """The key of a cut's data object; `number` counts them where a cut has several."""
    tail = f"-{number}" if number else ""
    return f"{DATA_FOLDER}/{_file(partition, start, cut)}{tail}.parquet"


def dead_letter_key(folder: str, partition: PartitionId, *, start: int, cut: str) -> str:
    """The key of a cut's dead letters."""
    return f"{folder}/{_file(partition, start, cut)}.parquet"


def check_dead_letter_folder(folder: str) -> None:
    """Raises SpecInvalid when dead letters would lie among the data."""
    if folder in (DATA_FOLDER, PROBE_FOLDER):
        raise SpecInvalid(
            [f"dead_letters.prefix: {folder!r} is the sink's own folder; choose another, like _dead_letters"]
        )


def _file(partition: PartitionId, start: int, cut: str) -> str:
    return f"{partition.topic}/e{partition.epoch}-p{partition.number:05d}/{start:020d}-{cut}"
