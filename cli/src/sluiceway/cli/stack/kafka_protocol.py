"""Asks a Kafka broker, by hand and without asyncio, whether it serves.

Role: readiness of the brokers of the stack. The product speaks Kafka through aiokafka; this is one request only.
"""

from __future__ import annotations

import socket
import struct

from sluiceway.cli.stack.ports import LOOPBACK

METADATA = 3
VERSION = 1
CORRELATION = 7
MAX_RESPONSE_BYTES = 1 << 20


def known_brokers(port: int, *, timeout_s: float = 2.0) -> int:
    """How many brokers the broker on the loopback port names in an answer to a metadata request for no topic.

    Raises:
        OSError: nothing usable answered.
    """
    with socket.create_connection((LOOPBACK, port), timeout=timeout_s) as sock:
        request = struct.pack(">hhih", METADATA, VERSION, CORRELATION, -1) + struct.pack(">i", 0)
        sock.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _read(sock, 4))
        if not 8 <= size <= MAX_RESPONSE_BYTES:
            raise ConnectionError(f"an answer of {size} bytes")
        correlation, brokers = struct.unpack(">ii", _read(sock, size)[:8])
        if correlation != CORRELATION:
            raise ConnectionError("an answer to another request")
        return int(brokers)


def _read(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise ConnectionError("the broker closed the connection")
        parts += part
    return bytes(parts)
