"""Leader election: whoever creates the key leads, and the key's create_revision is the term.

The key hangs on the candidate's session, so a dead leader's term ends with its etcd lease. A paused leader may believe
in its term for longer: every write of a leader must carry `Term.guard()`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

from sluiceway.common.errors import Compacted, EtcdUnavailable
from sluiceway.common.etcd.api import Compare, Delete, Etcd, Get, KeyValue, Put, Txn, absent, created_at
from sluiceway.common.etcd.session import Session

RETRY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One reign. Terms of one key only rise."""

    key: str
    number: int

    def guard(self) -> Compare:
        """Holds while this term lasts; the first compare of every transaction of a leader."""
        return created_at(self.key, self.number)


class Election:
    """One candidate for the leadership at `key`, for the length of its session."""

    def __init__(self, etcd: Etcd, session: Session, *, key: str, candidate: str) -> None:
        self._etcd, self._session = etcd, session
        self._key, self._candidate = key, candidate

    async def campaign(self) -> Term:
        """Waits until nobody leads and leads. Goes on while etcd can't be reached.

        Raises:
            LeaseLost: the session ended.
            AccessDenied: etcd refuses this process.
        """
        while True:
            self._session.check()
            try:
                term = await self._attempt()
            except EtcdUnavailable:  # if the key was created all the same, the next attempt finds it
                await asyncio.sleep(RETRY_S)
                continue
            if term is not None:
                return term

    async def _attempt(self) -> Term | None:
        """Leads, or waits until the present leader's key is gone."""
        put = Put(self._key, self._candidate.encode(), self._session.id)
        result = await self._etcd.txn(Txn([absent(self._key)], [put], [Get(self._key)]))
        if result.succeeded:
            return Term(key=self._key, number=result.revision)
        (leader,) = result.results
        assert isinstance(leader, KeyValue)
        if leader.lease == self._session.id:
            return Term(key=self._key, number=leader.create_revision)
        await self._vacant(result.revision + 1)
        return None

    async def resign(self, term: Term) -> None:
        """Ends the term if it lasts still.

        Raises:
            EtcdUnavailable: it may last until the session ends.
        """
        await self._etcd.txn(Txn([term.guard()], [Delete(self._key)]))

    async def _vacant(self, start_revision: int) -> None:
        try:
            async with aclosing(self._etcd.watch(self._key, start_revision=start_revision)) as batches:
                async for batch in batches:
                    if any(event.key == self._key and event.item is None for event in batch.events):
                        return
        except Compacted:
            return  # the campaign's next transaction looks
