"""Where the demo's records come from: the generator, or files of newline-delimited JSON.

Role: turns either into `Stream`s that `pour` sends. Reads files; sends nothing.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from sluiceway.cli.demo.generate import CHUNK, Traffic, events

GENERATED_TOPIC: Final = "security-events"

Chunk = list[tuple[bytes | None, bytes | None, int]]
"""Key, value, timestamp in milliseconds (-1: the time of sending)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Records for one topic, `records` of them. Without keys they are dealt to the partitions in runs of a chunk."""

    topic: str
    records: int
    empty_lines: int = 0
    chunks: Callable[[], Iterator[Chunk]]


def generated(traffic: Traffic) -> Stream:
    """One topic with all kinds of events of all tenants."""
    return Stream(topic=GENERATED_TOPIC, records=traffic.records, chunks=lambda: cast(Iterator[Chunk], events(traffic)))


def files(paths: Sequence[Path]) -> list[Stream]:
    """One stream a file, into the topic named by the file; files of one name share their topic."""
    return [_file(path) for path in paths]


def _file(path: Path) -> Stream:
    records, empty = _count(path)
    return Stream(topic=topic_of(path), records=records, empty_lines=empty, chunks=functools.partial(_chunks, path))


def _count(path: Path) -> tuple[int, int]:
    """How many lines of a file are records, and how many are empty and none."""
    with _open(path) as file:
        empty = records = 0
        for line in file:
            if line == b"\n":
                empty += 1
            else:
                records += 1
    return records, empty


def topic_of(path: Path) -> str:
    """The file's name without endings, with what topics don't allow replaced by dashes."""
    stem = re.sub(r"\.(ndjson|jsonl|json|log|txt)?(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^a-zA-Z0-9._-]+", "-", stem).strip("-._") or "records"


def _chunks(path: Path) -> Iterator[Chunk]:
    """The file's lines, each one's bytes unchanged but for the line end."""
    chunk: Chunk = []
    with _open(path) as file:
        for line in file:
            value = line.removesuffix(b"\n")
            if not value:
                continue
            chunk.append((None, value, -1))
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")
