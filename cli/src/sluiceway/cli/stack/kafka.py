"""Apache Kafka in KRaft mode: one or several brokers, each controller too, and as many clusters as wanted."""

from __future__ import annotations

import os
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sluiceway.cli.stack.jars import fetch_jars, java_binary
from sluiceway.cli.stack.kafka_protocol import known_brokers
from sluiceway.cli.stack.ports import LOOPBACK, free_ports
from sluiceway.cli.stack.process import Server, ServerFailed
from sluiceway.cli.stack.tls import Certificates

HEAP_MB = 768
FORMAT_LIMIT_S = 60
QUICK_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
FULL_JVM = ("-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20")
_LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showThreadName=false")


class KafkaBroker(Server):
    """One broker that is a controller too. Use `KafkaCluster`.

    Args:
        node: its number in the cluster.
        cluster_id: the cluster's id, 22 characters.
        voters: node number and controller port of every broker; this one alone if empty.
        replication: copies of the internal topics.
        properties: server properties that override ours.
        sasl_users: users and passwords of an additional listener with SASL PLAIN without TLS.
        certificates: makes an additional listener with TLS that asks for client certificates.
        quick: start fast; without it the JVM optimises fully, for benchmarks.
        heap_mb: the JVM's heap.
    """

    port_names = ("client", "controller", "sasl", "tls")

    def __init__(
        self,
        name: str,
        *,
        node: int,
        cluster_id: str,
        voters: Mapping[int, int],
        replication: int,
        properties: Mapping[str, str],
        sasl_users: Mapping[str, str],
        certificates: Certificates | None,
        quick: bool,
        heap_mb: int,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self._node = node
        self._cluster_id = cluster_id
        self._voters = voters
        self._replication = replication
        self._properties = properties
        self._sasl_users = sasl_users
        self._certificates = certificates
        self._quick = quick
        self._heap_mb = heap_mb

    def command(self) -> Sequence[str]:
        return [*self._java(heap_mb=self._heap_mb), "kafka.Kafka", str(self._config)]

    def probe(self) -> bool:
        return known_brokers(self.ports["client"]) >= max(1, len(self._voters))

    def prepare(self) -> None:
        lines = [f"{key}={value}" for key, value in (self._settings() | dict(self._properties)).items()]
        self._config.touch(mode=0o600)
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if not (self.directory / "data" / "meta.properties").exists():
            self._format()

    @property
    def _config(self) -> Path:
        return self.directory / "server.properties"

    def _java(self, *, heap_mb: int) -> list[str]:
        jvm = QUICK_JVM if self._quick else FULL_JVM
        jars = f"{fetch_jars()}{os.sep}*"
        return [java_binary(), f"-Xmx{heap_mb}m", *jvm, *_LOGGING, "-cp", jars]

    def _format(self) -> None:
        # One word with "=": one id in 64 starts with a dash.
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id}", "-c", str(self._config)]
        command = [*self._java(heap_mb=128), *tool]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_LIMIT_S, check=False)
        if done.returncode != 0:
            raise ServerFailed(
                f"{self.name}'s storage can't be formatted: {(done.stdout + done.stderr).strip()[-2000:]}"
            )

    def _settings(self) -> dict[str, str]:
        ports = self.ports
        voters = self._voters or {self._node: ports["controller"]}
        listeners = self._listeners()
        copies = str(self._replication)
        return {
            "process.roles": "broker,controller",
            "node.id": str(self._node),
            "controller.quorum.voters": ",".join(f"{node}@{LOOPBACK}:{port}" for node, port in voters.items()),
            "listeners": ",".join(f"{name}://{LOOPBACK}:{ports[name.lower()]}" for name in listeners),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in listeners.items()),
            "inter.broker.listener.name": "CLIENT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.directory / "data"),
            "auto.create.topics.enable": "false",
            "message.max.bytes": str(64 << 20),
            "replica.fetch.max.bytes": str(64 << 20),
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": "1",
            # A killed broker may come back only when its old session is over.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            **self._sasl_settings(),
            **self._tls_settings(),
        }

    def _listeners(self) -> dict[str, str]:
        listeners = {"CLIENT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        if self._sasl_users:
            listeners["SASL"] = "SASL_PLAINTEXT"
        if self._certificates:
            listeners["TLS"] = "SSL"
        return listeners

    def _sasl_settings(self) -> dict[str, str]:
        if not self._sasl_users:
            return {}
        users = " ".join(f'user_{user}="{password}"' for user, password in self._sasl_users.items())
        login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
        return {"sasl.enabled.mechanisms": "PLAIN", "listener.name.sasl.plain.sasl.jaas.config": login}

    def _tls_settings(self) -> dict[str, str]:
        if self._certificates is None:
            return {}
        store = self.directory / "keystore.pem"
        store.touch(mode=0o600)
        store.write_bytes(self._certificates.key.read_bytes() + self._certificates.certificate.read_bytes())
        return {
            "listener.name.tls.ssl.keystore.type": "PEM",
            "listener.name.tls.ssl.keystore.location": str(store),
            "listener.name.tls.ssl.truststore.type": "PEM",
            "listener.name.tls.ssl.truststore.location": str(self._certificates.ca),
            "listener.name.tls.ssl.client.auth": "required",
        }


class KafkaCluster:
    """A cluster of brokers on loopback; topics must be created before use. A context manager like `Server`.

    Args:
        brokers: how many. With more than two, internal topics have three copies.
        name: what it is called in logs and errors.
        directory: its folder; by default temporary ones.
        properties, sasl_users, certificates, quick, heap_mb: see `KafkaBroker`.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        name: str = "kafka",
        directory: Path | None = None,
        properties: Mapping[str, str] | None = None,
        sasl_users: Mapping[str, str] | None = None,
        certificates: Certificates | None = None,
        quick: bool = True,
        heap_mb: int = HEAP_MB,
        ports: Mapping[str, int] | None = None,
        **options: Any,
    ) -> None:
        nodes = range(1, brokers + 1)
        controllers = free_ports([str(node) for node in nodes]) if brokers > 1 else {}
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.brokers = [
            KafkaBroker(
                name if brokers == 1 else f"{name}-{node}",
                node=node,
                cluster_id=cluster_id,
                voters={int(other): port for other, port in controllers.items()},
                replication=min(3, brokers),
                properties=properties or {},
                sasl_users=sasl_users or {},
                certificates=certificates,
                quick=quick,
                heap_mb=heap_mb,
                directory=directory / str(node) if directory else None,
                ports={"controller": controllers[str(node)]} if controllers else ports,
                **options,
            )
            for node in nodes
        ]

    @property
    def bootstrap(self) -> str:
        """host:port of every broker, with commas, without authentication or TLS."""
        return self._addresses("client")

    @property
    def sasl_bootstrap(self) -> str:
        """The same for the listener with SASL PLAIN."""
        return self._addresses("sasl")

    @property
    def tls_bootstrap(self) -> str:
        """The same for the listener with TLS."""
        return self._addresses("tls")

    @property
    def alive(self) -> bool:
        """Whether all brokers run."""
        return all(broker.alive for broker in self.brokers)

    def launch(self) -> None:
        """Starts all brokers without waiting."""
        for broker in self.brokers:
            broker.launch()

    def wait_ready(self) -> None:
        """Waits for all brokers; see `Server.start`."""
        for broker in self.brokers:
            broker.wait_ready()

    def start(self) -> Self:
        """Starts all brokers and waits until they serve."""
        self.launch()
        self.wait_ready()
        return self

    def kill(self) -> None:
        """SIGKILL to all brokers; their data stays."""
        for broker in self.brokers:
            broker.kill()

    def pause(self) -> None:
        """SIGSTOP to all brokers."""
        for broker in self.brokers:
            broker.pause()

    def resume(self) -> None:
        """SIGCONT to all brokers."""
        for broker in self.brokers:
            broker.resume()

    def restart(self) -> None:
        """Starts all brokers again on their data and ports, after ending those that run."""
        for broker in self.brokers:
            broker.terminate()
        self.start()

    def stop(self) -> None:
        """Ends all brokers and removes their temporary folders."""
        for broker in self.brokers:
            broker.stop()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            started.callback(self.stop)
            self.start()
            started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for broker in self.brokers:
            broker.__exit__(kind, error, trace)

    def _addresses(self, listener: str) -> str:
        return ",".join(f"{LOOPBACK}:{broker.ports[listener]}" for broker in self.brokers)
