"""A process's session: one etcd lease, kept alive, with a deadline on the local clock.

Keys attached to `Session.id` vanish when the process dies. The process itself must stop earlier than etcd notices:
the deadline counts from when the last acknowledged keep-alive was *sent*, so no clock of another machine is trusted.
A lost session is never resumed; open a new one.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog

from sluiceway.common.clock import Clock
from sluiceway.common.errors import EtcdUnavailable, LeaseLost
from sluiceway.common.etcd.api import Etcd

log = structlog.get_logger(__name__)


class Session:
    """An etcd lease that this process may rely on until `remaining_s()` is 0. Run `run()` beside the work."""

    def __init__(self, etcd: Etcd, clock: Clock, *, lease: int, sent_s: float, ttl_s: int, margin_s: float) -> None:
        self._etcd, self._clock = etcd, clock
        self._ttl_s, self._margin_s = ttl_s, margin_s
        self._deadline_s = sent_s + ttl_s - margin_s
        self._lost: str | None = None
        self.id = lease

    @classmethod
    async def open(cls, etcd: Etcd, clock: Clock, *, ttl_s: int, margin_s: float) -> Session:
        """Gets a new etcd lease of `ttl_s` seconds; side effects end `margin_s` seconds before it can end.

        Raises:
            EtcdUnavailable, AccessDenied: no session; a lease that etcd may have made ends by itself.
        """
        if not 0 <= margin_s < ttl_s:
            raise ValueError(f"the margin of {margin_s} s must be shorter than the TTL of {ttl_s} s")
        sent_s = clock.monotonic()
        lease = await etcd.grant(ttl_s)
        return cls(etcd, clock, lease=lease, sent_s=sent_s, ttl_s=ttl_s, margin_s=margin_s)

    def remaining_s(self) -> float:
        """Seconds for which side effects are still allowed; 0 when the session is lost."""
        return 0.0 if self._lost else max(0.0, self._deadline_s - self._clock.monotonic())

    def check(self) -> None:
        """Call before every side effect.

        Raises:
            LeaseLost: the deadline has passed or etcd ended the lease. It stays so for ever.
        """
        if self._lost is None and self._clock.monotonic() >= self._deadline_s:
            self._lost = f"no keep-alive acknowledged for {self._ttl_s - self._margin_s:g} s"
        if self._lost:
            raise LeaseLost(f"session {self.id:x} is lost: {self._lost}")

    async def run(self) -> NoReturn:
        """Keeps the lease alive every third of its TTL, sooner after an error.

        Raises:
            LeaseLost: the session is lost.
            AccessDenied: etcd refuses this process.
        """
        interval_s, retry_s = self._ttl_s / 3, self._ttl_s / 30
        failing = False
        while True:
            await asyncio.sleep(min(retry_s if failing else interval_s, self.remaining_s()))
            self.check()
            acknowledged = await self._keep_alive()
            if failing is acknowledged:
                failing = not acknowledged
                log.warning("session_keep_alive", session=f"{self.id:x}", failing=failing)

    async def close(self) -> None:
        """Ends the session and deletes its keys; without etcd they vanish when the TTL has passed."""
        self._lost = self._lost or "it is closed"
        try:
            await self._etcd.revoke(self.id)
        except EtcdUnavailable as error:
            log.warning("session_not_revoked", session=f"{self.id:x}", error=str(error))

    async def _keep_alive(self) -> bool:
        """One attempt within the deadline; true if acknowledged."""
        sent_s = self._clock.monotonic()
        try:
            async with asyncio.timeout(self.remaining_s()):
                ttl_s = await self._etcd.keep_alive(self.id)
        except (EtcdUnavailable, TimeoutError):
            self.check()
            return False
        self.check()  # an answer after the deadline revives nothing
        if ttl_s <= 0:
            self._lost = "etcd has ended its lease"
            self.check()
        self._deadline_s = sent_s + min(ttl_s, self._ttl_s) - self._margin_s
        return True
