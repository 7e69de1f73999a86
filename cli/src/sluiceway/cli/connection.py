"""What commands share: which fleet, how to reach its etcd, who is asking, what time it is.

Settings come as for the services (flags > environment > TOML file > defaults); where none names an etcd and a
development stack runs in `.sluiceway/dev`, its address is used.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import msgspec
import typer
from pydantic_settings import SettingsConfigDict

from sluiceway.common.clock import Clock
from sluiceway.common.errors import EtcdUnavailable, SluicewayError
from sluiceway.common.etcd.api import Etcd, Op, Txn, modified_at
from sluiceway.common.events import puts
from sluiceway.common.keys import Keys
from sluiceway.common.records import EventRecord, RecordT, decode
from sluiceway.common.settings import EtcdSettings, ServiceSettings, load
from sluiceway.common.specs.store import Author

T = TypeVar("T")

DEV_STATE: Final = Path(".sluiceway/dev/state.json")
_ATTEMPT_S: Final = 4.0


class CommandSettings(ServiceSettings):
    """The settings that commands share with the services."""

    model_config = SettingsConfigDict(extra="ignore")


class DevState(msgspec.Struct):
    """What `sluiceway dev` writes of a running stack, as far as commands need it."""

    etcd: str
    fleet: str = "dev"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One fleet while a command talks to it."""

    etcd: Etcd
    keys: Keys
    clock: Clock
    actor: str

    def author(self) -> Author:
        return Author(name=self.actor, at=self.clock.now(), cause=f"cli-{uuid.uuid4().hex[:12]}")

    async def read(self, kind: type[RecordT], key: str) -> tuple[RecordT | None, int]:
        """The record at a key and its modification revision; None and 0 without one."""
        item = await self.etcd.get(key)
        return (decoded(kind, key, item.value), item.mod_revision) if item else (None, 0)

    async def read_all(self, kind: type[RecordT], prefix: str, below: str = "") -> dict[str, RecordT]:
        """The records below a prefix, or only those further `below`, by what follows the prefix in their keys."""
        listing = await self.etcd.list(prefix + below)
        return {item.key.removeprefix(prefix): decoded(kind, item.key, item.value) for item in listing.items}

    async def act(self, key: str, revision: int, operations: list[Op], event: EventRecord) -> bool:
        """Runs the operations and writes the event if `key` is still at `revision`."""
        txn = Txn([modified_at(key, revision)], [*operations, *puts(self.keys, [event])])
        return (await self.etcd.txn(txn)).succeeded


def decoded(kind: type[RecordT], key: str, value: bytes) -> RecordT:
    """The record in a value, or an error that names the key."""
    try:
        return decode(kind, value)
    except msgspec.MsgspecError as error:
        raise SluicewayError(f"the etcd key {key} holds no {kind.__name__}: {error}") from error


Connect = Callable[[EtcdSettings], Awaitable[Etcd]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """The person or script at the command line, as commands see them (typer's context object)."""

    connect: Connect
    clock: Clock
    actor: str
    stdin: BinaryIO
    etcd: str | None = None
    fleet: str | None = None

    def run(self, act: Callable[[Fleet], Coroutine[Any, Any, T]]) -> T:
        """Connects, acts, disconnects.

        Raises:
            EtcdUnavailable: with the address and where it came from.
        """
        return asyncio.run(self._run(act))

    async def _run(self, act: Callable[[Fleet], Coroutine[Any, Any, T]]) -> T:
        settings, origin = self._settings()
        try:
            etcd = await self._reach(settings.etcd, Keys(settings.fleet))
        except EtcdUnavailable as error:
            raise EtcdUnavailable(
                f"can't reach etcd at {', '.join(settings.etcd.endpoints)} ({origin}): {error}; "
                "is it running? name another with --etcd HOST:PORT or SLUICEWAY_ETCD__ENDPOINTS, "
                "or run this in the folder of a `sluiceway dev up`"
            ) from error
        try:
            return await act(Fleet(etcd=etcd, keys=Keys(settings.fleet), clock=self.clock, actor=self.actor))
        finally:
            await etcd.close()

    async def _reach(self, settings: EtcdSettings, keys: Keys) -> Etcd:
        """A connection that has answered once."""
        etcd = await self.connect(settings)
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                await etcd.get(keys.leader)
        except TimeoutError as error:
            await etcd.close()
            raise EtcdUnavailable(f"no answer within {_ATTEMPT_S:g} s") from error
        except BaseException:
            await etcd.close()
            raise
        return etcd

    def _settings(self) -> tuple[ServiceSettings, str]:
        settings = load(CommandSettings, fleet=self.fleet)
        if self.etcd is not None:
            endpoints = [part.strip() for part in self.etcd.split(",")]
            return _with_endpoints(settings, endpoints), "from --etcd"
        if "etcd" in settings.model_fields_set:
            return settings, "from the settings"
        dev = running_dev_stack(DEV_STATE)
        if dev is None:
            return settings, "the default"
        named = "fleet" in settings.model_fields_set
        settings = settings if named else settings.model_copy(update={"fleet": dev.fleet})
        return _with_endpoints(settings, [dev.etcd]), f"from {DEV_STATE}"


def _with_endpoints(settings: ServiceSettings, endpoints: list[str]) -> ServiceSettings:
    return settings.model_copy(update={"etcd": settings.etcd.model_copy(update={"endpoints": endpoints})})


def running_dev_stack(path: Path) -> DevState | None:
    """The development stack that a state file tells of, if it can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DevState)
    except (OSError, msgspec.MsgspecError):
        return None


def operator(context: typer.Context) -> Operator:
    """The operator of a command's context."""
    return cast(Operator, context.find_root().obj)


def at_fleet(context: typer.Context, etcd: str | None, fleet: str | None) -> None:
    """Notes what the flags say."""
    context.obj = replace(operator(context), etcd=etcd, fleet=fleet)


def user_at_host() -> str:
    """Who acts, for the event log."""
    return f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{os.uname().nodename}"
