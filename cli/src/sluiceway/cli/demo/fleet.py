"""A whole fleet on this machine: servers, schedulers and workers as separate processes, and the specs for them.

Role: what the demo, the chaos test and the benchmark run on. Neighbours: `sluiceway.cli.stack` starts processes,
`watch` reads how the fleet is doing, `export` gets the delivered files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import yaml

from sluiceway.cli.stack import BrokerKind, EmbeddedStack, PythonService
from sluiceway.common.clock import Clock
from sluiceway.common.errors import Refused
from sluiceway.common.etcd.api import Etcd
from sluiceway.common.keys import Keys
from sluiceway.common.specs import store
from sluiceway.common.specs.documents import Source, parse, read
from sluiceway.common.specs.plan import plan

StoreKind = Literal["s3", "local"]

PIPELINE: Final = "demo"
BUCKET: Final = "lake"
_ACCESS_KEY, _SECRET_KEY = "DEMO_S3_ACCESS_KEY", "DEMO_S3_SECRET_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What to start. `worker_memory_bytes` is the capacity that each worker declares."""

    directory: Path
    broker: BrokerKind = "embedded"
    store: StoreKind = "s3"
    workers: int = 3
    schedulers: int = 1
    worker_memory_bytes: int = 1024 * 2**20
    worker_cpu: float = 1.0
    session_ttl_s: int = 5
    scheduler_ttl_s: int = 5
    report_interval_s: float = 0.25
    quick_kafka: bool = True


class LocalFleet:
    """A context manager: everything runs inside of it and nothing outlives it, not even after SIGKILL of this process.

    Every process logs into a folder below `directory / "servers"`.
    """

    def __init__(self, options: FleetOptions) -> None:
        self.options = options
        self.keys = Keys("demo")
        self.stack = EmbeddedStack(self.servers_folder, broker=options.broker, quick=options.quick_kafka)
        self.schedulers: dict[str, PythonService] = {}
        self.workers: dict[str, PythonService] = {}
        self._started = ExitStack()

    @property
    def servers_folder(self) -> Path:
        return self.options.directory / "servers"

    @property
    def sink_folder(self) -> Path:
        """Where the delivered files are, or are exported to: `data/…` and `_dead_letters/…`."""
        return self.options.directory / "sink"

    def __enter__(self) -> Self:
        with self._started:
            self._started.enter_context(self.stack)
            if self.options.store == "s3":
                self.stack.store.create_bucket(BUCKET)
            schedulers = [self.launch_scheduler(f"scheduler-{number}") for number in range(self.options.schedulers)]
            workers = [self.launch_worker(f"worker-{number}") for number in range(self.options.workers)]
            for service in (*schedulers, *workers):
                service.wait_ready()
            self._started = self._started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.__exit__(kind, error, trace)

    def launch_scheduler(self, name: str) -> PythonService:
        """Starts a scheduler without waiting for it."""
        ttl = {"SLUICEWAY_SESSION_TTL_S": str(self.options.scheduler_ttl_s), "SLUICEWAY_POLL_SOURCES_S": "1"}
        self.schedulers[name] = self._launch(name, "sluiceway.scheduler", ttl)
        return self.schedulers[name]

    def launch_worker(self, name: str) -> PythonService:
        """Starts a worker without waiting for it."""
        options = self.options
        settings = {
            "SLUICEWAY_CAPACITY__MEMORY": str(options.worker_memory_bytes),
            "SLUICEWAY_CAPACITY__CPU": str(options.worker_cpu),
            "SLUICEWAY_SESSION_TTL_S": str(options.session_ttl_s),
            "SLUICEWAY_REPORT_INTERVAL_S": str(options.report_interval_s),
        }
        self.workers[name] = self._launch(name, "sluiceway.worker", settings)
        return self.workers[name]

    def stop_services(self) -> None:
        """Drains the workers and ends the schedulers; the servers go on."""
        for service in (*self.workers.values(), *self.schedulers.values()):
            service.terminate()

    def documents(self, topics: Sequence[str], *, max_age_s: float, max_bytes: int = 32 * 2**20) -> list[Any]:
        """The specs that deliver `topics`, as in a YAML file."""
        if self.options.store == "local":
            sink: dict[str, Any] = {"kind": "parquet", "url": f"file://{self.sink_folder.absolute()}"}
        else:
            keys = {"access_key": f"env:{_ACCESS_KEY}", "secret_key": f"env:{_SECRET_KEY}"}
            sink = {
                "kind": "parquet",
                "url": f"s3://{BUCKET}/{PIPELINE}",
                "s3": {"endpoint": self.stack.store.endpoint, **keys},
            }
        cut = {"max_age_s": max_age_s, "max_bytes": max_bytes}
        return [
            _document("Cluster", "local", {"bootstrap": self.stack.bootstrap.split(",")}),
            *(_document("Topic", topic, {"cluster": "local"}) for topic in topics),
            _document("Pipeline", PIPELINE, {"topics": list(topics), "sink": sink, "cut": cut}),
        ]

    async def apply(self, etcd: Etcd, documents: Sequence[Any], clock: Clock) -> Path:
        """Writes the specs into `specs.yaml` and applies them, as `sluiceway apply` does. Returns the file.

        Raises:
            Refused: the specs don't fit what the fleet has.
            SpecInvalid: they are wrong.
        """
        path = self.options.directory / "specs.yaml"
        path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
        sources = [Source(str(path), path.read_bytes())]
        touched = [each.key for each in read(sources)[0]]
        seen = await store.read(etcd, self.keys, touched)
        made = plan(seen.current, parse(sources, seen.current.records()))
        if made.refusals:
            raise Refused("\n".join(map(str, made.refusals)))
        await store.commit(
            etcd, self.keys, seen, made, store.Author(name="demo", at=clock.now(), cause=f"demo-{os.getpid()}")
        )
        return path

    def export(self) -> Path:
        """The sink's folder; what lies on the object store is first copied there, byte for byte."""
        if self.options.store == "s3":
            client = self.stack.store.client()
            try:
                _download(client, self.sink_folder)
            finally:
                client.close()
        return self.sink_folder

    def keep_logs(self) -> Path:
        """Removes what the servers stored and returns the folder with their logs."""
        logs = self.options.directory / "logs"
        logs.mkdir(exist_ok=True)
        for path in self.servers_folder.rglob("*.log"):
            if path.stem == path.parent.name or path.parent.parent.name == path.stem:
                shutil.copy(path, logs / path.name)
        shutil.rmtree(self.servers_folder, ignore_errors=True)
        return logs

    def _launch(self, name: str, module: str, settings: Mapping[str, str]) -> PythonService:
        store_server = self.stack.store
        common = {
            "SLUICEWAY_FLEET": self.keys.fleet,
            "SLUICEWAY_ETCD__ENDPOINTS": json.dumps([self.stack.etcd_endpoint]),
            "SLUICEWAY_ID": name,
            _ACCESS_KEY: store_server.access_key,
            _SECRET_KEY: store_server.secret_key,
        }
        service = PythonService(name, module, {**common, **settings}, directory=self.servers_folder / name)
        self._started.callback(service.stop)
        service.launch()
        return service


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "sluiceway/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _download(client: Any, folder: Path) -> None:
    prefix = f"{PIPELINE}/"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for item in page.get("Contents", ()):
            target = folder / item["Key"].removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(BUCKET, item["Key"], str(target))
