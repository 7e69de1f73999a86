"""A local copy of everything below one prefix of etcd, that is never wrong: exact as of its revision.

List at revision R, watch from R + 1. Whenever the watch can't promise every event (history compacted, etcd restored
from a backup), list again and take over the difference. Readers get immutable snapshots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

import structlog

from sluiceway.common.errors import Compacted, EtcdUnavailable
from sluiceway.common.etcd.api import Etcd, Event, KeyValue, Listing

log = structlog.get_logger(__name__)

BACKOFF_S = (0.1, 2.0)  # first and longest pause while etcd can't be reached


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every key below the mirror's prefix as of one revision. Never changes."""

    revision: int
    items: Mapping[str, KeyValue]


class Mirror:
    """Follows a prefix while `run()` runs.

    `resyncs` counts the listings after the first, `events` the events taken from the watch.
    """

    def __init__(self, etcd: Etcd, prefix: str, *, confirm_after_s: float = 0.5) -> None:
        self._etcd, self._prefix = etcd, prefix
        self._confirm_after_s = confirm_after_s
        self._items: dict[str, KeyValue] = {}
        self._snapshot: Snapshot | None = None
        self._changed_at = 0
        self._advanced = asyncio.Event()
        self.revision = 0
        self.loaded = False
        self.resyncs = 0
        self.events = 0

    def snapshot(self) -> Snapshot:
        """The present copy; costs nothing unless it is the first one since a change."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self.revision, MappingProxyType(self._items))
        elif self._snapshot.revision != self.revision:
            self._snapshot = Snapshot(self.revision, self._snapshot.items)
        return self._snapshot

    async def wait_for(self, revision: int) -> Snapshot:
        """Waits until everything up to `revision` is in the copy.

        A revision that touched nothing below the prefix is never announced by etcd, so after a while this asks.
        """
        while not self.loaded or self.revision < revision:
            advanced = self._advanced
            try:
                async with asyncio.timeout(self._confirm_after_s):
                    await advanced.wait()
            except TimeoutError:
                await self._confirm()
        return self.snapshot()

    async def changed(self, after_revision: int) -> Snapshot:
        """Waits until a key was changed after `after_revision` (or the whole keyspace went back before it)."""
        while not self.loaded or self._changed_at <= after_revision <= self.revision:
            await self._advanced.wait()
        return self.snapshot()

    async def run(self) -> NoReturn:
        """Keeps the copy up to date for ever, through any failure of etcd.

        Raises:
            AccessDenied: etcd refuses this process.
        """
        pause_s = 0.0
        while True:
            try:
                await self._load()
                pause_s = 0.0
                await self._follow()
            except Compacted as error:
                log.info("mirror_resync", prefix=self._prefix, revision=self.revision, cause=str(error))
            except EtcdUnavailable as error:
                if not pause_s:
                    log.warning("mirror_interrupted", prefix=self._prefix, revision=self.revision, cause=str(error))
                pause_s = min(max(2 * pause_s, BACKOFF_S[0]), BACKOFF_S[1])
                await asyncio.sleep(pause_s)

    async def _load(self) -> None:
        listing = await self._etcd.list(self._prefix)
        self.resyncs += self.loaded
        self._replace(listing)
        log.info("mirror_loaded", prefix=self._prefix, revision=listing.revision, keys=len(listing.items))

    async def _follow(self) -> None:
        async with aclosing(self._etcd.watch(self._prefix, start_revision=self.revision + 1)) as batches:
            async for batch in batches:
                self._take(batch.events)
                self._advance(batch.revision)

    async def _confirm(self) -> None:
        """Asks etcd whether the copy lacks anything; if not, it is as good as of the answer's revision."""
        if not self.loaded:
            return
        try:
            newest = await self._etcd.newest(self._prefix)
        except EtcdUnavailable:
            return
        # Nothing newer and as many keys: no key was written or created, so none can have been deleted and stay so.
        if newest.mod_revision <= self.revision and newest.count == len(self._items):
            self._advance(newest.revision)

    def _take(self, events: list[Event]) -> None:
        fresh = [event for event in events if event.mod_revision > self.revision]
        if not fresh:
            return  # `_confirm` was quicker: a key came and went between two looks
        items = self._own_items()
        for event in fresh:
            if event.item is None:
                items.pop(event.key, None)
            else:
                items[event.key] = event.item
        self.events += len(fresh)
        self._changed_at = fresh[-1].mod_revision

    def _replace(self, listing: Listing) -> None:
        items = {item.key: item for item in listing.items}
        if items != self._items or not self.loaded:
            self._items, self._snapshot = items, None
            self._changed_at = listing.revision
        self.revision = listing.revision
        self.loaded = True
        self._wake()

    def _advance(self, revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
            self._wake()

    def _own_items(self) -> dict[str, KeyValue]:
        """The items to change: a copy if a snapshot shows them."""
        if self._snapshot is not None:
            self._items, self._snapshot = self._items.copy(), None
        return self._items

    def _wake(self) -> None:
        self._advanced.set()
        self._advanced = asyncio.Event()
