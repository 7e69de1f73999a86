"""The lease agent: one session after another, and in each the runners that the inbox asks for.

Role: registers the worker, follows its inbox, starts, stops and replaces runners, gives leases back, reports usage.
Neighbours: the scheduler through etcd keys only; `runner` does the work. It must never decide what it holds, and
nothing of it may outlive the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import structlog

from sluiceway.common.clock import Clock
from sluiceway.common.errors import AccessDenied, EtcdUnavailable, LeaseLost
from sluiceway.common.etcd.api import Delete, Etcd, KeyValue, Put, Txn, absent, created_at
from sluiceway.common.etcd.mirror import Mirror
from sluiceway.common.etcd.session import Session
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import (
    CordonRecord,
    FailureRecord,
    InboxRecord,
    LeaseState,
    LoadReport,
    WorkerRecord,
    decode,
    encode,
)
from sluiceway.worker import usage as metrics
from sluiceway.worker.failures import Failure, classify, is_etcd_outage, record
from sluiceway.worker.usage import Usage

log = structlog.get_logger()
RETRY_S = 0.5
RELIEF_INTERVAL_S = 0.2
MAX_REPORTED = 3000  # partitions in one report, the busiest: etcd takes values of 1.5 MiB


class Work(Protocol):
    """What a lease is held for; see `runner.Runner`."""

    @property
    def usage(self) -> Usage: ...

    @property
    def buffered_bytes(self) -> int: ...

    async def run(self) -> None: ...

    def stop(self) -> None: ...

    def relieve(self) -> None: ...


class Assembly(Protocol):
    """Builds runners and knows what the whole process uses."""

    async def runner(self, partition: PartitionId, token: int, session: Session) -> Work:
        """A runner that is ready to run.

        Raises:
            SluicewayError: the spec is gone, the cluster or the sink can't be used.
        """

    def spec_hash(self, partition: PartitionId) -> str:
        """The version of the specs that a new runner would get; empty when the pipeline is gone."""

    def process_usage(self) -> tuple[float, int]:
        """CPU seconds used so far and resident bytes now."""

    def buffered_bytes(self) -> int: ...

    def relieve_memory(self, runners: Mapping[str, Work]) -> None:
        """Asks runners to cut where memory is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How the worker introduces itself; `record.session` is filled in by each session."""

    record: WorkerRecord
    ttl_s: int
    margin_s: float
    report_interval_s: float
    drain_timeout_s: float


@dataclass(slots=True, kw_only=True)
class _Held:
    token: int
    spec_hash: str
    task: asyncio.Task[None]
    runner: Work | None = None
    stopped: bool = False


@dataclass(slots=True)
class _Life:
    """What belongs to one session and dies with it."""

    session: Session
    tasks: asyncio.TaskGroup
    held: dict[PartitionId, _Held] = field(default_factory=dict)
    ended: dict[PartitionId, int] = field(default_factory=dict)  # tokens that are over, though the inbox may lag
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # the inbox, a spec or a runner's end
    released: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseAgent:
    """Holds leases for one worker until it is drained."""

    def __init__(
        self, identity: Identity, *, etcd: Etcd, keys: Keys, clock: Clock, specs: Mirror, assembly: Assembly
    ) -> None:
        self._identity, self._etcd, self._keys, self._clock = identity, etcd, keys, clock
        self._specs, self._assembly = specs, assembly
        self._draining = asyncio.Event()
        self._session: Session | None = None
        self._sequence = 0

    def drain(self) -> None:
        """Starts to give everything back; `run` returns when that is done."""
        self._draining.set()

    def problem(self) -> str | None:
        """Why the worker is not ready, or None."""
        if self._session is None:
            return "no session: waiting for etcd, or for an earlier session with this id to end"
        return "draining" if self._draining.is_set() else None

    async def run(self) -> None:
        """One session after another until drained. A lost session is never resumed."""
        while not self._draining.is_set():
            try:
                await self._live()
            except* (LeaseLost, EtcdUnavailable, AccessDenied) as lost:
                log.warning("session_lost", reason=str(lost.exceptions[0]))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), RETRY_S)

    async def _live(self) -> None:
        session = await Session.open(
            self._etcd, self._clock, ttl_s=self._identity.ttl_s, margin_s=self._identity.margin_s
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                background: list[asyncio.Task[None]] = [tasks.create_task(session.run(), name="session")]
                if await self._register(session):
                    self._session = session
                    life = _Life(session, tasks)
                    background += self._start_background(life)
                    await self._draining.wait()
                    await self._give_everything_back(life)
                for task in background:
                    task.cancel()
        finally:
            self._session = None
            with contextlib.suppress(EtcdUnavailable, AccessDenied):
                await session.close()  # nothing of this session runs any more: others may take over at once

    def _start_background(self, life: _Life) -> list[asyncio.Task[None]]:
        inbox = Mirror(self._etcd, self._keys.inbox(self._identity.record.id))
        works: dict[str, Coroutine[Any, Any, None]] = {
            "inbox": inbox.run(),
            "watch inbox": _signal(inbox, life.changed),
            "watch specs": _signal(self._specs, life.changed),
            "reconcile": self._reconcile_for_ever(inbox, life),
            "report": self._report_for_ever(life),
            "relieve": self._relieve_for_ever(life),
        }
        return [life.tasks.create_task(work, name=name) for name, work in works.items()]

    async def _register(self, session: Session) -> bool:
        """Puts `workers/<id>`; while another session has this id, waits for it to end. False when drained meanwhile."""
        key = self._keys.worker(self._identity.record.id)
        record = msgspec.structs.replace(self._identity.record, session=session.id, started_at=self._clock.now())
        said = False
        while not self._draining.is_set():
            session.check()
            with contextlib.suppress(EtcdUnavailable):
                done = await self._etcd.txn(Txn([absent(key)], [Put(key, encode(record), session.id)]))
                kept = None if done.succeeded else await self._etcd.get(key)
                if done.succeeded or (kept is not None and kept.lease == session.id):
                    log.info("session_open", session=session.id, ttl_s=self._identity.ttl_s)
                    return True
                if not said:
                    said = True
                    log.warning("worker_id_taken", reason="another session with this id has not ended yet")
            await asyncio.sleep(RETRY_S)
        return False

    async def _reconcile_for_ever(self, inbox: Mirror, life: _Life) -> None:
        while True:
            await life.changed.wait()
            life.changed.clear()
            if inbox.loaded and self._specs.loaded:
                self._reconcile(inbox.snapshot().items, life)

    async def _relieve_for_ever(self, life: _Life) -> None:
        while True:
            await asyncio.sleep(RELIEF_INTERVAL_S)
            self._assembly.relieve_memory({str(p): h.runner for p, h in life.held.items() if h.runner is not None})

    def _reconcile(self, items: Mapping[str, KeyValue], life: _Life) -> None:
        """Makes the runners what the inbox says. Each token is run once, whatever an inbox that lags still says."""
        wanted = self._entries(items, life.session.id)
        life.ended = {partition: token for partition, token in life.ended.items() if partition in wanted}
        for partition, held in list(life.held.items()):
            item = wanted.get(partition)
            if item is None or item.create_revision != held.token:
                _cancel(held)
            elif _revoking(item) or held.spec_hash not in ("", self._assembly.spec_hash(partition)):
                self._stop(held)
        for partition, item in sorted(wanted.items()):
            is_new = partition not in life.held and item.create_revision != life.ended.get(partition)
            if is_new and not self._draining.is_set():
                self._start(partition, item.create_revision, life, release_only=_revoking(item))
        metrics.LEASES.set(len(life.held))

    def _entries(self, items: Mapping[str, KeyValue], session: int) -> dict[PartitionId, KeyValue]:
        """This session's inbox by partition; a key that names none is nobody's."""
        prefix, found = self._keys.inbox(self._identity.record.id), {}
        for key, item in items.items():
            with contextlib.suppress(ValueError):
                if item.lease == session:
                    found[PartitionId.parse(key.removeprefix(prefix))] = item
        return found

    def _start(self, partition: PartitionId, token: int, life: _Life, *, release_only: bool) -> None:
        work = self._release(partition, token, None, life) if release_only else self._hold(partition, token, life)
        task = life.tasks.create_task(work, name=f"hold {partition}")
        life.held[partition] = _Held(token=token, spec_hash=self._assembly.spec_hash(partition), task=task)
        task.add_done_callback(lambda _: self._ended(partition, life))

    def _ended(self, partition: PartitionId, life: _Life) -> None:
        life.ended[partition] = life.held.pop(partition).token
        metrics.LAG.remove(str(partition))
        metrics.LEASES.set(len(life.held))
        life.released.set()
        life.changed.set()

    @staticmethod
    def _stop(held: _Held) -> None:
        if held.stopped:
            return
        held.stopped = True
        if held.runner is not None:
            held.runner.stop()

    async def _hold(self, partition: PartitionId, token: int, life: _Life) -> None:
        """Runs the partition to its end under this token, then gives the lease back."""
        failure: Failure | None = None
        bound = log.bind(partition=str(partition), token=token)
        try:
            held = life.held[partition]
            if not held.spec_hash:  # the scheduler saw the specs when it granted: so must we
                await self._specs.wait_for(token)
                held.spec_hash = self._assembly.spec_hash(partition)
            runner = await self._assembly.runner(partition, token, life.session)
            held.runner = runner
            if held.stopped:
                runner.stop()
            bound.info("lease_started")
            await runner.run()
        except LeaseLost as lost:
            life.session.check()  # the session's own end is the session's affair
            bound.warning("lease_lost", reason=str(lost))
        except Exception as error:
            failure = None if is_etcd_outage(error) else classify(error)
            if failure is not None:
                bound.warning("lease_failed", kind=failure.kind, error=failure.error, traceback=failure.traceback)
        await self._release(partition, token, failure, life)

    async def _release(self, partition: PartitionId, token: int, failure: Failure | None, life: _Life) -> None:
        """Gives one lease back, guarded by its token; leaves a failure record behind when it failed."""
        lease, inbox = self._keys.lease(partition), self._keys.inbox_entry(self._identity.record.id, partition)
        while True:
            life.session.check()
            try:
                then: list[Put | Delete] = [Delete(lease), Delete(inbox)]
                if failure is not None:
                    then.append(await self._failure_record(partition, failure))
                released = await self._etcd.txn(Txn([created_at(lease, token)], then))
            except EtcdUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            log.info("lease_released", partition=str(partition), token=token, by_us=released.succeeded)
            return

    async def _failure_record(self, partition: PartitionId, failure: Failure) -> Put:
        key = self._keys.failure(partition)
        item = await self._etcd.get(key)
        before = None
        if item is not None:
            with contextlib.suppress(msgspec.DecodeError):  # of another version: counting starts anew
                before = decode(FailureRecord, item.value)
        after = record(failure, before=before, worker=self._identity.record.id, at=self._clock.now())
        return Put(key, encode(after))

    async def _give_everything_back(self, life: _Life) -> None:
        """Draining: no new grants, every runner stops and releases; past the time limit the rest is dropped."""
        worker = self._identity.record.id
        cordon = CordonRecord(worker=worker, drain=True, by=worker, reason="shutting down", at=self._clock.now())
        with contextlib.suppress(EtcdUnavailable):
            await self._etcd.txn(
                Txn(
                    [absent(self._keys.cordon(worker))],
                    [Put(self._keys.cordon(worker), encode(cordon), life.session.id)],
                )
            )
        log.info("draining", leases=len(life.held))
        try:
            async with asyncio.timeout(self._identity.drain_timeout_s):
                while life.held:
                    for held in life.held.values():
                        self._stop(held)
                    life.released.clear()
                    await life.released.wait()
        except TimeoutError:
            log.warning("drain_timeout", dropped=len(life.held))
            for held in life.held.values():
                _cancel(held)
        log.info("drained")

    async def _report_for_ever(self, life: _Life) -> None:
        before, cpu_before = self._clock.monotonic(), self._assembly.process_usage()[0]
        while True:
            await asyncio.sleep(self._identity.report_interval_s)
            now, (cpu, rss) = self._clock.monotonic(), self._assembly.process_usage()
            report = self._report(life, interval_s=now - before, cpu_s=cpu - cpu_before, rss_bytes=rss)
            before, cpu_before = now, cpu
            with contextlib.suppress(EtcdUnavailable):
                life.session.check()
                await self._etcd.put(self._keys.load(self._identity.record.id), encode(report), lease=life.session.id)

    def _report(self, life: _Life, *, interval_s: float, cpu_s: float, rss_bytes: int) -> LoadReport:
        """The loop's own CPU time is shared out by bytes, since runners share one event loop."""
        usages = {str(p): h.runner.usage for p, h in sorted(life.held.items()) if h.runner is not None}
        total_bytes = sum(usage.bytes_in for usage in usages.values())
        loop_cpu_s = max(0.0, cpu_s - sum(usage.cpu_s for usage in usages.values()))
        share = loop_cpu_s / total_bytes if total_bytes else 0.0
        self._sequence += 1
        for name, usage in usages.items():
            if usage.log_end >= 0:
                metrics.LAG.labels(name).set(max(0, usage.log_end - usage.position))
        metrics.BUFFERED.set(self._assembly.buffered_bytes())
        partitions = {
            name: usage.report(interval_s=interval_s, loop_cpu_s=usage.bytes_in * share)
            for name, usage in usages.items()
        }
        busiest = heapq.nlargest(MAX_REPORTED, partitions, key=lambda name: partitions[name].bytes_in)
        return LoadReport(
            worker=self._identity.record.id,
            sequence=self._sequence,
            interval_s=interval_s,
            cpu_s=cpu_s,
            rss_bytes=rss_bytes,
            buffered_bytes=self._assembly.buffered_bytes(),
            partitions={name: partitions[name] for name in busiest},
        )


def _cancel(held: _Held) -> None:
    """Once: a second time would interrupt the runner while it cleans up."""
    if not held.task.cancelling():
        held.task.cancel()


def _revoking(item: KeyValue) -> bool:
    """Whether the lease is asked back; what only a newer version can read changes nothing."""
    try:
        return decode(InboxRecord, item.value).state is LeaseState.REVOKING
    except msgspec.DecodeError:
        return False


async def _signal(mirror: Mirror, changed: asyncio.Event) -> None:
    """Sets `changed` at each change of the mirror, and once it is loaded."""
    revision = -1
    while True:
        await mirror.changed(revision)
        revision = mirror.revision
        changed.set()
