"""A watch's position: whole revisions, each once, whatever etcd's responses look like."""

from __future__ import annotations

from typing import Any

import pytest
from etcd3aio import _protobuf as pb

from sluiceway.common.errors import Compacted
from sluiceway.common.etcd.api import WatchBatch
from sluiceway.common.etcd.watching import WatchPosition, WatchRefused


def response(*revisions: int, header: int = 0, **fields: Any) -> Any:
    message = pb.WatchResponse(**fields)
    message.header.revision = header
    for number, revision in enumerate(revisions):
        event = message.events.add()
        event.kv.key = f"/w/{number}".encode()
        event.kv.mod_revision = revision
    return message


def revisions(batch: WatchBatch | None) -> list[int] | None:
    return None if batch is None else [event.mod_revision for event in batch.events]


def test_it_asks_for_one_revision_more_than_it_wants_and_drops_it() -> None:
    position = WatchPosition("/w/", 7)
    assert position.request().create_request.start_revision == 6
    assert revisions(position.take(response(6))) is None
    assert revisions(position.take(response(6, 7, 8))) == [7, 8]
    assert position.request().create_request.start_revision == 8


def test_the_first_revision_of_all_can_be_wanted() -> None:
    assert WatchPosition("/w/", 1).request().create_request.start_revision == 1
    with pytest.raises(ValueError, match="list first"):
        WatchPosition("/w/", 0)


def test_events_vouch_for_their_own_revision_and_not_for_the_headers() -> None:
    position = WatchPosition("/w/", 7)
    batch = position.take(response(8, header=20))
    assert batch is not None
    assert batch.revision == 8
    assert position.next_revision == 9


def test_a_progress_notification_vouches_for_the_headers_revision() -> None:
    position = WatchPosition("/w/", 7)
    assert position.take(response(header=20)) == WatchBatch(20, [])
    assert position.take(response(header=20)) is None
    assert position.next_revision == 21


def test_a_revision_split_over_fragments_comes_in_one_batch() -> None:
    position = WatchPosition("/w/", 7)
    assert revisions(position.take(response(7, 8, 8, fragment=True))) == [7]
    assert revisions(position.take(response(8, fragment=True))) is None
    assert revisions(position.take(response(8, 9, fragment=True))) == [8, 8, 8, 8]
    assert revisions(position.take(response(9))) == [9, 9]


def test_a_revision_half_received_when_the_stream_breaks_is_asked_for_again() -> None:
    position = WatchPosition("/w/", 7)
    position.take(response(7, 8, fragment=True))
    assert position.request().create_request.start_revision == 7
    assert revisions(position.take(response(7, 8, 8))) == [8, 8]


def test_compaction_and_refusal_are_told_apart() -> None:
    position = WatchPosition("/w/", 7)
    assert position.take(response(created=True, header=3)) is None
    with pytest.raises(Compacted) as caught:
        position.take(response(canceled=True, compact_revision=9))
    assert caught.value.revision == 10
    with pytest.raises(WatchRefused, match="permission denied"):
        position.take(response(canceled=True, cancel_reason="etcdserver: permission denied"))
