"""What a worker process is told: who it is, what it has, how patient it is."""

from __future__ import annotations

import os
import socket

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sluiceway.common.resources import Resources
from sluiceway.common.settings import ServiceSettings

_MEBIBYTE = 2**20
_PROCESS_BYTES = 224 * _MEBIBYTE  # the interpreter, Arrow and the clients, before any record
_BYTES_A_BUFFERED_BYTE = 4  # a fetched byte lives at once as record, Arrow column, encoded file and request body


class Capacity(BaseModel):
    """What the worker may use: cores, bytes, bytes per second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: float = Field(default_factory=lambda: float(os.cpu_count() or 1), gt=0)
    memory: int = Field(default=1024 * _MEBIBYTE, ge=320 * _MEBIBYTE, description="bytes, at least 320 MiB")
    network_in: float = Field(default=125e6, gt=0)
    network_out: float = Field(default=125e6, gt=0)

    def as_resources(self) -> Resources:
        return Resources(
            cpu=self.cpu, memory=float(self.memory), network_in=self.network_in, network_out=self.network_out
        )


class WorkerSettings(ServiceSettings):
    """Settings of one worker process."""

    id: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$",
        description="unique in the fleet; a second process with the same id waits until the first one's session ends",
    )
    capacity: Capacity = Capacity()
    worker_class: str = "default"
    zone: str = ""
    labels: dict[str, str] = Field(default={})
    session_ttl_s: int = Field(default=10, ge=2, description="etcd's TTL of the session: how fast a crash is noticed")
    session_margin_s: float = Field(default=1.0, gt=0, description="how long before the TTL side effects stop")
    report_interval_s: float = Field(default=5.0, gt=0)
    drain_timeout_s: float = Field(
        default=60.0, gt=0, description="after SIGTERM, leases not yet given back are dropped"
    )
    patience_s: float = Field(
        default=30.0, gt=0, description="how long a source or sink may be down before the partition is given back"
    )

    @model_validator(mode="after")
    def _margin_below_ttl(self) -> WorkerSettings:
        if self.session_margin_s >= self.session_ttl_s / 2:
            raise ValueError("session_margin_s must be less than half of session_ttl_s")
        return self

    @property
    def buffer_bytes(self) -> int:
        """Bytes of records that may be in flight in the whole process, so that memory stays under the capacity."""
        return (self.capacity.memory - _PROCESS_BYTES) // _BYTES_A_BUFFERED_BYTE
