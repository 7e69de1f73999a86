"""Reads the applied specs from etcd and commits plans.

Decides nothing: `plan` does. Every transaction compares the guard key and the modification revision of each spec that
it writes, so a plan is applied to exactly what it was made against, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final

import msgspec

from sluiceway.common import events
from sluiceway.common.errors import SpecInvalid
from sluiceway.common.etcd.api import Compare, Delete, Etcd, Op, Put, Txn, modified_at
from sluiceway.common.keys import Keys
from sluiceway.common.records import EventRecord, SpecRecord, decode, encode
from sluiceway.common.specs.models import PLURALS
from sluiceway.common.specs.plan import Action, Applied, Change, Current, Plan
from sluiceway.common.specs.references import SpecKey, references_of
from sluiceway.common.specs.wording import quoted

_OPERATIONS: Final = 120  # of etcd's 128 a transaction

_PAST: Final = {Action.CREATE: "created", Action.UPDATE: "updated", Action.DELETE: "deleted"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What is applied, and the guard's revision from just before it was read."""

    current: Current
    guard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who commits, when (seconds since the epoch) and under which request id, which must be unique."""

    name: str
    at: float
    cause: str


class Stale(Exception):
    """Specs changed since they were read. `applied` changes of the plan were committed before that."""

    def __init__(self, applied: int) -> None:
        super().__init__(f"specs changed meanwhile, {applied} changes were committed")
        self.applied = applied


async def read(etcd: Etcd, keys: Keys, touched: Iterable[SpecKey]) -> Read:
    """Everything that plans about `touched` depend on.

    Raises:
        EtcdUnavailable, AccessDenied: as etcd's.
        SpecInvalid: a stored spec is no record.
    """
    guard = await etcd.get(keys.spec_guard)
    specs = await _specs(etcd, keys)
    retired = {key: applied.record for key, applied in (await _specs(etcd, keys, keys.retired)).items()}
    everything = {**retired, **{key: applied.record for key, applied in specs.items()}}
    concerned = _concerned(everything, frozenset(touched))
    leased = await _topics_below(etcd, keys.leases, concerned)
    current = Current(
        specs=specs,
        retired=retired,
        progressed=leased | await _topics_below(etcd, keys.progress_of_all, concerned),
        leased={pipeline for pipeline, _ in leased},
    )
    return Read(current=current, guard=guard.mod_revision if guard else 0)


async def _specs(etcd: Etcd, keys: Keys, prefix: str | None = None) -> dict[SpecKey, Applied]:
    found: dict[SpecKey, Applied] = {}
    for item in (await etcd.list(prefix or keys.specs)).items:
        try:
            record = decode(SpecRecord, item.value)
        except msgspec.MsgspecError as error:
            raise SpecInvalid([f"the etcd key {item.key} holds no spec: {error}"]) from error
        found[SpecKey(record.kind, record.name)] = Applied(record=record, mod_revision=item.mod_revision)
    return found


def _concerned(specs: dict[SpecKey, SpecRecord], touched: Set[SpecKey]) -> list[str]:
    """The pipelines whose progress a change of `touched` must fit."""
    pipelines = {key.name for key in touched if key.kind == "Pipeline"}
    for key, record in specs.items():
        spec = record.document.get("spec")
        if key.kind == "Pipeline" and isinstance(spec, dict) and not touched.isdisjoint(references_of(key.kind, spec)):
            pipelines.add(key.name)
    return sorted(pipelines)


async def _topics_below(etcd: Etcd, prefix: str, pipelines: Sequence[str]) -> frozenset[tuple[str, str]]:
    """The (pipeline, topic) pairs of the partitions that have a key below the prefix."""
    found: set[tuple[str, str]] = set()
    for pipeline in pipelines:
        below = f"{prefix}{pipeline}/"
        for item in (await etcd.list(below)).items:
            found.add((pipeline, item.key.removeprefix(below).partition("@")[0]))
    return frozenset(found)


async def commit(etcd: Etcd, keys: Keys, read: Read, plan: Plan, author: Author, *, forget: bool = False) -> None:
    """Makes the plan true: all changes in one transaction, or, past etcd's limit, in several in order.

    Raises:
        Stale: specs changed since `read`; with it, how many changes of the plan were committed before.
        EtcdUnavailable: the outcome of the last transaction is unknown; applying again settles it.
    """
    guard, applied = read.guard, 0
    for batch in _batches(keys, plan.effective(), author, forget=forget):
        compares = [modified_at(keys.spec_guard, guard), *(each.compare for each in batch)]
        puts: list[Op] = [Put(keys.spec_guard, plan.hash.encode())]
        result = await etcd.txn(Txn(compares, [*puts, *(op for each in batch for op in each.operations)]))
        if not result.succeeded:
            raise Stale(applied)
        guard = result.revision
        applied += len(batch)


@dataclass(frozen=True, slots=True)
class _Step:
    compare: Compare
    operations: list[Op]


def _batches(keys: Keys, changes: Sequence[Change], author: Author, *, forget: bool) -> Iterator[list[_Step]]:
    batch: list[_Step] = []
    room = _OPERATIONS
    for number, change in enumerate(changes):
        step = _step(keys, change, number, author, forget=forget)
        if room < len(step.operations):
            yield batch
            batch, room = [], _OPERATIONS
        batch.append(step)
        room -= len(step.operations)
    if batch:
        yield batch


def _step(keys: Keys, change: Change, number: int, author: Author, *, forget: bool) -> _Step:
    plural = PLURALS[change.key.kind]
    here, retired = keys.spec(plural, change.key.name), keys.retired_spec(plural, change.key.name)
    if change.action is Action.DELETE:
        operations: list[Op] = [Delete(here)]
        if forget and change.key.kind == "Pipeline":
            operations += _forgotten(keys, change.key.name, retired)
        elif change.key.kind != "Cluster":
            operations.append(Put(retired, encode(change.record)))
    else:
        record = msgspec.structs.replace(change.record, applied_at=author.at, applied_by=author.name)
        operations = [Put(here, encode(record)), Delete(retired)]
    event = EventRecord(
        at=author.at,
        actor=author.name,
        action=_PAST[change.action],
        subject=f"{change.key.kind.lower()}/{change.key.name}",
        reason=_reason(change),
        cause=author.cause,
    )
    place = keys.event(events.sequence(author.at, author.cause, number))
    return _Step(modified_at(here, change.mod_revision), [*operations, Put(place, encode(event))])


def _forgotten(keys: Keys, pipeline: str, retired: str) -> list[Op]:
    prefixes = (keys.progress_of_all, keys.failures, keys.schemas, keys.profiles)
    return [Delete(retired), Delete(keys.state(pipeline)), *(Delete(f"{p}{pipeline}/", prefix=True) for p in prefixes)]


def _reason(change: Change) -> str:
    if change.fields:
        return ", ".join(f"{field.path}: {quoted(field.old)} → {quoted(field.new)}" for field in change.fields[:10])
    return change.note
