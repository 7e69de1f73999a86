"""The write-once-object protocol as pure functions on progress records.

An object's existence is the decision. A cut is journalled, its objects are created under keys of its own and never
overwritten, then it is settled. Whoever finds an open cut creates an empty object marked `aborted` under each of its
keys: where that succeeds the object is aborted for ever, where it fails the data is there and is adopted.

    open       read_txn
    journal    journalled → write_txn
    create     outcome (of a data object or of a marker)
    settle     settled → write_txn

Neighbours: `parquet` does what is decided here, `shares` says which rows go to which object. No I/O, clock or chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sluiceway.common.errors import SinkUnfit
from sluiceway.common.etcd.api import Get, Put, Txn, created_at, modified_at
from sluiceway.common.records import Cut, CutObject, ProgressRecord, Range, encode
from sluiceway.worker.sinks.marks import Mark, State
from sluiceway.worker.sinks.ranges import clipped, merged, size

DATA_ROLE = "data"
DEAD_LETTERS_ROLE = "dead_letters"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one object of a cut was decided, for ever. `rows` is 0 when it was aborted."""

    state: State
    rows: int = 0


def undelivered(progress: ProgressRecord, end: int) -> list[Range]:
    """Which offsets of `[next_offset, end)` are still to be delivered."""
    if not progress.pending:
        return merged([(progress.next_offset, end)])
    return clipped(
        [*progress.pending, (progress.pending_end, max(end, progress.pending_end))], progress.next_offset, end
    )


def new_cut_id(*, token: int, number: int, nonce: str) -> str:
    """An id that no other attempt has: the token is this lease's own, `number` counts in it, and `nonce` keeps keys
    apart should etcd ever be set up anew under the same bucket."""
    return f"{token:x}-{number:x}-{nonce}"


def plan_cut(
    progress: ProgressRecord,
    *,
    cut_id: str,
    token: int,
    end: int,
    objects: Sequence[CutObject],
    schema_version: int = 0,
    spec_hash: str = "",
) -> Cut:
    """The cut `[next_offset, end)` with its objects.

    Raises:
        ValueError: a cut is open, the range is empty, or the objects don't hold each undelivered offset exactly once.
    """
    if progress.cut is not None:
        raise ValueError(f"cut {progress.cut.id} is open: resolve it first")
    if end <= progress.next_offset:
        raise ValueError(f"an empty cut: {progress.next_offset} to {end}")
    held = [held for item in objects for held in item.ranges]
    covered = merged(held)
    if covered != undelivered(progress, end) or sum(e - s for s, e in held) != sum(e - s for s, e in covered):
        raise ValueError(f"the objects' ranges don't cover what is undelivered below {end} exactly once")
    return Cut(
        id=cut_id,
        start=progress.next_offset,
        end=end,
        objects=list(objects),
        schema_version=schema_version,
        spec_hash=spec_hash,
        token=token,
    )


def journalled(progress: ProgressRecord, cut: Cut) -> ProgressRecord:
    """Progress with the cut open: from now on its objects may exist."""
    return msgspec.structs.replace(progress, cut=cut, token=cut.token)


def passed(progress: ProgressRecord, end: int, *, token: int, at: float) -> ProgressRecord:
    """Progress after a range that holds nothing to write: no object, so no cut."""
    if progress.cut is not None or end <= progress.next_offset:
        raise ValueError("only a range of at least one offset, without an open cut, can be passed")
    rest = clipped(progress.pending, end, max(progress.pending_end, end))
    return _moved(progress, rest, max(end, progress.pending_end), token=token, at=at)


def skipped(progress: ProgressRecord, to: int, *, token: int, at: float) -> ProgressRecord:
    """Progress after the broker removed everything below `to`: what was undelivered of it counts as lost, what was
    delivered beyond it stays so."""
    if progress.cut is not None:
        raise ValueError(f"cut {progress.cut.id} is open: resolve it first")
    if to <= progress.next_offset:
        return msgspec.structs.replace(progress, token=token, committed_at=at)
    moved = passed(progress, to, token=token, at=at)
    return msgspec.structs.replace(moved, lost=progress.lost + size(undelivered(progress, to)))


def outcome(cut: Cut, item: CutObject, metadata: Mapping[str, str]) -> Outcome:
    """How an object that exists was decided, from its metadata.

    Raises:
        SinkUnfit: the object is not of this cut.
    """
    mark = Mark.parse(metadata)
    if mark is None or mark.cut != cut.id:
        raise SinkUnfit(
            f"the object {item.key} exists but does not carry the metadata of cut {cut.id}: the store drops user "
            "metadata, or something else writes below this sink's url; give the pipeline a url of its own"
        )
    return Outcome(mark.state, mark.rows if mark.state is State.DATA else 0)


def settled(progress: ProgressRecord, outcomes: Mapping[str, Outcome], *, token: int, at: float) -> ProgressRecord:
    """Progress with the open cut resolved: its data objects count, what was aborted is undelivered again.

    Args:
        outcomes: by key, of every object of the open cut.
    """
    cut = progress.cut
    if cut is None:
        raise ValueError("no cut is open")
    aborted = [r for item in cut.objects if outcomes[item.key].state is State.ABORTED for r in item.ranges]
    beyond = clipped(progress.pending, cut.end, max(progress.pending_end, cut.end))
    moved = _moved(progress, [*aborted, *beyond], max(cut.end, progress.pending_end), token=token, at=at)
    rows = dict.fromkeys((DATA_ROLE, DEAD_LETTERS_ROLE), 0)
    for item in cut.objects:
        rows[item.role] += outcomes[item.key].rows
    return msgspec.structs.replace(
        moved,
        delivered=progress.delivered + rows[DATA_ROLE],
        dead_letters=progress.dead_letters + rows[DEAD_LETTERS_ROLE],
    )


def _moved(
    progress: ProgressRecord, remaining: Sequence[Sequence[int]], frontier: int, *, token: int, at: float
) -> ProgressRecord:
    """Progress without a cut, where only `remaining` below `frontier` is undelivered, in normal form."""
    pending = merged(remaining)
    if pending and pending[-1][1] == frontier:
        frontier = pending.pop()[0]
    return msgspec.structs.replace(
        progress,
        next_offset=pending[0][0] if pending else frontier,
        pending=pending,
        pending_end=frontier if pending else 0,
        cut=None,
        token=token,
        committed_at=at,
    )


def read_txn(*, lease_key: str, progress_key: str, token: int) -> Txn:
    """Reads progress if the lease is this token's. A former holder must not see, and abort, its successor's cut."""
    return Txn([created_at(lease_key, token)], [Get(progress_key)])


def write_txn(*, lease_key: str, progress_key: str, token: int, revision: int, record: ProgressRecord) -> Txn:
    """Writes progress if the lease is still this token's and progress is still as read at `revision` (0: absent).

    Otherwise it answers with progress as it is. Sending it again is harmless: of two copies one can succeed.
    """
    return Txn(
        [created_at(lease_key, token), modified_at(progress_key, revision)],
        [Put(progress_key, encode(record))],
        [Get(progress_key)],
    )
