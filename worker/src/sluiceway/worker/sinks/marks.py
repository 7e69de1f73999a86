"""What every object says about itself, in its metadata and in its Parquet footer. Pure.

Neighbours: `encode` writes marks, `cuts` decides by them, an audit reads them. Only keys that start with the store's
METADATA_PREFIX are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sluiceway.common.records import Cut, CutObject, Range
from sluiceway.worker.objects.api import METADATA_PREFIX

RANGES_IN_METADATA: Final = 1000  # characters; S3 allows 2 KB of metadata in all. The footer always has every range


class State(StrEnum):
    """What an object is: records, or the mark that its records were aborted."""

    DATA = "data"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An object's own account of itself. `ranges` are the offsets it holds, half-open; `rows` may be fewer."""

    state: State
    cut: str
    partition: str
    role: str
    rows: int
    schema_version: int
    token: int
    spec_hash: str
    ranges: tuple[Range, ...] = field(default=())

    @classmethod
    def of(cls, state: State, *, cut: Cut, item: CutObject, partition: str, rows: int, token: int) -> Mark:
        """The mark of one object of a cut. `token` is the writer's: of an aborted object, the recoverer's."""
        return cls(
            state=state,
            cut=cut.id,
            partition=partition,
            role=item.role,
            rows=rows,
            schema_version=cut.schema_version,
            token=token,
            spec_hash=cut.spec_hash,
            ranges=tuple((start, end) for start, end in item.ranges),
        )

    def footer(self) -> dict[str, str]:
        """Every field as text, by its key in the Parquet footer."""
        fields = {
            "state": self.state.value,
            "cut": self.cut,
            "partition": self.partition,
            "role": self.role,
            "rows": str(self.rows),
            "schema-version": str(self.schema_version),
            "token": str(self.token),
            "spec-hash": self.spec_hash,
            "ranges": ",".join(f"{start}-{end}" for start, end in self.ranges),
        }
        return {METADATA_PREFIX + name: value for name, value in fields.items()}

    def metadata(self) -> dict[str, str]:
        """The same for the object's metadata, without `ranges` when they are too many for it."""
        fields = self.footer()
        if len(fields[METADATA_PREFIX + "ranges"]) > RANGES_IN_METADATA:
            del fields[METADATA_PREFIX + "ranges"]
        return fields

    @classmethod
    def parse(cls, pairs: Mapping[str, str]) -> Mark | None:
        """The inverse of `footer` and `metadata`; None for an object that is not ours."""
        try:
            fields = {name.removeprefix(METADATA_PREFIX): value for name, value in pairs.items()}
            ranges = [text.split("-") for text in fields.get("ranges", "").split(",") if text]
            return cls(
                state=State(fields["state"]),
                cut=fields["cut"],
                partition=fields["partition"],
                role=fields["role"],
                rows=int(fields["rows"]),
                schema_version=int(fields["schema-version"]),
                token=int(fields["token"]),
                spec_hash=fields.get("spec-hash", ""),
                ranges=tuple((int(start), int(end)) for start, end in ranges),
            )
        except (KeyError, ValueError):
            return None
