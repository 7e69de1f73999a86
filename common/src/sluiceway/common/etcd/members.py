"""Connections to the members of an etcd cluster: one gRPC channel each, one of them in use.

A channel of its own per endpoint lets names be resolved again, certificates be checked against each name, and a hung
member be left within one call's time limit; gRPC's own balancing offers none of these over several names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from etcd3aio import _protobuf as pb

from sluiceway.common.secrets import resolve
from sluiceway.common.settings import EtcdSettings

MAX_ANSWER_BYTES = 16 * 2**20

_OPTIONS: list[tuple[str, int]] = [
    # A restarted member is used within a second; a member that hangs while connecting is given up after two.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 2000),
    # Pings find a member that hangs while a watch waits. Servers refuse more than one in 5 s, and any without a call.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # a write must not be sent twice
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
]


class Member:
    """One endpoint with its stubs, and the watches that depend on it."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None, server_name: str | None) -> None:
        options: list[tuple[str, Any]] = list(_OPTIONS)
        if server_name is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
        target = f"dns:///{endpoint}"
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, options)
        else:
            self.channel = grpc.aio.secure_channel(target, credentials, options)
        self.endpoint = endpoint
        self.auth = pb.AuthStub(self.channel)
        self.kv = pb.KVStub(self.channel)
        self.lease = pb.LeaseStub(self.channel)
        self.maintenance = pb.MaintenanceStub(self.channel)
        self.watch = pb.WatchStub(self.channel)
        self.streams: set[grpc.aio.Call] = set()

    def end_streams(self) -> None:
        for call in tuple(self.streams):
            call.cancel()

    def connectable(self) -> bool:
        state = self.channel.get_state(try_to_connect=True)
        return state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Members:
    """Remembers which member is in use; moves on when it fails."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)

    def __len__(self) -> int:
        return len(self._members)

    def current(self) -> Member:
        """The first member, from the one in use on, that is not known to be unreachable."""
        for _ in self._members:
            if self._members[0].connectable():
                break
            self._rotate()
        return self._members[0]

    def failed(self, member: Member) -> None:
        """Leaves a member whose call failed; its watches go with it."""
        if member is self._members[0] and len(self._members) > 1:
            self._rotate()
            member.end_streams()

    async def close(self) -> None:
        for member in self._members:
            member.end_streams()
            await member.channel.close()

    def _rotate(self) -> None:
        self._members.append(self._members.pop(0))


def open_members(settings: EtcdSettings) -> Members:
    """Channels to all endpoints; connects to none yet.

    Raises:
        AccessDenied: a certificate or key can't be read.
    """
    credentials = None
    if settings.ca is not None:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=resolve(settings.ca).encode(),
            private_key=resolve(settings.key).encode() if settings.key else None,
            certificate_chain=resolve(settings.certificate).encode() if settings.certificate else None,
        )
    return Members([Member(endpoint, credentials, settings.server_name) for endpoint in settings.endpoints])
