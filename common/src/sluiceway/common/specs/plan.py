"""What applying specs would change, and whether that is safe.

`plan(current, wanted)` compares what is applied with what is wanted; nothing is read or written here (`store` does).
A refusal says why and what to do. Records of state that outlive a spec (progress) stay fit for it: a pipeline that has
delivered can't point elsewhere under the same name. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.records import SpecRecord
from sluiceway.common.specs.documents import canonical, from_record, to_record
from sluiceway.common.specs.models import Document
from sluiceway.common.specs.references import SpecKey, references_of, sink_place

_ORDER: Final = {"Cluster": 0, "Topic": 1, "Pipeline": 2}


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A spec as it is in etcd."""

    record: SpecRecord
    mod_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What plans are made against.

    `progressed`: (pipeline, topic) pairs with progress or a lease. `retired`: the last specs of what was deleted while
    its progress was kept. `leased`: pipelines of which a worker holds a partition.
    """

    specs: Mapping[SpecKey, Applied] = field(default_factory=dict)
    retired: Mapping[SpecKey, SpecRecord] = field(default_factory=dict)
    progressed: Set[tuple[str, str]] = frozenset()
    leased: Set[str] = frozenset()

    def records(self) -> dict[SpecKey, SpecRecord]:
        return {key: applied.record for key, applied in self.specs.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field of a spec; None where it was or will be absent."""

    path: str
    old: object
    new: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to one spec. `mod_revision` 0: it does not exist yet."""

    action: Action
    key: SpecKey
    record: SpecRecord
    mod_revision: int = 0
    fields: tuple[FieldChange, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a change is unsafe, and what to do instead."""

    key: SpecKey
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Changes in the order they are applied. `hash` names the inputs: the same hash means the same plan."""

    changes: tuple[Change, ...]
    refusals: tuple[Refusal, ...]
    hash: str

    def effective(self) -> tuple[Change, ...]:
        """The changes that change something."""
        return tuple(change for change in self.changes if change.action is not Action.UNCHANGED)


def plan(
    current: Current, wanted: Sequence[Document], deleted: Sequence[SpecKey] = (), *, forget: bool = False
) -> Plan:
    """The changes that make `wanted` true and remove `deleted`.

    Args:
        wanted: checked documents; a name comes at most once.
        deleted: names that do not exist are ignored.
        forget: progress goes with the deleted pipelines, also with those deleted before, so nothing restrains a
            successor.
    """
    writes = [_write(current, document) for document in wanted]
    deletes = [change for key in dict.fromkeys(deleted) for change in _delete(current, key, forget=forget)]
    changes = (
        *sorted(writes, key=lambda change: (_ORDER[change.key.kind], change.key.name)),
        *sorted(deletes, key=lambda change: (-_ORDER[change.key.kind], change.key.name)),
    )
    refusals = tuple(refusal for change in changes for refusal in _refusals(current, change, changes, forget=forget))
    return Plan(changes=changes, refusals=refusals, hash=_hash(changes, refusals))


def _write(current: Current, document: Document) -> Change:
    record = to_record(document)
    key = SpecKey(record.kind, record.name)
    existing = current.specs.get(key)
    if existing is None:
        note = "continues from the progress that an earlier spec of this name left" if _kept(current, key) else ""
        return Change(action=Action.CREATE, key=key, record=record, note=note)
    fields = tuple(_differences(_normal(existing.record), record.document))
    action = Action.UPDATE if fields else Action.UNCHANGED
    return Change(action=action, key=key, record=record, mod_revision=existing.mod_revision, fields=fields)


def _delete(current: Current, key: SpecKey, *, forget: bool) -> Iterator[Change]:
    existing, retired = current.specs.get(key), current.retired.get(key)
    pipeline = key.kind == "Pipeline"
    if existing is not None:
        note = ""
        if pipeline and _kept(current, key):
            note = "its progress is forgotten" if forget else "its progress is kept: applied again, it continues there"
        revision = existing.mod_revision
        yield Change(action=Action.DELETE, key=key, record=existing.record, mod_revision=revision, note=note)
    elif retired is not None and pipeline and forget:
        note = "it was deleted before; now its progress is forgotten"
        yield Change(action=Action.DELETE, key=key, record=retired, note=note)


def _kept(current: Current, key: SpecKey) -> bool:
    """Progress under this name exists."""
    position = {"Pipeline": 0, "Topic": 1}.get(key.kind)
    return position is not None and any(pair[position] == key.name for pair in current.progressed)


def _normal(record: SpecRecord) -> Mapping[str, object]:
    """The stored document with today's defaults, so that an upgrade alone is no change."""
    try:
        return canonical(from_record(record))
    except SpecInvalid:
        return record.document


def _differences(old: object, new: object, path: str = "") -> Iterator[FieldChange]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        yield FieldChange(path=path, old=old, new=new)


def _refusals(current: Current, change: Change, changes: Sequence[Change], *, forget: bool) -> Iterator[Refusal]:
    if change.action is Action.DELETE:
        yield from _still_needed(current, change, changes)
        if forget and change.key.kind == "Pipeline":
            yield from _still_running(current, change)
    elif change.action is not Action.UNCHANGED and _kept(current, change.key):
        yield from _moved(current, change)


def _moved(current: Current, change: Change) -> Iterator[Refusal]:
    """What progress belongs to must stay where it was."""
    before = current.specs[change.key].record if change.key in current.specs else current.retired.get(change.key)
    if before is None:
        return
    old, new = before.document["spec"], change.record.document["spec"]
    assert isinstance(old, Mapping)
    assert isinstance(new, Mapping)
    if change.key.kind == "Pipeline" and sink_place(old) != sink_place(new):
        yield Refusal(
            key=change.key,
            reason=f"it has delivered to {sink_place(old).path}, and its progress counts only for that place",
            remedy="give the pipeline for the new place a new name, or delete this one with "
            f"`sluiceway delete pipeline {change.key.name} --forget` first, which delivers everything again",
        )
    if change.key.kind == "Topic" and _physical(change.key, old) != _physical(change.key, new):
        cluster, physical = _physical(change.key, old)
        yield Refusal(
            key=change.key,
            reason=f"pipelines have progress in offsets of {physical} on {cluster}, which mean nothing elsewhere",
            remedy="apply the other topic under a new name and add it to the pipelines",
        )


def _still_running(current: Current, change: Change) -> Iterator[Refusal]:
    """A worker that goes on would write new progress after the old is forgotten."""
    spec = change.record.document["spec"]
    stopped = change.key not in current.specs or (isinstance(spec, Mapping) and bool(spec.get("paused")))
    if change.key.name in current.leased or not stopped:
        yield Refusal(
            key=change.key,
            reason="it is running, and would write progress again while that is forgotten",
            remedy=f"`sluiceway pause {change.key.name}` first, and try again when "
            f"`sluiceway get leases --pipeline {change.key.name}` shows none",
        )


def _physical(key: SpecKey, spec: Mapping[str, object]) -> tuple[str, str]:
    return str(spec["cluster"]), str(spec.get("physical") or key.name)


def _still_needed(current: Current, change: Change, changes: Sequence[Change]) -> Iterator[Refusal]:
    after = current.records()
    for other in changes:
        if other.action is Action.DELETE:
            after.pop(other.key, None)
        else:
            after[other.key] = other.record
    users = sorted(key for key, record in after.items() if change.key in _needs(record))
    if users:
        yield Refusal(
            key=change.key,
            reason=f"still used by {', '.join(map(str, users[:5]))}{' and others' if len(users) > 5 else ''}",
            remedy="delete or change those first, or together with it",
        )


def _needs(record: SpecRecord) -> list[SpecKey]:
    spec = record.document.get("spec")
    return references_of(record.kind, spec) if isinstance(spec, Mapping) and record.kind != "Cluster" else []


def _hash(changes: Sequence[Change], refusals: Sequence[Refusal]) -> str:
    facts = [[change.action, *change.key, change.mod_revision, change.record.hash, change.note] for change in changes]
    text = json.dumps([facts, [str(refusal) for refusal in refusals]], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
