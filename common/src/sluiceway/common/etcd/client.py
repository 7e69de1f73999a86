"""The real etcd behind the `Etcd` contract: gRPC calls, log-in, pages, watches that resume exactly.

Decides nothing: wire.py translates, watching.py keeps a watch's position, members.py holds the connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog
from etcd3aio import _protobuf as pb

from sluiceway.common.errors import AccessDenied, Compacted, EtcdUnavailable, LeaseLost
from sluiceway.common.etcd import wire
from sluiceway.common.etcd.api import Delete, KeyValue, Listing, Newest, Put, Txn, TxnResult, WatchBatch
from sluiceway.common.etcd.members import Member, Members, open_members
from sluiceway.common.etcd.watching import WatchPosition, WatchRefused
from sluiceway.common.secrets import resolve
from sluiceway.common.settings import EtcdSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

PAGE_KEYS = 2000
READ_ATTEMPTS = 3
LIST_ATTEMPTS = 5
PAUSE_S = (0.05, 1.0)  # first and longest pause before a watch connects again
_MEMBER_FAILED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def connect(settings: EtcdSettings) -> EtcdClient:
    """A client that has reached one of the endpoints and, given a user name, is logged in. Close it.

    Raises:
        EtcdUnavailable: no endpoint answers.
        AccessDenied: wrong credentials, or a secret can't be read.
    """
    client = EtcdClient(open_members(settings), settings)
    try:
        await client.log_in()
    except BaseException:
        await client.close()
        raise
    return client


class EtcdClient:
    """An `Etcd` over the network; see `connect`."""

    def __init__(self, members: Members, settings: EtcdSettings) -> None:
        self._members, self._settings = members, settings
        self._token: str | None = None
        self._logging_in = asyncio.Lock()
        self._closed = False

    # Keys

    async def get(self, key: str) -> KeyValue | None:
        response = await self._read(pb.RangeRequest(key=key.encode()))
        return wire.key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        for _ in range(LIST_ATTEMPTS):
            try:
                return await self._list(prefix, revision)
            except Compacted:
                if revision:
                    raise
        raise EtcdUnavailable(f"etcd compacts its history faster than {prefix} can be listed")

    async def newest(self, prefix: str) -> Newest:
        response = await self._read(
            pb.RangeRequest(
                key=wire.prefix_start(prefix),
                range_end=wire.prefix_end(prefix),
                limit=1,
                keys_only=True,
                sort_target=pb.RangeRequest.MOD,
                sort_order=pb.RangeRequest.DESCEND,
            )
        )
        newest = response.kvs[0].mod_revision if response.kvs else 0
        return Newest(response.header.revision, response.count, newest)

    async def txn(self, txn: Txn) -> TxnResult:
        request = wire.txn_request(txn)
        response = await self._call(lambda member, **how: member.kv.Txn(request, **how))
        return wire.txn_result(txn, response, response.header.revision)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        request = wire.put_request(Put(key, value, lease))
        response = await self._call(lambda member, **how: member.kv.Put(request, **how))
        return int(response.header.revision)

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        request = wire.delete_request(Delete(key, prefix))
        response = await self._call(lambda member, **how: member.kv.DeleteRange(request, **how))
        return int(response.deleted)

    # Leases

    async def grant(self, ttl_s: int) -> int:
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        response = await self._call(lambda member, **how: member.lease.LeaseGrant(request, **how))
        return int(response.ID)

    async def keep_alive(self, lease: int) -> float:
        request = pb.LeaseKeepAliveRequest(ID=lease)

        async def once(member: Member, **how: Any) -> float:
            call = member.lease.LeaseKeepAlive(iter([request]), **how)
            try:
                async for response in call:
                    return float(response.TTL)
            finally:
                call.cancel()
            raise EtcdUnavailable("etcd ended the keep-alive without an answer")

        return await self._call(once)

    async def revoke(self, lease: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease)
        with suppress(LeaseLost):
            await self._call(lambda member, **how: member.lease.LeaseRevoke(request, **how))

    # Watching

    async def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        position = WatchPosition(prefix, start_revision)
        pause_s, refused = 0.0, False
        while True:
            try:
                async with aclosing(self._stream(position)) as batches:
                    async for batch in batches:
                        if pause_s:
                            log.info("watch_resumed", prefix=prefix, revision=batch.revision)
                        pause_s, refused = 0.0, False
                        yield batch
            except WatchRefused as error:
                if refused:  # with a fresh log-in, too
                    raise AccessDenied(f"etcd refuses to watch {prefix}: {error}") from error
                refused = True
                await self._log_in_again(self._token)
            except EtcdUnavailable as error:
                if self._closed:
                    raise
                if not pause_s:
                    log.warning("watch_broken", prefix=prefix, revision=position.next_revision - 1, cause=str(error))
                pause_s = min(max(2 * pause_s, PAUSE_S[0]), PAUSE_S[1])
                await asyncio.sleep(pause_s)

    async def _stream(self, position: WatchPosition) -> AsyncGenerator[WatchBatch, None]:
        """One stream of a watch, until it breaks. Reads only what is asked for: gRPC holds the rest back."""
        self._must_be_open()
        member = self._members.current()
        call = member.watch.Watch(metadata=self._metadata())
        member.streams.add(call)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                with suppress(asyncio.InvalidStateError):  # it failed already; reading tells how
                    await call.write(position.request())
                response = await self._next_response(call)
            if response.created and response.header.revision < position.next_revision - 1:
                await self._check_history(position.next_revision - 1)
            while True:
                if (batch := position.take(response)) is not None:
                    yield batch
                response = await self._next_response(call)
        except TimeoutError:
            self._members.failed(member)
            raise EtcdUnavailable(f"etcd {member.endpoint} did not open a watch in time") from None
        except grpc.aio.AioRpcError as error:
            if error.code() in _MEMBER_FAILED:
                self._members.failed(member)
            raise wire.translated(error) from error
        finally:
            member.streams.discard(call)
            call.cancel()

    async def _next_response(self, call: Any) -> Any:
        try:
            response = await call.read()
        except asyncio.CancelledError:
            if _own_task_cancelled():
                raise
            raise EtcdUnavailable("the watch's connection was given up") from None
        if response is grpc.aio.EOF:
            raise EtcdUnavailable("etcd ended the watch")
        return response

    async def _check_history(self, seen_revision: int) -> None:
        """A member may lag behind; a whole cluster behind what was seen has lost history.

        Raises:
            Compacted: what was seen is no longer etcd's history.
        """
        response = await self._read(pb.RangeRequest(key=b"\0", keys_only=True))
        if response.header.revision < seen_revision:
            raise Compacted(response.header.revision + 1)

    # Logging in

    async def log_in(self) -> None:
        """Reaches a member, and gets a token if there is a user name.

        Raises:
            EtcdUnavailable: no member answers.
            AccessDenied: wrong credentials.
        """
        for attempt in range(max(READ_ATTEMPTS, len(self._members))):
            try:
                self._token = await self._fetch_token(self._members.current())
                return
            except EtcdUnavailable:
                if attempt + 1 >= max(READ_ATTEMPTS, len(self._members)):
                    raise
                await asyncio.sleep(PAUSE_S[0])

    async def _fetch_token(self, member: Member) -> str | None:
        how = {"timeout": self._settings.timeout_s}
        try:
            if self._settings.username is None:
                await member.maintenance.Status(pb.StatusRequest(), **how)
                return None
            password = resolve(self._settings.password) if self._settings.password else ""
            request = pb.AuthenticateRequest(name=self._settings.username, password=password)
            return str((await member.auth.Authenticate(request, **how)).token)
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return None
            if error.code() in _MEMBER_FAILED:
                self._members.failed(member)
            raise wire.translated(error) from error

    async def _log_in_again(self, refused_token: str | None) -> None:
        async with self._logging_in:
            if self._token == refused_token:  # else another call has done it meanwhile
                await self.log_in()

    def _metadata(self) -> Metadata:
        leader: Metadata = (("hasleader", "true"),)  # a member cut off from the leader ends its calls
        return leader if self._token is None else (*leader, ("token", self._token))

    # Calling

    async def _call(self, send: Callable[..., Awaitable[T]], *, revision: int = 0) -> T:
        """One call, sent once; after a refused token, which no call survives, once more with a new one."""
        try:
            return await self._send(send, revision)
        except _TokenRefused as error:
            await self._log_in_again(error.token)
        try:
            return await self._send(send, revision)
        except _TokenRefused as error:
            raise AccessDenied("etcd refuses the token that it has just given") from error

    async def _send(self, send: Callable[..., Awaitable[T]], revision: int) -> T:
        self._must_be_open()
        member, token = self._members.current(), self._token
        try:
            return await send(member, timeout=self._settings.timeout_s, metadata=self._metadata())
        except asyncio.CancelledError:
            if _own_task_cancelled():
                raise
            raise EtcdUnavailable("the client was closed during a call") from None
        except grpc.aio.AioRpcError as error:
            if self._settings.username is not None and wire.token_refused(error):
                raise _TokenRefused(token) from error
            if error.code() in _MEMBER_FAILED:
                self._members.failed(member)
            raise wire.translated(error, revision=revision) from error

    async def _read(self, request: Any) -> Any:
        attempts = max(READ_ATTEMPTS, len(self._members))
        for attempt in range(attempts):
            try:
                return await self._call(
                    lambda member, **how: member.kv.Range(request, **how), revision=request.revision
                )
            except EtcdUnavailable:
                if attempt + 1 == attempts or self._closed:
                    raise
                await asyncio.sleep(PAUSE_S[0] * 2**attempt)
        raise AssertionError("unreachable")

    async def _list(self, prefix: str, revision: int) -> Listing:
        start, end, limit = wire.prefix_start(prefix), wire.prefix_end(prefix), PAGE_KEYS
        items: list[KeyValue] = []
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
            try:
                page = await self._read(request)
            except EtcdUnavailable as error:
                if limit == 1 or not wire.too_large(error.__cause__):
                    raise
                limit //= 2
                continue
            items.extend(map(wire.key_value, page.kvs))
            revision = revision or page.header.revision
            if not page.more:
                return Listing(revision, items)
            start = page.kvs[-1].key + b"\0"

    def _must_be_open(self) -> None:
        if self._closed:
            raise EtcdUnavailable("this client is closed")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._members.close()


def _own_task_cancelled() -> bool:
    """Tells a cancellation of the caller's task from one of just the gRPC call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _TokenRefused(Exception):
    def __init__(self, token: str | None) -> None:
        super().__init__("etcd refuses the token")
        self.token = token
