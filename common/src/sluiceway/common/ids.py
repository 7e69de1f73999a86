"""Names of things, parsed once at the rim.

A partition of a pipeline is the unit of work and of leasing. Its text form `pipeline/topic@epoch/partition` is the tail
of its etcd keys, so no part may hold a slash; pipeline and topic names are checked by the specs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PARTITION = re.compile(r"(?P<pipeline>[^/]+)/(?P<topic>[^/@]+)@(?P<epoch>\d+)/(?P<number>\d+)")


class PartitionId(NamedTuple):
    """One partition of one pipeline: the unit of leasing. Ordered, hashable, cheap."""

    pipeline: str
    topic: str
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.pipeline}/{self.topic}@{self.epoch}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> PartitionId:
        """The inverse of `str`.

        Raises:
            ValueError: the text does not have the form `pipeline/topic@epoch/partition`.
        """
        match = _PARTITION.fullmatch(text)
        if match is None:
            raise ValueError(f"not a partition: {text!r} (expected pipeline/topic@epoch/partition)")
        return cls(match["pipeline"], match["topic"], int(match["epoch"]), int(match["number"]))
