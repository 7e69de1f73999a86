"""What a watch makes of etcd's responses: whole revisions, each once, from the wanted one on. No I/O here.

etcd (3.5.1, tried) lets a watch start *at* the compacted revision though a deletion at it may be gone. So a watch asks
for one revision more than it wants: then etcd itself reports every compaction that could hide something.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from etcd3aio import _protobuf as pb

from sluiceway.common.errors import Compacted, SluicewayError
from sluiceway.common.etcd.api import WatchBatch
from sluiceway.common.etcd.wire import event, prefix_end, prefix_start


class WatchRefused(SluicewayError):
    """etcd ended one watch and says why; the adapter logs in again or gives up."""


class WatchPosition:
    """How far a watch has come, over all of its streams."""

    def __init__(self, prefix: str, start_revision: int) -> None:
        if start_revision < 1:
            raise ValueError("a watch starts at a revision: list first")
        self._prefix = prefix
        self._partial: list[Any] = []
        self.next_revision = start_revision

    def request(self) -> Any:
        """The request that opens the next stream; what an earlier stream began to send is forgotten."""
        self._partial.clear()
        return pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=prefix_start(self._prefix),
                range_end=prefix_end(self._prefix),
                start_revision=max(1, self.next_revision - 1),
                progress_notify=True,
                fragment=True,
            )
        )

    def take(self, response: Any) -> WatchBatch | None:
        """The next batch, or None if this response completes none.

        Raises:
            Compacted: the next revision's events may be gone.
            WatchRefused: etcd won't serve this watch.
        """
        if response.compact_revision:
            raise Compacted(response.compact_revision + 1)
        if response.canceled:
            raise WatchRefused(response.cancel_reason or "etcd cancelled the watch")
        if response.created:
            return None
        whole = self._whole(response)
        if response.fragment and not whole:
            return None
        # Events don't vouch for the header's revision, only for their own; a progress notification does.
        revision = whole[-1].kv.mod_revision if whole else response.header.revision
        if revision < self.next_revision:
            return None
        events = [event(each) for each in whole if each.kv.mod_revision >= self.next_revision]
        self.next_revision = revision + 1
        return WatchBatch(revision, events)

    def _whole(self, response: Any) -> list[Any]:
        """The events of the revisions that are complete; of a fragment's last revision more may follow."""
        events = [*self._partial, *response.events]
        cut = len(events)
        if response.fragment and events:
            cut = bisect_left(events, events[-1].kv.mod_revision, key=lambda each: each.kv.mod_revision)
        self._partial = events[cut:]
        return events[:cut]
