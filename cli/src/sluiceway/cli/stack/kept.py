"""The development stack: servers, one scheduler and workers that go on running when the command that started them ends.

Role: what `sluiceway dev` does. Neighbours: the servers beside it; `sluiceway.cli.dev` prints. A process is known by
its id *and* its start time, so that an id that was given to another process since is never signalled.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from sluiceway.cli.stack import objectstore
from sluiceway.cli.stack.broker import EmbeddedBroker
from sluiceway.cli.stack.embedded import BrokerKind
from sluiceway.cli.stack.etcd import EtcdServer
from sluiceway.cli.stack.kafka import KafkaCluster
from sluiceway.cli.stack.objectstore import ObjectStoreServer
from sluiceway.cli.stack.process import KILL_LIMIT_S, Server
from sluiceway.cli.stack.service import PythonService
from sluiceway.common.errors import Refused

FLEET = "dev"
BUCKET = "dev"
ACCESS_KEY, SECRET_KEY = "DEV_S3_ACCESS_KEY", "DEV_S3_SECRET_KEY"  # names of variables
WORKER_MEMORY_BYTES = 1 << 30
SAME_START_S = 1.0
STOP_LIMIT_S = 15.0
DRAIN_LIMIT_S = 75.0

Note = Callable[[str], None]


class KeptProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that was started, and how to tell it from a later one with the same id."""

    pid: int
    started: float
    address: str
    log: str

    def process(self) -> psutil.Process | None:
        """The process if it still runs."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < SAME_START_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class KeptState(msgspec.Struct, kw_only=True):
    """What `state.json` says of a stack that was started. Other commands read `etcd` and `fleet` of it."""

    etcd: str
    fleet: str
    broker: BrokerKind
    processes: dict[str, KeptProcess]


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `sluiceway dev status`."""

    name: str
    state: Literal["running", "stopped"]
    pid: int
    address: str
    log: str


class KeptStack:
    """The stack in one folder. Ports are chosen once and remembered, because specs name them.

    Args:
        directory: its folder, made when it starts.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._state_path = self.directory / "state.json"
        self._ports_path = self.directory / "ports.json"

    def up(self, *, broker: BrokerKind, workers: int, note: Note) -> KeptState:
        """Starts what does not run, stops workers above the wanted number, and waits until all is ready.

        Raises:
            Refused: it runs with the other kind of broker, or another command is at work on it.
            ServerFailed: something did not start; the rest keeps running.
        """
        with self._alone():
            state = self._running_state(broker)
            servers = self._servers(broker)
            self._start(state, servers, note)
            store = servers["objectstore"]
            assert isinstance(store, ObjectStoreServer)
            store.create_bucket(BUCKET)
            surplus = [name for name in state.processes if _number(name) > workers]
            self._end(state, surplus, note, limit_s=DRAIN_LIMIT_S)
            self._start(state, self._services(state, store, workers), note)
            self._write_example(servers, store)
            return state

    def down(self, *, wipe: bool, note: Note) -> list[str]:
        """Drains and stops everything that runs and returns the names; data stays unless `wipe`."""
        if not self.directory.is_dir():
            return []
        with self._alone():
            state = self._read_state()
            running = [name for name, kept in state.processes.items() if kept.process()] if state else []
            if state:
                # Workers give their leases back while there is a scheduler, and all say good-bye to etcd.
                self._end(state, [name for name in state.processes if _number(name)], note, limit_s=DRAIN_LIMIT_S)
                self._end(state, ["scheduler"], note)
                self._end(state, ["broker", "etcd"], note)
                self._end(state, ["objectstore"], note, limit_s=objectstore.STOP_LIMIT_S)
                self._state_path.unlink(missing_ok=True)
            if wipe:
                shutil.rmtree(self.directory)
            return running

    def status(self) -> list[ProcessStatus]:
        """Every process that was started and whether it still runs; empty when the stack is down."""
        state = self._read_state()
        return [
            ProcessStatus(
                name=name,
                state="running" if kept.process() else "stopped",
                pid=kept.pid,
                address=kept.address,
                log=kept.log,
            )
            for name, kept in (state.processes if state else {}).items()
        ]

    @property
    def example_path(self) -> Path:
        """A file of specs that fit this stack."""
        return self.directory / "example.yaml"

    @property
    def lake_path(self) -> Path:
        """The folder into which one of the example's pipelines delivers."""
        return self.directory / "lake" / "events"

    def _running_state(self, broker: BrokerKind) -> KeptState:
        state = self._read_state()
        if state is None:
            return KeptState(etcd="", fleet=FLEET, broker=broker, processes={})
        runs = any(kept.process() for kept in state.processes.values())
        if runs and state.broker != broker:
            raise Refused(f"the stack runs with --broker {state.broker}; stop it first: sluiceway dev down")
        return msgspec.structs.replace(state, broker=broker)

    def _servers(self, broker: BrokerKind) -> dict[str, Server]:
        broker_folder = self.directory / broker
        return {
            "etcd": EtcdServer(directory=self.directory / "etcd", ports=self._ports("etcd"), detached=True),
            "objectstore": ObjectStoreServer(
                directory=self.directory / "objectstore", ports=self._ports("objectstore"), detached=True
            ),
            "broker": KafkaCluster(directory=broker_folder, ports=self._ports(broker), detached=True).brokers[0]
            if broker == "kafka"
            else EmbeddedBroker(directory=broker_folder, ports=self._ports(broker), detached=True),
        }

    def _services(self, state: KeptState, store: ObjectStoreServer, workers: int) -> dict[str, Server]:
        settings = {
            "SLUICEWAY_FLEET": FLEET,
            "SLUICEWAY_ETCD__ENDPOINTS": json.dumps([state.etcd]),
            ACCESS_KEY: store.access_key,
            SECRET_KEY: store.secret_key,
        }
        capacity = {"SLUICEWAY_CAPACITY__CPU": "1", "SLUICEWAY_CAPACITY__MEMORY": str(WORKER_MEMORY_BYTES)}
        modules = {"scheduler": ("sluiceway.scheduler", settings)} | {
            f"worker-{number}": ("sluiceway.worker", settings | capacity) for number in range(1, workers + 1)
        }
        return {
            name: PythonService(
                name,
                module,
                {**variables, "SLUICEWAY_ID": name},
                directory=self.directory / name,
                ports=self._ports(name),
                detached=True,
            )
            for name, (module, variables) in modules.items()
        }

    def _start(self, state: KeptState, servers: Mapping[str, Server], note: Note) -> None:
        """Launches those that don't run, all at once; each is on record before anything waits for it."""
        missing = {
            name: server
            for name, server in servers.items()
            if name not in state.processes or state.processes[name].process() is None
        }
        for name, server in missing.items():
            note(f"starting {name}")
            server.launch()
            self._record(state, name, server)
        for name, server in missing.items():
            server.wait_ready()
            self._record(state, name, server)  # it may have moved to other ports
        self._write_state(state)

    def _record(self, state: KeptState, name: str, server: Server) -> None:
        started = psutil.Process(server.pid).create_time()
        address = _address(server)
        state.processes[name] = KeptProcess(pid=server.pid, started=started, address=address, log=str(server.log_path))
        if name == "etcd":
            state.etcd = address
        ports = self._all_ports()
        ports[state.broker if name == "broker" else name] = dict(server.ports)
        self._ports_path.write_bytes(msgspec.json.format(msgspec.json.encode(ports)))
        self._write_state(state)

    def _end(self, state: KeptState, names: list[str], note: Note, *, limit_s: float = STOP_LIMIT_S) -> None:
        """Ends the processes in an orderly way, together, and by force those that take too long."""
        running = {name: kept.process() for name, kept in state.processes.items() if name in names}
        processes = [process for process in running.values() if process]
        for name, process in running.items():
            if process:
                note(f"stopping {name}")
                with suppress(psutil.NoSuchProcess):
                    process.resume()
                    process.terminate()
        _, late = psutil.wait_procs(processes, timeout=limit_s)
        for process in late:
            for each in (*process.children(recursive=True), process):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        psutil.wait_procs(late, timeout=KILL_LIMIT_S)
        for name in running:
            del state.processes[name]
        self._write_state(state)

    def _write_example(self, servers: Mapping[str, Server], store: ObjectStoreServer) -> None:
        local = {"kind": "parquet", "url": self.lake_path.as_uri()}
        s3 = {
            "kind": "parquet",
            "url": f"s3://{BUCKET}/events",
            "s3": {"endpoint": store.endpoint, "access_key": f"env:{ACCESS_KEY}", "secret_key": f"env:{SECRET_KEY}"},
        }
        documents = [
            ("Cluster", "dev", {"bootstrap": [_address(servers["broker"])]}),
            ("Topic", "events", {"cluster": "dev"}),
            ("Pipeline", "events", {"topics": ["events"], "sink": local, "cut": {"max_age_s": 10.0}}),
            ("Pipeline", "events-s3", {"topics": ["events"], "sink": s3, "cut": {"max_age_s": 10.0}}),
        ]
        parts = [
            msgspec.yaml.encode(
                {"apiVersion": "sluiceway/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
            ).decode()
            for kind, name, spec in documents
        ]
        self.example_path.write_text("---\n".join(parts), encoding="utf-8")

    def _ports(self, name: str) -> dict[str, int]:
        return self._all_ports().get(name, {})

    def _all_ports(self) -> dict[str, dict[str, int]]:
        if not self._ports_path.exists():
            return {}
        return msgspec.json.decode(self._ports_path.read_bytes(), type=dict[str, dict[str, int]])

    def _read_state(self) -> KeptState | None:
        if not self._state_path.exists():
            return None
        return msgspec.json.decode(self._state_path.read_bytes(), type=KeptState)

    def _write_state(self, state: KeptState) -> None:
        unfinished = self._state_path.with_suffix(".new")
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        unfinished.replace(self._state_path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused("another `sluiceway dev` command is at work in this folder; wait for it") from error
            yield


def _address(server: Server) -> str:
    match server:
        case EtcdServer() | ObjectStoreServer():
            return server.endpoint
        case EmbeddedBroker():
            return server.bootstrap
        case PythonService():
            return server.url
    return f"127.0.0.1:{server.ports['client']}"


def _number(name: str) -> int:
    """The number of a worker; 0 for everything else."""
    return int(name.removeprefix("worker-")) if name.startswith("worker-") else 0
