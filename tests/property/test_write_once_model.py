"""Every interleaving of the Parquet commit protocol on a small case, driving the functions of `sinks.cuts` themselves.

One partition of a few records: even offsets belong to object x of a cut, odd ones to y (as data and dead letters do).
The lease moves to fresh runners at any moment while former holders go on as zombies. Every create and every etcd
transaction may be answered, or stay under way with its answer lost, be sent again, and land at any later time.

Checked in every state: INV-DELIVERY-1 (what progress covers is visible, nothing is visible twice), INV-LEASE-2 (objects
appear only while their cut is open; tokens in progress only rise), INV-LEASE-9 (progress never goes back). In every
final state: all of it is visible exactly once, committed and counted. Each planted fault must be found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

import msgspec
import pytest

from sluiceway.common.etcd.api import Put, Target, Txn
from sluiceway.common.records import Cut, CutObject, ProgressRecord, decode, encode
from sluiceway.worker.sinks import cuts
from sluiceway.worker.sinks.cuts import Outcome
from sluiceway.worker.sinks.marks import Mark, State
from sluiceway.worker.sinks.ranges import merged, of_offsets

LEASE, PROGRESS = "lease", "progress"
KEYS = ("x", "y")


class Object(NamedTuple):
    state: State
    cut: str
    offsets: tuple[int, ...]


class Runner(NamedTuple):
    token: int
    step: str  # read | journal | put | abort | settle
    revision: int = 0
    progress: bytes = b""  # as read, or as written last
    wanted: bytes = b""  # what `journal` or `settle` sends
    outcomes: tuple[tuple[str, Outcome], ...] = ()  # of the open cut's objects, in order
    lost: bool = False  # an answer of this step was lost already
    number: int = 0  # of cuts planned
    reopens: int = 0  # how often it may still give up and open again


class World(NamedTuple):
    token: int
    revision: int
    progress: bytes
    objects: tuple[tuple[str, Object], ...]
    puts: frozenset[tuple[str, Object]]  # under way
    writes: frozenset[tuple[int, int, bytes]]  # under way: token, revision, record
    runners: tuple[Runner, ...]


@cache
def read(value: bytes) -> ProgressRecord:
    return decode(ProgressRecord, value)


class Protocol:
    """The protocol as it is. Subclasses plant one fault each."""

    def plan(self, progress: ProgressRecord, runner: Runner, end: int) -> Cut:
        cut_id = cuts.new_cut_id(token=runner.token, number=runner.number, nonce=str(end))
        wanted = cuts.undelivered(progress, end)
        held = {
            key: of_offsets(o for start, stop in wanted for o in range(start, stop) if KEYS[o % 2] == key)
            for key in KEYS
        }
        objects = [CutObject(key=f"{cut_id}/{key}", ranges=ranges) for key, ranges in held.items() if ranges]
        return cuts.plan_cut(progress, cut_id=cut_id, token=runner.token, end=end, objects=objects)

    def read(self, token: int) -> Txn:
        return cuts.read_txn(lease_key=LEASE, progress_key=PROGRESS, token=token)

    def write(self, token: int, revision: int, record: ProgressRecord) -> Txn:
        return cuts.write_txn(lease_key=LEASE, progress_key=PROGRESS, token=token, revision=revision, record=record)

    def creates(self, objects: Mapping[str, Object], key: str, new: Object) -> bool:
        """The store's part: does the create take effect?"""
        return key not in objects

    def abort_needs_marker(self) -> bool:
        return True

    def found(self, cut: Cut, item: CutObject, there: Object) -> Outcome:
        mark = Mark.of(there.state, cut=cut, item=item, partition="p", rows=len(there.offsets), token=cut.token)
        return cuts.outcome(cut, item, mark.metadata())

    def settle(self, progress: ProgressRecord, outcomes: Mapping[str, Outcome], token: int) -> ProgressRecord:
        return cuts.settled(progress, outcomes, token=token, at=0.0)


class Violated(Exception):
    pass


def offsets_of(item: CutObject) -> tuple[int, ...]:
    return tuple(offset for start, end in item.ranges for offset in range(start, end))


class Model:
    def __init__(self, protocol: Protocol, *, records: int, moves: int, reopens: int) -> None:
        self.protocol, self.records, self.moves, self.reopens = protocol, records, moves, reopens

    def explore(self) -> int:
        """The number of states.

        Raises:
            Violated: an invariant does not hold.
        """
        first = ProgressRecord(next_offset=0, token=1)
        start = World(1, 1, encode(first), (), frozenset(), frozenset(), (Runner(1, "read", reopens=self.reopens),))
        seen, queue = {start}, deque([start])
        while queue:
            world = queue.popleft()
            following = [self.canonical(world, step) for step in self.steps(world)]
            if not following and not world.runners:
                self.check_final(world)
            for step in following:
                if step not in seen:
                    self.check(step)
                    seen.add(step)
                    queue.append(step)
        return len(seen)

    def steps(self, world: World) -> Iterator[World]:
        if world.token <= self.moves:
            fresh = Runner(world.token + 1, "read", reopens=self.reopens)
            yield world._replace(token=world.token + 1, runners=(*world.runners, fresh))
        for put in world.puts:
            yield self.created(world, *put)._replace(puts=world.puts - {put})
        for write in world.writes:
            yield self.written(world, *write)._replace(writes=world.writes - {write})
        for index, runner in enumerate(world.runners):
            others = world.runners[:index], world.runners[index + 1 :]
            for after, runner_after in getattr(self, runner.step)(world, runner):
                yield after._replace(runners=(*others[0], *([runner_after] if runner_after else []), *others[1]))

    # what the environment does

    def created(self, world: World, key: str, new: Object) -> World:
        objects = dict(world.objects)
        if not self.protocol.creates(objects, key, new):
            return world
        open_cut = read(world.progress).cut
        if open_cut is None or open_cut.id != new.cut:
            raise Violated("INV-LEASE-2: an object appeared while its cut was not open")
        return world._replace(objects=tuple(sorted({**objects, key: new}.items())))

    def holds(self, world: World, txn: Txn) -> bool:
        actual = {(LEASE, Target.CREATE): world.token, (PROGRESS, Target.MOD): world.revision}
        return all(actual[compare.key, compare.target] == compare.expected for compare in txn.compares)

    def written(self, world: World, token: int, revision: int, record: bytes) -> World:
        txn = self.protocol.write(token, revision, read(record))
        if not self.holds(world, txn):
            return world
        put = txn.then[0]
        assert isinstance(put, Put)
        before, after = read(world.progress), read(put.value)
        if after.token < before.token:
            raise Violated("INV-LEASE-2: a lower token's write was accepted")
        if after.next_offset < before.next_offset:
            raise Violated("INV-LEASE-9: progress went back")
        return world._replace(revision=world.revision + 1, progress=put.value)

    def canonical(self, world: World, after: World) -> World:
        """Without requests that can change nothing any more."""
        objects = dict(after.objects)
        puts = {put for put in after.puts if self.protocol.creates(objects, *put)}
        writes = {w for w in after.writes if self.holds(after, self.protocol.write(w[0], w[1], read(w[2])))}
        return after._replace(puts=frozenset(puts), writes=frozenset(writes))

    # what a runner does: yields (world, runner or None when it ends)

    def read(self, world: World, runner: Runner) -> Iterator[tuple[World, Runner | None]]:
        if self.holds(world, self.protocol.read(runner.token)):
            current = runner._replace(revision=world.revision, progress=world.progress)
            yield world, self.proceed(current, found_cut="abort")
        else:
            yield world, None

    def proceed(self, runner: Runner, *, found_cut: str) -> Runner | None:
        """The next step after progress was read or written."""
        progress = read(runner.progress)
        runner = runner._replace(outcomes=(), lost=False, wanted=b"")
        if progress.cut is not None:
            return runner._replace(step=found_cut)
        return None if progress.next_offset == self.records else runner._replace(step="journal")

    def journal(self, world: World, runner: Runner) -> Iterator[tuple[World, Runner | None]]:
        if runner.wanted:
            yield from self.send(world, runner)
            return
        progress = read(runner.progress)
        for end in range(progress.next_offset + 1, self.records + 1):
            cut = self.protocol.plan(progress, runner, end)
            wanted = encode(cuts.journalled(progress, cut))
            yield world, runner._replace(wanted=wanted, number=runner.number + 1)

    def put(self, world: World, runner: Runner) -> Iterator[tuple[World, Runner | None]]:
        yield from self.create(world, runner, State.DATA)

    def abort(self, world: World, runner: Runner) -> Iterator[tuple[World, Runner | None]]:
        yield from self.create(world, runner, State.ABORTED)

    def create(self, world: World, runner: Runner, state: State) -> Iterator[tuple[World, Runner | None]]:
        cut = read(runner.progress).cut
        assert cut is not None
        if len(runner.outcomes) == len(cut.objects):
            wanted = self.protocol.settle(read(runner.progress), dict(runner.outcomes), runner.token)
            yield world, runner._replace(step="settle", wanted=encode(wanted))
            return
        item = cut.objects[len(runner.outcomes)]
        new = Object(state, cut.id, offsets_of(item) if state is State.DATA else ())
        if state is State.ABORTED and not self.protocol.abort_needs_marker():
            there = dict(world.objects).get(item.key, new)
            yield world, self.decided(runner, item, self.protocol.found(cut, item, there))
            return
        if not runner.lost:
            yield world._replace(puts=world.puts | {(item.key, new)}), runner._replace(lost=True)
        elif state is State.DATA and runner.reopens:  # it gave up on the store and opens again
            yield world, Runner(runner.token, "read", number=runner.number, reopens=runner.reopens - 1)
        if self.protocol.creates(dict(world.objects), item.key, new):
            yield self.created(world, item.key, new), self.decided(runner, item, Outcome(state, len(new.offsets)))
            return
        there = dict(world.objects)[item.key]
        outcome = self.protocol.found(cut, item, there)
        lease_lost = state is State.DATA and outcome.state is State.ABORTED
        yield world, None if lease_lost else self.decided(runner, item, outcome)

    def decided(self, runner: Runner, item: CutObject, outcome: Outcome) -> Runner:
        return runner._replace(outcomes=(*runner.outcomes, (item.key, outcome)), lost=False)

    def settle(self, world: World, runner: Runner) -> Iterator[tuple[World, Runner | None]]:
        yield from self.send(world, runner)

    def send(self, world: World, runner: Runner) -> Iterator[tuple[World, Runner | None]]:
        request = (runner.token, runner.revision, runner.wanted)
        if not runner.lost:
            yield world._replace(writes=world.writes | {request}), runner._replace(lost=True)
        after = self.written(world, *request)
        if after.progress == runner.wanted:  # accepted now, or our own earlier request was
            runner = runner._replace(revision=after.revision, progress=runner.wanted)
            yield after, self.proceed(runner, found_cut="put")
        else:
            yield world, None

    # what must hold

    def check(self, world: World) -> None:
        visible = [offset for _, found in world.objects for offset in found.offsets]
        if len(visible) != len(set(visible)):
            raise Violated("INV-DELIVERY-1: a record is visible twice")
        progress = read(world.progress)
        missing = of_offsets(set(range(progress.pending_end or progress.next_offset)) - set(visible))
        if merged([*missing, *progress.pending]) != merged(progress.pending):
            raise Violated("INV-DELIVERY-1: a committed record is lost")

    def check_final(self, world: World) -> None:
        progress = read(world.progress)
        if progress.next_offset != self.records or progress.cut or progress.pending:
            raise Violated("progress stands still")
        if progress.delivered != self.records:
            raise Violated(f"{progress.delivered} records counted of {self.records}")


class Overwrites(Protocol):
    """The store replaces objects."""

    def creates(self, objects: Mapping[str, Object], key: str, new: Object) -> bool:
        return objects.get(key) != new if new.state is State.DATA else key not in objects


class ReadsUnguarded(Protocol):
    """A former holder resolves its successor's cut."""

    def read(self, token: int) -> Txn:
        return Txn([], super().read(token).then)


class AbortsWithoutMarker(Protocol):
    """A recovery takes a missing object for aborted and leaves the key free for a late put."""

    def abort_needs_marker(self) -> bool:
        return False


class AdoptsWithoutReading(Protocol):
    """A recovery takes every object that exists for data."""

    def found(self, cut: Cut, item: CutObject, there: Object) -> Outcome:
        return Outcome(State.DATA, len(offsets_of(item)))


class WritesUnguarded(Protocol):
    """Progress is written without its guards."""

    guards: tuple[str, ...] = ()

    def write(self, token: int, revision: int, record: ProgressRecord) -> Txn:
        txn = super().write(token, revision, record)
        return Txn([compare for compare in txn.compares if compare.key in self.guards], txn.then, txn.otherwise)


class WritesWithoutToken(WritesUnguarded):
    guards = (PROGRESS,)


class WritesWithoutRevision(WritesUnguarded):
    guards = (LEASE,)


class RedoesTheWholeRange(Protocol):
    """After a partly aborted cut all of its range is delivered again."""

    def settle(self, progress: ProgressRecord, outcomes: Mapping[str, Outcome], token: int) -> ProgressRecord:
        if all(found.state is State.DATA for found in outcomes.values()):
            return super().settle(progress, outcomes, token)
        return msgspec.structs.replace(progress, cut=None, token=token)


class DropsWhatWasAborted(Protocol):
    """A cut is committed whole whatever became of its objects."""

    def settle(self, progress: ProgressRecord, outcomes: Mapping[str, Outcome], token: int) -> ProgressRecord:
        return super().settle(progress, {key: Outcome(State.DATA, 1) for key in outcomes}, token)


@pytest.mark.parametrize(("records", "moves", "reopens"), [(2, 1, 1), (3, 1, 1), (2, 2, 0)])
def test_every_interleaving_delivers_every_record_exactly_once(records: int, moves: int, reopens: int) -> None:
    states = Model(Protocol(), records=records, moves=moves, reopens=reopens).explore()
    assert states > 5_000


@pytest.mark.parametrize(
    "faulty",
    [
        Overwrites,
        ReadsUnguarded,
        AbortsWithoutMarker,
        AdoptsWithoutReading,
        WritesUnguarded,
        WritesWithoutToken,
        WritesWithoutRevision,
        RedoesTheWholeRange,
        DropsWhatWasAborted,
    ],
)
def test_the_model_finds_each_planted_fault(faulty: type[Protocol]) -> None:
    with pytest.raises(Violated):
        Model(faulty(), records=2, moves=2, reopens=1).explore()
