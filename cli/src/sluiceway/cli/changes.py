"""Plans and commits changes of specs; shared by every command that changes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import typer

from sluiceway.cli.connection import Fleet
from sluiceway.cli.rendering.plans import as_lines
from sluiceway.common.errors import EtcdUnavailable, Refused
from sluiceway.common.specs import store
from sluiceway.common.specs.models import Document
from sluiceway.common.specs.plan import Current, Plan, plan
from sluiceway.common.specs.references import SpecKey

_ATTEMPTS: Final = 5

Wanted = Callable[[Current], Sequence[Document]]


async def make_plan(
    fleet: Fleet, touched: Sequence[SpecKey], wanted: Wanted, deleted: Sequence[SpecKey] = (), *, forget: bool = False
) -> tuple[store.Read, Plan]:
    """What would change now.

    Args:
        touched: every spec that `wanted` may return and `deleted` names.
        wanted: the documents that shall be, given what is.
    """
    seen = await store.read(fleet.etcd, fleet.keys, touched)
    return seen, plan(seen.current, wanted(seen.current), deleted, forget=forget)


async def change(
    fleet: Fleet,
    touched: Sequence[SpecKey],
    wanted: Wanted,
    deleted: Sequence[SpecKey] = (),
    *,
    forget: bool = False,
    expected: str | None = None,
    dry_run: bool = False,
) -> None:
    """Plans, checks, commits and prints; plans anew when the specs change meanwhile.

    Raises:
        Refused: a change is unsafe, or the plan is not the expected one any more.
    """
    for _ in range(_ATTEMPTS):
        seen, made = await make_plan(fleet, touched, wanted, deleted, forget=forget)
        _check(made, expected)
        if dry_run:
            print_plan(made, done=False)
            return
        try:
            await store.commit(fleet.etcd, fleet.keys, seen, made, fleet.author(), forget=forget)
        except store.Stale as stale:
            if stale.applied:
                raise Refused(f"{stale}; the rest is not: look at `sluiceway plan` and apply again") from stale
            continue
        except EtcdUnavailable as error:
            raise EtcdUnavailable(f"{error}; whether it took effect is not known: repeat it, that is safe") from error
        print_plan(made, done=True)
        return
    raise Refused(f"others changed specs during each of {_ATTEMPTS} attempts; nothing was applied: try again")


def _check(made: Plan, expected: str | None) -> None:
    if made.refusals:
        raise Refused("nothing was applied\n" + "\n".join(map(str, made.refusals)))
    if expected is not None and expected != made.hash:
        raise Refused(
            f"nothing was applied: the plan {expected} is stale, specs changed since it was made "
            f"(it is {made.hash} now); look at `sluiceway plan` again"
        )


def print_plan(made: Plan, *, done: bool) -> None:
    for line in as_lines(made, done=done):
        typer.echo(line)
