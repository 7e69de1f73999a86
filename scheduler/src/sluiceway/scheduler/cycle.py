"""The scheduler's life: follow, lead while the term lasts, follow again.

As leader it repeats observe → decide → commit → report. It decides only when an input changed or a timer is due, and
never before the mirror has seen the revision of its own last write. Deciding happens in pure modules, for a large fleet
on a thread, so that it does not hold up the keep-alive of the leader's own session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import structlog

from sluiceway.common.clock import Clock
from sluiceway.common.errors import EtcdUnavailable, LeaseLost
from sluiceway.common.etcd.api import Etcd
from sluiceway.common.etcd.election import Election, Term
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.etcd.session import Session
from sluiceway.common.keys import Keys
from sluiceway.common.specs.models import ClusterSpec, TopicSpec
from sluiceway.scheduler import measures
from sluiceway.scheduler.grants.commit import Committer, Outcome
from sluiceway.scheduler.grants.decide import Policy, decide
from sluiceway.scheduler.grants.plan import Plan
from sluiceway.scheduler.grants.view import View
from sluiceway.scheduler.observe import Observer
from sluiceway.scheduler.source_view import SourceView

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEBOUNCE_S = 0.1
COUNTERS_S = 3.0  # how often states are written for counters alone
RETRY_S = 0.5
RESIGN_S = 2.0
LARGE = 2000  # keys: with more, observing and deciding leave the event loop


class SourceObserver(Protocol):
    """What is needed of `sources.Sources`."""

    def view(self) -> SourceView: ...

    def follow(self, clusters: Mapping[str, ClusterSpec], topics: Mapping[str, TopicSpec]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this replica is and how long its leadership outlives it."""

    id: str
    session_ttl_s: int = 5


@dataclass(slots=True)
class Standing:
    """What health checks and the API show of this replica."""

    term: int = 0
    plan: Plan = field(default_factory=Plan)
    cycles: int = 0


class Scheduler:
    """One replica."""

    def __init__(
        self,
        *,
        etcd: Etcd,
        keys: Keys,
        mirror: Mirror,
        sources: SourceObserver,
        clock: Clock,
        identity: Identity,
        policy: Policy,
    ) -> None:
        self._etcd, self._keys, self._mirror, self._sources = etcd, keys, mirror, sources
        self._clock, self._identity, self._policy = clock, identity, policy
        self._poked = asyncio.Event()
        self._observing = asyncio.Lock()
        self._observed_in_s = 0.0
        self.observer = Observer(keys)
        self.standing = Standing()

    def poke(self) -> None:
        """Something outside of etcd changed: look again."""
        self._poked.set()
        self._poked = asyncio.Event()

    async def run(self) -> NoReturn:
        """Follows and leads for ever. Cancelled, it resigns first.

        Raises:
            AccessDenied: etcd refuses this process.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="follow")
            while True:
                try:
                    await self._reign()
                except LeaseLost as error:
                    log.warning("leadership_lost", cause=str(error))
                except EtcdUnavailable as error:
                    log.warning("no_etcd", cause=str(error))
                    await asyncio.sleep(RETRY_S)
        raise AssertionError("unreachable")

    async def _follow(self) -> NoReturn:
        """Keeps what was observed warm while another replica leads."""
        while True:
            if not self.standing.term and self._mirror.loaded:
                await self._observe()
            await self._wait(COUNTERS_S)

    async def _reign(self) -> None:
        """One session: campaign, lead until the term or the session ends, resign."""
        ttl_s = self._identity.session_ttl_s
        session = await Session.open(self._etcd, self._clock, ttl_s=ttl_s, margin_s=0.2 * ttl_s)
        try:
            await _beside(session.run(), self._campaign_and_lead(session))
        finally:
            self._stand_down()
            with suppress(TimeoutError):
                async with asyncio.timeout(RESIGN_S):
                    await session.close()  # the leader's key hangs on it

    async def _campaign_and_lead(self, session: Session) -> None:
        election = Election(self._etcd, session, key=self._keys.leader, candidate=self._identity.id)
        term = await election.campaign()
        self.standing.term = term.number
        measures.LEADING.set(1)
        measures.TERM.set(term.number)
        log.info("leading", term=term.number)
        await self._lead(session, term)

    def _stand_down(self) -> None:
        self.standing.term = 0
        measures.LEADING.set(0)
        measures.TERM.set(0)

    async def _lead(self, session: Session, term: Term) -> None:
        committer = Committer(self._etcd, self._keys, self._clock, term, self._identity.id)
        timers = _Timers(self._clock)
        seen = term.number
        while True:
            await self._mirror.wait_for(seen)
            await self._observe()
            if cause := timers.due(self.observer.inputs()):
                started_s = self._clock.monotonic()
                view, plan = await self._decide(timers.counters_due())
                decided_s = self._clock.monotonic()
                session.check()
                outcome = await committer.commit(plan, view.snapshot)
                seen = max(seen, outcome.revision, await self._settled(committer) if outcome.unknown else 0)
                timers.decided(self.observer.inputs(), plan, again=bool(outcome.lost_compares or outcome.unknown))
                self._report(plan, outcome, cause, decided_s - started_s, self._clock.monotonic() - decided_s)
            await self._wait(timers.wait_s())

    async def _observe(self) -> None:
        async with self._observing:
            copy, sources, now_s = self._mirror.snapshot(), self._sources.view(), self._clock.monotonic()
            look = partial(self.observer.look, copy.revision, copy.items, sources, now_s)
            await _aside(look, size=len(copy.items))
            self._observed_in_s = self._clock.monotonic() - now_s
        snapshot = self.observer.snapshot
        self._sources.follow(snapshot.clusters, snapshot.topics)

    async def _decide(self, refresh_counters: bool) -> tuple[View, Plan]:
        async with self._observing:
            view = self.observer.view(now_s=self._clock.now(), refresh_counters=refresh_counters)
            return view, await _aside(partial(decide, view, self._policy), size=len(view.snapshot.leases))

    async def _settled(self, committer: Committer) -> int:
        """After an unanswered write: a revision from which the truth can be read, once etcd answers again."""
        while True:
            try:
                return await committer.settle()
            except EtcdUnavailable:
                await asyncio.sleep(RETRY_S)

    async def _wait(self, timeout_s: float) -> None:
        """Until something changed, and a moment more so that what belongs together is seen together; the larger the
        fleet, the longer, so that observing takes a quarter of the time at most."""
        poked = self._poked
        if self._sources.view().version == self.observer.sources.version:
            await _first(timeout_s, self._mirror.changed(self.observer.snapshot.revision), poked.wait())
        await asyncio.sleep(max(DEBOUNCE_S, 3 * self._observed_in_s))

    def _report(self, plan: Plan, outcome: Outcome, cause: str, decide_s: float, commit_s: float) -> None:
        self.standing.plan = plan
        self.standing.cycles += 1
        measures.record(plan, outcome, self.observer, decide_s, commit_s)
        if plan.moves_something or outcome.lost_compares or outcome.unknown:
            log.info(
                "cycle",
                plan=plan.id,
                cause=cause,
                partitions=plan.partitions,
                unplaced=len(plan.unplaced),
                granted=outcome.granted,
                revoked=outcome.revoked,
                deleted=outcome.deleted,
                quarantined=outcome.quarantined,
                lost_compares=outcome.lost_compares,
                unknown=outcome.unknown,
                decide_s=round(decide_s, 4),
                commit_s=round(commit_s, 4),
            )


class _Timers:
    """When to decide: on changed inputs, at the plan's own wake-up, and for the counters in states."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inputs: tuple[object, ...] | None = None
        self._again = False
        self._wake_at_s: float | None = None
        self._counters_at_s = 0.0

    def due(self, inputs: tuple[object, ...]) -> str:
        """The cause to decide now, or an empty text."""
        now_s = self._clock.monotonic()
        if self._inputs is None:
            return "new term"
        if self._again:
            return "the fleet differed from the plan"
        if inputs != self._inputs:
            return "changed"
        if self._wake_at_s is not None and now_s >= self._wake_at_s:
            return "timer"
        return "counters" if self.counters_due() else ""

    def counters_due(self) -> bool:
        return self._clock.monotonic() >= self._counters_at_s

    def decided(self, inputs: tuple[object, ...], plan: Plan, *, again: bool) -> None:
        now_s = self._clock.monotonic()
        self._inputs, self._again = inputs, again
        self._wake_at_s = None if plan.wake_in_s is None else now_s + plan.wake_in_s
        if self.counters_due():
            self._counters_at_s = now_s + COUNTERS_S

    def wait_s(self) -> float:
        now_s = self._clock.monotonic()
        at_s = min(self._counters_at_s, self._wake_at_s if self._wake_at_s is not None else self._counters_at_s)
        return 0.0 if self._again else max(0.0, at_s - now_s)


async def _aside(act: Callable[[], T], *, size: int) -> T:
    """Runs `act`, on a thread if it is about much: then a cancelled caller leaves only when the thread has ended,
    because they share state."""
    if size < LARGE:
        return act()
    running = asyncio.ensure_future(asyncio.to_thread(act))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def _beside(*together: Coroutine[Any, Any, Any]) -> None:
    """Runs coroutines together until the first one ends, and raises what it raised."""
    tasks = [asyncio.ensure_future(one) for one in together]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


async def _first(timeout_s: float, *events: Coroutine[Any, Any, Any]) -> None:
    """Waits for the first of several events, or for the timeout."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await _beside(*events)
