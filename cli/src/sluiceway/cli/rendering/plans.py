"""Plans as lines for people and as documents for machines. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sluiceway.common.specs.plan import Action, Change, FieldChange, Plan
from sluiceway.common.specs.wording import quoted

_SIGN: Final = {Action.CREATE: "+", Action.UPDATE: "~", Action.DELETE: "-", Action.UNCHANGED: "="}
_DONE: Final = {
    Action.CREATE: "created",
    Action.UPDATE: "updated",
    Action.DELETE: "deleted",
    Action.UNCHANGED: "unchanged",
}
_TO_DO: Final = {
    Action.CREATE: "would be created",
    Action.UPDATE: "would be updated",
    Action.DELETE: "would be deleted",
    Action.UNCHANGED: "unchanged",
}


def as_lines(plan: Plan, *, done: bool) -> Iterator[str]:
    """One line a change, with its fields below it."""
    words = _DONE if done else _TO_DO
    for change in plan.changes:
        note = f" ({change.note})" if change.note else ""
        yield f"{_SIGN[change.action]} {subject(change)} {words[change.action]}{note}"
        for field in change.fields:
            yield f"    {field.path}: {_shown(field.old)} → {_shown(field.new)}"
    if not plan.changes:
        yield "nothing to change"


def subject(change: Change) -> str:
    return f"{change.key.kind.lower()}/{change.key.name}"


def as_document(plan: Plan) -> dict[str, object]:
    """The plan with raw values."""
    return {
        "hash": plan.hash,
        "changes": [_change(change) for change in plan.changes],
        "refusals": [
            {"kind": each.key.kind, "name": each.key.name, "reason": each.reason, "remedy": each.remedy}
            for each in plan.refusals
        ],
    }


def _change(change: Change) -> dict[str, object]:
    return {
        "action": change.action.value,
        "kind": change.key.kind,
        "name": change.key.name,
        "spec_hash": change.record.hash,
        "note": change.note,
        "fields": [_field(field) for field in change.fields],
    }


def _field(field: FieldChange) -> dict[str, object]:
    return {"path": field.path, "old": field.old, "new": field.new}


def _shown(value: object) -> str:
    return "(absent)" if value is None else quoted(value)
