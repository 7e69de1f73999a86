"""The `sluiceway` command: puts the real parts together."""

from __future__ import annotations

import sys

from sluiceway.cli.app import app
from sluiceway.cli.connection import Operator, user_at_host
from sluiceway.common.clock import SystemClock
from sluiceway.common.etcd.client import connect


def main() -> None:
    """Runs one command and exits with its code."""
    app(obj=Operator(connect=connect, clock=SystemClock(), actor=user_at_host(), stdin=sys.stdin.buffer))


if __name__ == "__main__":
    main()
