"""etcd from its wheel: one server or a cluster of three, plain or with TLS, with or without authentication."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sluiceway.cli.stack.binaries import etcd_binary, etcdctl_binary
from sluiceway.cli.stack.ports import LOOPBACK, free_ports
from sluiceway.cli.stack.process import Server, ServerFailed, http_status
from sluiceway.cli.stack.tls import Certificates

CTL_LIMIT_S = 20


class EtcdServer(Server):
    """One etcd member.

    Args:
        certificates: serve TLS with them.
        client_certificates: with `certificates`: refuse clients that show no certificate of the same authority.
        root_password: turn authentication on, with the user `root` and this password.
        quota_bytes: the size of the store from which on etcd refuses writes.
        durable: sync every write to disk; without it a write can be lost when the machine (not the process) dies.
        initial_cluster: the members and their peer URLs, when it is one of several.
    """

    port_names = ("client", "peer", "metrics")

    def __init__(
        self,
        name: str = "etcd",
        *,
        certificates: Certificates | None = None,
        client_certificates: bool = False,
        root_password: str | None = None,
        quota_bytes: int | None = None,
        durable: bool = True,
        initial_cluster: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.certificates = certificates
        self._client_certificates = client_certificates
        self._root_password = root_password
        self._quota_bytes = quota_bytes
        self._durable = durable
        self._initial_cluster = initial_cluster

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"{LOOPBACK}:{self.ports['client']}"

    @property
    def metrics_url(self) -> str:
        """Plain HTTP address of `/metrics` and `/health`."""
        return f"http://{LOOPBACK}:{self.ports['metrics']}"

    def command(self) -> Sequence[str]:
        scheme = "https" if self.certificates else "http"
        client = f"{scheme}://{self.endpoint}"
        peer = f"http://{LOOPBACK}:{self.ports['peer']}"
        command = [
            str(etcd_binary()),
            f"--name={self.name}",
            f"--data-dir={self.directory / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={self._initial_cluster or f'{self.name}={peer}'}",
            f"--listen-metrics-urls={self.metrics_url}",
            "--log-level=warn",
        ]
        if not self._durable:
            command.append("--unsafe-no-fsync")
        if self._quota_bytes is not None:
            command.append(f"--quota-backend-bytes={self._quota_bytes}")
        return command + self._tls_options()

    def probe(self) -> bool:
        return http_status(self.ports["metrics"], "/health") == 200

    def wait_ready(self) -> None:
        first = not (self.directory / "authenticated").exists()
        super().wait_ready()
        if self._root_password is not None and first:
            self._turn_authentication_on(self._root_password)

    def ctl(self, *arguments: str) -> str:
        """Runs etcdctl against this server (as root where authentication is on) and returns what it prints.

        Raises:
            ServerFailed: etcdctl failed; with its output.
        """
        command = [str(etcdctl_binary()), f"--endpoints={self.endpoint}"]
        if tls := self.certificates:
            command += [f"--cacert={tls.ca}", f"--cert={tls.client_certificate}", f"--key={tls.client_key}"]
        if self._root_password is not None and (self.directory / "authenticated").exists():
            command += ["--user", f"root:{self._root_password}"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=CTL_LIMIT_S, check=False)
        if done.returncode != 0:
            raise ServerFailed(f"etcdctl {arguments[0]} on {self.name} failed: {done.stderr.strip()}")
        return done.stdout

    def _turn_authentication_on(self, password: str) -> None:
        self.ctl("user", "add", f"root:{password}")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("auth", "enable")
        (self.directory / "authenticated").touch()

    def _tls_options(self) -> list[str]:
        tls = self.certificates
        if tls is None:
            return []
        options = [f"--cert-file={tls.certificate}", f"--key-file={tls.key}", f"--trusted-ca-file={tls.ca}"]
        return [*options, "--client-cert-auth"] if self._client_certificates else options


class EtcdCluster:
    """Three members on loopback; members can be killed, paused and restarted one by one."""

    def __init__(self, name: str = "etcd", *, directory: Path | None = None, **options: Any) -> None:
        names = [f"{name}-{number}" for number in range(3)]
        peers = free_ports(names)
        initial = ",".join(f"{member}=http://{LOOPBACK}:{port}" for member, port in peers.items())
        self.members = [
            EtcdServer(
                member,
                directory=directory / member if directory else None,
                ports={"peer": peers[member]},
                initial_cluster=initial,
                **options,
            )
            for member in names
        ]

    @property
    def endpoints(self) -> list[str]:
        """host:port of every member."""
        return [member.endpoint for member in self.members]

    def __enter__(self) -> Self:
        with ExitStack() as started:
            started.callback(self.stop)
            for member in self.members:
                member.launch()
            for member in self.members:
                member.wait_ready()
            started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops all members and removes their temporary folders."""
        for member in self.members:
            member.stop()
