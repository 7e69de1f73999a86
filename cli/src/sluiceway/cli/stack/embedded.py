"""The three servers that a pipeline needs, started together: etcd, a Kafka broker, an S3 store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sluiceway.cli.stack.broker import EmbeddedBroker
from sluiceway.cli.stack.etcd import EtcdServer
from sluiceway.cli.stack.kafka import KafkaCluster
from sluiceway.cli.stack.objectstore import ObjectStoreServer

BrokerKind = Literal["embedded", "kafka"]


class EmbeddedStack:
    """etcd, broker and object store in one folder, started at the same time. A context manager like `Server`.

    Args:
        directory: gets one folder a server; by default temporary ones, removed at the end.
        broker: `embedded` starts at once and needs no Java; `kafka` is Apache Kafka.
        quick: start Apache Kafka fast; without it its JVM optimises fully, for benchmarks.
    """

    def __init__(self, directory: Path | None = None, *, broker: BrokerKind = "embedded", quick: bool = True) -> None:
        def folder(name: str) -> Path | None:
            return directory / name if directory else None

        self.etcd = EtcdServer(directory=folder("etcd"), durable=False)
        self.store = ObjectStoreServer(directory=folder("objectstore"))
        self.broker: EmbeddedBroker | KafkaCluster = (
            KafkaCluster(directory=folder("kafka"), quick=quick)
            if broker == "kafka"
            else EmbeddedBroker(directory=folder("broker"))
        )

    @property
    def etcd_endpoint(self) -> str:
        """host:port of etcd."""
        return self.etcd.endpoint

    @property
    def bootstrap(self) -> str:
        """host:port of the broker."""
        return self.broker.bootstrap

    def __enter__(self) -> Self:
        with ExitStack() as started:
            started.callback(self.stop)
            # The broker last: Apache Kafka formats its storage before it starts, while the others come up.
            servers = (self.store, self.etcd, self.broker)
            for server in servers:
                server.launch()
            for server in servers:
                server.wait_ready()
            started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self.broker, self.etcd, self.store):
            server.__exit__(kind, error, trace)

    def stop(self) -> None:
        """Ends the servers and removes their temporary folders."""
        for server in (self.broker, self.etcd, self.store):
            server.stop()
