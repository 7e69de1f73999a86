"""PostgreSQL: the distribution's server if it is installed, else the one in the `pgserver` wheel."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sluiceway.cli.stack.ports import LOOPBACK
from sluiceway.cli.stack.process import LAUNCHER, Server, ServerFailed

INIT_LIMIT_S = 120
USERS_INSTEAD_OF_ROOT = ("postgres", "nobody")


def postgres_available() -> str | None:
    """None when PostgreSQL can be started, otherwise the reason."""
    if _binaries() is None:
        return "no PostgreSQL server: neither the distribution's nor the pgserver wheel's"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL refuses to run as root, and there is no other user"
    return None


class PostgresServer(Server):
    """A PostgreSQL server with one superuser, `postgres`, who needs no password; see `Server` for the options.

    Args:
        durable: sync commits to disk; without it they survive a killed process but not a lost machine.
    """

    port_names = ("postgres",)
    stop_signal = signal.SIGINT  # fast shutdown; SIGTERM would wait for the clients

    def __init__(self, name: str = "postgres", *, durable: bool = False, **options: Any) -> None:
        super().__init__(name, **options)
        self._durable = durable

    @property
    def dsn(self) -> str:
        """A connection URL to the database `postgres`."""
        return f"postgresql://postgres@{LOOPBACK}:{self.ports['postgres']}/postgres"

    def user(self) -> str | None:
        return _unprivileged() if os.geteuid() == 0 else None

    def prepare(self) -> None:
        data = self.directory / "data"
        if data.exists():
            return
        init = [self._binary("initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        command = [*init, "--locale=C", "--no-sync", "--no-instructions"]
        if user := self.user():
            command = [sys.executable, "-I", "-S", str(LAUNCHER), "0", user, *command]
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, timeout=INIT_LIMIT_S, check=False
        )
        if done.returncode != 0:
            shutil.rmtree(data, ignore_errors=True)
            raise ServerFailed(f"{self.name}'s database can't be made: {done.stderr.strip()[-2000:]}")

    def command(self) -> Sequence[str]:
        durability = [] if self._durable else ["-c", "fsync=off", "-c", "full_page_writes=off"]
        listen = ["-h", LOOPBACK, "-p", str(self.ports["postgres"]), "-c", "unix_socket_directories="]
        return [self._binary("postgres"), "-D", str(self.directory / "data"), *listen, *durability]

    def probe(self) -> bool:
        ask = [self._binary("pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.ports["postgres"])]
        return subprocess.run(ask, capture_output=True, timeout=10, check=False).returncode == 0

    def _binary(self, name: str) -> str:
        folder = _binaries()
        if folder is None:
            raise ServerFailed(postgres_available() or "PostgreSQL is missing")
        return str(folder / name)


def _binaries() -> Path | None:
    installed = Path("/usr/lib/postgresql")
    folders = sorted(installed.glob("*/bin"), key=lambda folder: (len(folder.parent.name), folder.parent.name))
    if (wheel := importlib.util.find_spec("pgserver")) and wheel.origin:
        folders.insert(0, Path(wheel.origin).parent / "pginstall" / "bin")
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


def _unprivileged() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in USERS_INSTEAD_OF_ROOT if user in known), None)
