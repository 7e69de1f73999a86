"""Free loopback ports, outside of the range that the kernel gives to outgoing connections.

From inside that range a client that keeps trying a stopped server's port could take it, or even connect to itself.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

LOOPBACK = "127.0.0.1"
FIRST_PORT = 15_000
TRIES = 1_000


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A different free port for each name. Another process may still take one before it is used.

    Raises:
        OSError: no free port was found.
    """
    below = _first_outgoing_port()
    chosen: dict[str, int] = {}
    with ExitStack() as held:
        for name in names:
            for _ in range(TRIES):
                sock = held.enter_context(socket.socket())
                # Seeded by the system, so that processes that start together don't try the same ports.
                port = random.SystemRandom().randrange(FIRST_PORT, below)
                try:
                    sock.bind((LOOPBACK, port))
                except OSError:
                    continue
                chosen[name] = port
                break
            else:
                raise OSError(f"no free port found between {FIRST_PORT} and {below}")
    return chosen


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _first_outgoing_port() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return 32_768
    first = int(text.split()[0])
    return first if first > FIRST_PORT + 1_000 else 32_768
