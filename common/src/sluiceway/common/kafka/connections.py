"""Connections to brokers, one for each (broker, lane): a broker answers one connection in order, so a lane that waits
holds up nobody else.

Not the client library's own pool: that one connects under a single lock, so that one silent broker holds up the
connections to all others, and it asks for metadata in a way that can create topics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import KafkaError

from sluiceway.common.errors import SourceUnavailable
from sluiceway.common.kafka.failures import wrapped
from sluiceway.common.kafka.security import Credentials
from sluiceway.common.kafka.wire import Request

AnswerT = TypeVar("AnswerT")

Address = tuple[str, int]

_CLOSE_TIMEOUT_S = 3.0
_MAX_IDLE_S = 540.0  # just below the ten minutes after which brokers close by default


class Connections:
    """A pool of connections; each is opened when first used and again after it broke."""

    def __init__(self, *, credentials: Callable[[], Credentials], client_id: str, timeout_s: float) -> None:
        self._credentials = credentials
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._open: dict[tuple[Address, str], AIOKafkaConnection] = {}
        self._opening: dict[tuple[Address, str], asyncio.Lock] = {}
        self._closed = False
        # Its errors reach the caller as exceptions; logging them as well would say everything twice.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL + 1)

    async def send(self, address: Address, request: Request[AnswerT], *, lane: str = "") -> AnswerT:
        """Sends a request over the lane's connection and waits for its answer.

        Raises:
            AccessDenied: the broker refuses our credentials or the TLS certificates don't fit.
            SourceUnavailable: no connection, no answer in time, or no version in common. The connection is closed.
        """
        subject = f"broker {address[0]}:{address[1]}"
        connection: AIOKafkaConnection | None = None
        try:
            connection = await self._connection(address, lane)
            answer: AnswerT = await connection.send(request)
        except (KafkaError, OSError, ValueError, AssertionError) as error:  # TimeoutError is an OSError
            if connection is not None and isinstance(error, TimeoutError):
                connection.close()  # answers come in order: after a lost one, none can be told apart
            raise wrapped(error, subject) from error
        return answer

    def is_open(self, address: Address) -> bool:
        """Whether requests to the broker outside of lanes would use an open connection."""
        connection = self._open.get((address, ""))
        return connection is not None and connection.connected()

    async def close_lane(self, address: Address, lane: str) -> None:
        """Closes one connection, if it is open."""
        self._opening.pop((address, lane), None)
        connection = self._open.pop((address, lane), None)
        if connection is not None:
            await _closed([connection])

    async def close(self) -> None:
        """Closes all connections; later sends are refused."""
        self._closed = True
        connections = list(self._open.values())
        self._open.clear()
        await _closed(connections)

    async def _connection(self, address: Address, lane: str) -> AIOKafkaConnection:
        key = (address, lane)
        async with self._opening.setdefault(key, asyncio.Lock()):
            if self._closed:
                raise SourceUnavailable("the cluster's connections are closed")
            connection = self._open.get(key)
            if connection is None or not connection.connected():
                connection = await self._connect(address)
                if self._closed:
                    await _closed([connection])
                    raise SourceUnavailable("the cluster's connections are closed")
                self._open[key] = connection
            return connection

    async def _connect(self, address: Address) -> AIOKafkaConnection:
        known = self._credentials()
        async with asyncio.timeout(self._timeout_s):
            return await create_conn(
                address[0].strip("[]"),
                address[1],
                client_id=self._client_id,
                request_timeout_ms=int(self._timeout_s * 1000),
                max_idle_ms=int(_MAX_IDLE_S * 1000),
                ssl_context=known.ssl_context,
                security_protocol=known.security_protocol,
                sasl_mechanism=known.sasl_mechanism,
                sasl_plain_username=known.username,
                sasl_plain_password=known.password,
            )


async def _closed(connections: list[AIOKafkaConnection]) -> None:
    closing = [connection.close() for connection in connections]
    waiting = [future for future in closing if future is not None]
    if waiting:
        await asyncio.wait(waiting, timeout=_CLOSE_TIMEOUT_S)
