"""One server as a child process: started, waited for, stopped, killed, paused, restarted.

Role: what all servers of the stack share. Neighbours: the servers beside it say which command to run and when it is
ready. It must not know any of them.

A server can't outlive the process that started it: on Linux the kernel kills it when the parent ends, even by
SIGKILL, unless it was started as `detached`. Servers and their children are signalled by their process group only.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

from sluiceway.cli.stack.ports import LOOPBACK, free_ports, is_free
from sluiceway.common.errors import SluicewayError

POLL_S = 0.03
KILL_LIMIT_S = 5.0
PORT_TRIES = 4
TAIL_LINES = 30
LAUNCHER = Path(__file__).with_name("launch.py")

# The kernel ties a child to the thread that started it, so all are started by one thread that lives as long as we do.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-spawner")


class ServerFailed(SluicewayError):
    """A server did not start, or ended when it should not. The message shows the end of its log and where that is."""


class Server:
    """A server process with its own folder, log and loopback ports.

    Subclasses name their ports in `port_names` and implement `command` and `probe`, and `prepare` for files that must
    be there first. As a context manager it starts on entry and stops on exit; after an exception the log is kept
    (what it stored is not) and the exception carries a note that says where.

    Args:
        name: what it is called in logs and errors.
        directory: its folder; by default a new temporary one, removed by `stop`.
        ports: fixed ports by name; the others are chosen freely, and again when another process snatches one.
        keep: leave the temporary folder where it is.
        detached: let it live on when this process ends.
        start_limit_s: how long it may take until ready.
        stop_limit_s: how long it may take to end after `stop_signal` before SIGKILL follows.
    """

    port_names: ClassVar[tuple[str, ...]] = ()
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(
        self,
        name: str,
        *,
        directory: Path | None = None,
        ports: Mapping[str, int] | None = None,
        keep: bool = False,
        detached: bool = False,
        start_limit_s: float = 60.0,
        stop_limit_s: float = 15.0,
    ) -> None:
        self.name = name
        self._given_directory = directory.absolute() if directory else None
        self._directory = self._given_directory
        self._given_ports = dict(ports or {})
        self._ports = dict(self._given_ports) if set(self._given_ports) == set(self.port_names) else {}
        self._keep = keep
        self._detached = detached
        self._start_limit_s = start_limit_s
        self._stop_limit_s = stop_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._was_ready = False

    # What a subclass says.

    def command(self) -> Sequence[str]:
        """The absolute path of the executable and its arguments."""
        raise NotImplementedError

    def probe(self) -> bool:
        """Whether the server serves now; an OSError or an HTTP error counts as no."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Writes the files that the command needs. Called before each start."""

    def environment(self) -> Mapping[str, str]:
        """Environment variables to add to our own."""
        return {}

    def user(self) -> str | None:
        """The user to run as, if another than our own."""
        return None

    def litter(self) -> Sequence[Path]:
        """Files outside of the folder that the server leaves behind."""
        return ()

    # What a caller does.

    def start(self) -> Self:
        """Starts the server and waits until it serves; nothing happens if it runs already.

        Raises:
            ServerFailed: it ended, or was not ready in time; it is not running then.
        """
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Starts the process without waiting, so that several servers can start at the same time."""
        if self.alive:
            return
        if not self._ports:
            free = free_ports([name for name in self.port_names if name not in self._given_ports])
            self._ports = free | self._given_ports
        self.directory.mkdir(parents=True, exist_ok=True)
        if user := self.user():
            entry = pwd.getpwnam(user)
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        self.prepare()
        try:
            self._process = _spawner.submit(self._spawn).result()
        except OSError as error:
            raise ServerFailed(f"{self.name} can't be started: {error}") from error

    def wait_ready(self) -> None:
        """Waits until the server serves; see `start`."""
        deadline = time.monotonic() + self._start_limit_s
        tries = PORT_TRIES
        while not (self._serves() and self.alive):
            if not self.alive:
                tries -= 1
                if not (tries and self._moved_from_snatched_ports()):
                    self._fail(f"ended with {self._ending()} before it was ready")
            elif time.monotonic() > deadline:
                self.kill()
                self._fail(f"was not ready after {self._start_limit_s:g} s")
            time.sleep(POLL_S)
        self._was_ready = True

    def terminate(self) -> None:
        """Ends the process in an orderly way, by force when that takes too long; data and ports stay."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._signal(self.stop_signal)
        self._signal(signal.SIGCONT)  # a paused process takes no signal but this one and SIGKILL
        try:
            process.wait(self._stop_limit_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def stop(self) -> None:
        """Ends the server and removes its temporary folder. Stopping twice is fine."""
        self.terminate()
        for path in self.litter():
            path.unlink(missing_ok=True)
        if self._given_directory is None and self._directory is not None and not self._keep:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def kill(self) -> None:
        """SIGKILL, waited for; data and ports stay for `restart`."""
        if self._process is None or not self.alive:
            return
        # Children that made process groups of their own would live on for a moment and hold ports and files.
        children = psutil.Process(self.pid).children(recursive=True)
        self._signal(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=KILL_LIMIT_S)
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: the process and its connections stay, but nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Ends the server if it runs, and starts it again on the same folder and ports."""
        self.terminate()
        self.start()

    @property
    def alive(self) -> bool:
        """Whether the process exists (paused counts)."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """With what it ended: negative for a signal, None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    @property
    def pid(self) -> int:
        """The process id of the server that was started last."""
        if self._process is None:
            raise ServerFailed(f"{self.name} was never started")
        return self._process.pid

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports by name, known once started."""
        return self._ports

    @property
    def directory(self) -> Path:
        """The server's folder, created at first use."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"sluiceway-{self.name}-"))
        return self._directory

    @property
    def log_path(self) -> Path:
        """What the server printed, over all its starts."""
        return self.directory / f"{self.name}.log"

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._keep = True
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._keep = True
            error.add_note(f"the log of {self.name} is kept at {self.log_path}")
        self.stop()
        if error is not None and self._given_directory is None:
            shutil.rmtree(self.directory / "data", ignore_errors=True)

    # How it is done.

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = list(self.command())
        if sys.platform == "linux" and (self.user() or not self._detached):
            tie = "0" if self._detached else str(os.getpid())
            command = [sys.executable, "-I", "-S", str(LAUNCHER), tie, self.user() or "", *command]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )

    def _serves(self) -> bool:
        try:
            return self.probe()
        except (OSError, http.client.HTTPException):
            return False

    def _moved_from_snatched_ports(self) -> bool:
        """Another process took a port between our choice and the server's start: try with others."""
        snatched = any(not is_free(port) for name, port in self._ports.items() if name not in self._given_ports)
        if self._was_ready or not snatched:
            return False
        self._ports = {}
        self.launch()
        return True

    def _signal(self, number: signal.Signals) -> None:
        # Only while the process is not waited for can its id not belong to another one.
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _ending(self) -> str:
        code = self._process.returncode if self._process else None
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

    def _fail(self, what: str) -> None:
        self._keep = True
        taken = [f"{name} port {port}" for name, port in self._ports.items() if not is_free(port)]
        hint = f" ({', '.join(taken)} is taken by another process)" if taken else ""
        raise ServerFailed(f"{self.name} {what}{hint}. The end of its log, {self.log_path}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(f"  {line[:400]}" for line in lines[-TAIL_LINES:]) or "  (empty)"


def http_status(port: int, path: str, *, timeout_s: float = 2.0) -> int:
    """The status of a plain GET on a loopback port.

    Raises:
        OSError, http.client.HTTPException: nothing usable answered.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
