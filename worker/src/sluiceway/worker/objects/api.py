"""What the exactly-once protocol needs of an object store.

One contract suite (`tests/contract/test_object_store_contract.py`) runs on S3, the local directory and the fake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

METADATA_PREFIX: Final = "sluiceway-"
PROBE_FOLDER: Final = "_probe"  # short-lived objects that find out what a store can do


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's key below the store's prefix, its size in bytes, and its metadata (ASCII keys in lower case)."""

    key: str
    size: int
    metadata: dict[str, str]


class ObjectStore(Protocol):
    """Objects below one prefix. Blocking calls: run them on threads.

    Metadata keys are lower-case ASCII and start with METADATA_PREFIX; values are printable ASCII; 2 KB in all. A
    Parquet object carries the same pairs in its footer, because a store without metadata of its own (a directory) reads
    them there; in such a store other objects have none.

    Every method raises SinkUnavailable (worth a retry; the outcome of a create is then unknown), or AccessDenied.
    """

    def create(self, key: str, body: bytes | memoryview, metadata: dict[str, str]) -> bool:
        """Creates the object unless the key exists; decides races: exactly one creator gets True.

        Returns False when the key exists. After a retry inside of the client, False may mean that our own first try
        landed: read the metadata.
        """

    def head(self, key: str) -> StoredObject | None:
        """The object's metadata, or None when it does not exist. Strongly consistent."""

    def read(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            FileNotFoundError: no such object.
        """

    def list(self, prefix: str = "") -> list[StoredObject]:
        """All objects whose key starts with `prefix`, sorted by key; `metadata` is empty in listings."""

    def delete(self, key: str) -> None:
        """Removes the object; no error when it does not exist. Never used by the delivery protocol itself."""
