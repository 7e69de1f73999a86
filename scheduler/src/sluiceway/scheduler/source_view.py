"""What the Kafka clusters show, as plain values: the observer (`sources`) writes them, deciding modules read them.

Must not import a client library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicView:
    """One topic as last seen on its cluster.

    `partitions` is None until the cluster answered once; a later `problem` keeps the last known number.
    `log_ends` has one offset a partition, -1 where not known; `seen_at_s` is the observer's monotonic time of it.
    """

    partitions: int | None = None
    log_ends: tuple[int, ...] = ()
    seen_at_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """All topics by the name of their spec. `version` rises when a partition count or a problem changes."""

    topics: Mapping[str, TopicView] = field(default_factory=dict)
    version: int = 0
