"""An object store in memory whose puts can fail in the ways that real ones do. For tests and simulations.

Neighbours: the contract suite keeps it honest beside the real stores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum

from sluiceway.common.errors import SinkUnavailable
from sluiceway.worker.objects.api import StoredObject


class Fault(StrEnum):
    """What happens to one call. All raise SinkUnavailable."""

    REFUSED = "refused"  # nothing happens
    LOST_ANSWER = "lost_answer"  # it happens
    LATE = "late"  # a create stays under way until `land`


Faults = Callable[[str, str], Fault | None]  # by operation and key


class FakeStore:
    """Objects in a dict. `conditional=False`: creates overwrite, as in stores that ignore If-None-Match."""

    def __init__(self, *, faults: Faults | None = None, conditional: bool = True) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.under_way: list[tuple[str, bytes, dict[str, str]]] = []
        self.faults = faults or (lambda operation, key: None)
        self._conditional = conditional
        self._lock = threading.Lock()

    def create(self, key: str, body: bytes | memoryview, metadata: dict[str, str]) -> bool:
        """See ObjectStore."""
        fault = self.faults("create", key)
        if fault is Fault.REFUSED:
            raise SinkUnavailable(f"fault: {fault}")
        with self._lock:
            if fault is Fault.LATE:
                self.under_way.append((key, bytes(body), dict(metadata)))
                raise SinkUnavailable(f"fault: {fault}")
            created = self._put(key, bytes(body), dict(metadata))
        if fault is Fault.LOST_ANSWER:
            raise SinkUnavailable(f"fault: {fault}")
        return created

    def land(self) -> None:
        """Lets every put that is under way reach the store, in the order of sending."""
        with self._lock:
            for put in self.under_way:
                self._put(*put)
            self.under_way.clear()

    def head(self, key: str) -> StoredObject | None:
        self._raise_fault("head", key)
        found = self.objects.get(key)
        return None if found is None else StoredObject(key, len(found[0]), dict(found[1]))

    def read(self, key: str) -> bytes:
        self._raise_fault("read", key)
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key][0]

    def list(self, prefix: str = "") -> list[StoredObject]:
        self._raise_fault("list", prefix)
        with self._lock:
            items = sorted(self.objects.items())
        return [StoredObject(key, len(body), {}) for key, (body, _) in items if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        self._raise_fault("delete", key)
        with self._lock:
            self.objects.pop(key, None)

    def _put(self, key: str, body: bytes, metadata: dict[str, str]) -> bool:
        if key in self.objects and self._conditional:
            return False
        self.objects[key] = (body, metadata)
        return True

    def _raise_fault(self, operation: str, key: str) -> None:
        fault = self.faults(operation, key)
        if fault is not None:
            raise SinkUnavailable(f"fault: {fault}")
