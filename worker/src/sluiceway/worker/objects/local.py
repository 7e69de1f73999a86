"""A local directory as an object store.

An object appears whole or not at all: its bytes are written and flushed to a file in a hidden folder, then linked under
the key, which the file system refuses when the name is taken. So one creator wins, and no reader sees a part.
Neighbours: `api` states the contract. Metadata is what the Parquet footer says. The directory must be one file system
that has hard links; a shared one must make `link` atomic between its clients, as NFS does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from sluiceway.common.errors import AccessDenied, SinkUnavailable, SinkUnfit
from sluiceway.worker.objects.api import METADATA_PREFIX, StoredObject

UNFINISHED_FOLDER: Final = "_unfinished"
UNFINISHED_MAX_AGE_S: Final = 3600  # a slower writer finds its file gone and writes again

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_NO_LINKS = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


class LocalStore:
    """Objects as files below one directory, which is made when it is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unfinished = root / UNFINISHED_FOLDER
        with _wrapped(root):
            self._unfinished.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def create(self, key: str, body: bytes | memoryview, metadata: dict[str, str]) -> bool:
        """See ObjectStore. `metadata` is not kept apart: a Parquet body has it in its footer."""
        path = self._path(key)
        unfinished = self._unfinished / uuid.uuid4().hex
        with _wrapped(path):
            try:
                self._write(unfinished, body)
                made = _make_folders(path.parent)
                try:
                    os.link(unfinished, path)
                except FileExistsError:
                    return False
                for folder in (path.parent, *made):
                    _flush_folder(folder)
                return True
            finally:
                unfinished.unlink(missing_ok=True)

    def head(self, key: str) -> StoredObject | None:
        path = self._path(key)
        with _wrapped(path):
            try:
                size = path.stat().st_size
                return StoredObject(key, size, _footer_pairs(path))
            except FileNotFoundError:
                return None

    def read(self, key: str) -> bytes:
        path = self._path(key)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _meaning(error, path) from error

    def list(self, prefix: str = "") -> list[StoredObject]:
        folder = self._root / prefix.rpartition("/")[0]
        found = []
        with _wrapped(folder):
            for parent, _, names in os.walk(folder, onerror=_raise_unless_missing):
                for name in names:
                    path = Path(parent, name)
                    key = path.relative_to(self._root).as_posix()
                    if key.startswith(prefix) and not key.startswith(UNFINISHED_FOLDER + "/"):
                        with contextlib.suppress(FileNotFoundError):
                            found.append(StoredObject(key, path.stat().st_size, {}))
        return sorted(found, key=lambda item: item.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _wrapped(path):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"not a key: {key!r}")
        return self._root / key

    def _write(self, path: Path, body: bytes | memoryview) -> None:
        with path.open("xb", buffering=0) as file:
            rest = memoryview(body).cast("B")
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())

    def _sweep(self) -> None:
        """Removes what killed writers left behind."""
        oldest_s = time.time() - UNFINISHED_MAX_AGE_S
        for path in self._unfinished.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()


def _footer_pairs(path: Path) -> dict[str, str]:
    try:
        footer = pq.read_metadata(path).metadata or {}
    except pa.ArrowInvalid:  # not Parquet
        return {}
    pairs = {name.decode(): value.decode() for name, value in footer.items() if name.isascii()}
    return {name: value for name, value in pairs.items() if name.startswith(METADATA_PREFIX)}


def _make_folders(folder: Path) -> list[Path]:
    """Makes missing folders; returns those whose entries changed, to be flushed as well."""
    changed = []
    missing = folder
    while not missing.exists():
        missing = missing.parent
        changed.append(missing)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextlib.contextmanager
def _wrapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _meaning(error, path) from error


def _meaning(error: OSError, path: Path) -> AccessDenied | SinkUnavailable | SinkUnfit:
    if error.errno in _REFUSED:
        return AccessDenied(
            f"can't write below {path}: {error.strerror}; give the worker's user access, or change the url"
        )
    if error.errno in _NO_LINKS:
        return SinkUnfit(f"the file system of {path} has no hard links, which exactly-once delivery needs")
    return SinkUnavailable(f"{path}: {error.strerror or error}")
