"""Settings of a process: defaults < TOML file < environment (`SLUICEWAY_…`) < flags, checked together at start.

`SLUICEWAY_CONFIG` names the TOML file. Nested settings use two underscores in the environment
(`SLUICEWAY_ETCD__USERNAME`).
Each service derives its own settings from `ServiceSettings`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.logs import Level


def _listed(value: object) -> object:
    """A list as people write it in the environment."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",")]


class EtcdSettings(BaseModel):
    """How to reach etcd. TLS is on when `ca` is given; passwords are `env:` or `file:` references."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoints: Annotated[list[str], NoDecode, BeforeValidator(_listed)] = Field(
        default=["127.0.0.1:2379"], min_length=1, description="`host:port`, separated by commas or as a JSON list"
    )
    username: str | None = None
    password: str | None = None
    ca: str | None = Field(default=None, description="file:/path of the CA certificate")
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = Field(default=None, description="name to expect in the servers' certificates")
    timeout_s: float = Field(default=3.0, gt=0)


class ServiceSettings(BaseSettings):
    """What every service is told."""

    model_config = SettingsConfigDict(
        env_prefix="SLUICEWAY_", env_nested_delimiter="__", extra="forbid", frozen=True, cli_parse_args=False
    )

    fleet: str = Field(default="default", pattern=r"^[a-zA-Z0-9._-]+$")
    etcd: EtcdSettings = EtcdSettings()
    log_level: Level = "info"
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535, description="0: any free port")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if path := os.environ.get("SLUICEWAY_CONFIG"):
            sources += (TomlConfigSettingsSource(settings_cls, Path(path)),)
        return sources


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load(kind: type[SettingsT], **flags: Any) -> SettingsT:
    """Settings from all sources; flags that are None don't count.

    Raises:
        SpecInvalid: every problem at once, each with the setting's name and what was expected.
    """
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        raise SpecInvalid([f"settings can't be read: {error}: {error.__cause__}"]) from error
    except ValidationError as error:
        problems = [
            f"setting {'.'.join(map(str, e['loc']))} (SLUICEWAY_{'__'.join(map(str, e['loc'])).upper()}): {e['msg']}"
            for e in error.errors()
        ]
        raise SpecInvalid(problems) from error
