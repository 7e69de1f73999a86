"""Reads spec files: paths, folders (every .yaml and .yml below, sorted) and `-` for standard input.

Bytes in, bytes out: `documents` gives them meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.specs.documents import Source
from sluiceway.common.specs.places import MAX_BYTES


def read_sources(paths: Sequence[str], stdin: BinaryIO) -> list[Source]:
    """The texts under `paths`, at most one byte more than the limit of each.

    Raises:
        SpecInvalid: every path that can't be read.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for name in dict.fromkeys(paths):
        if name == "-":
            sources.append(Source("<stdin>", stdin.read(MAX_BYTES + 1)))
            continue
        try:
            sources += [_read(path) for path in _files(Path(name))]
        except OSError as error:
            problems.append(f"{error.filename or name}: can't be read: {error.strerror or type(error).__name__}")
    if problems:
        raise SpecInvalid(problems)
    return sources


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.suffix in (".yaml", ".yml") and each.is_file())


def _read(path: Path) -> Source:
    with path.open("rb") as file:
        return Source(str(path), file.read(MAX_BYTES + 1))
