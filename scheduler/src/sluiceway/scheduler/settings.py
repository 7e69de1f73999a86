"""What a scheduler process is told: see `sluiceway.common.settings` for where settings come from."""

from __future__ import annotations

from pydantic import Field

from sluiceway.common.settings import ServiceSettings


class SchedulerSettings(ServiceSettings):
    """Settings of `python -m sluiceway.scheduler`."""

    id: str = Field(default="", pattern=r"^[a-zA-Z0-9._-]*$", description="host name and process id by default")
    session_ttl_s: int = Field(default=5, ge=2, le=300, description="a dead leader is replaced after this time")
    headroom: float = Field(
        default=0.2, ge=0, lt=1, description="share of every worker's capacity kept free for spikes"
    )
    revoke_timeout_s: float = Field(default=30.0, gt=0, description="a lease not released by then is taken away")
    moves_in_flight: int = Field(default=16, ge=0, description="planned moves at a time; 0 turns them off")
    poll_sources_s: float = Field(default=5.0, gt=0, description="how often partitions and log ends are looked up")
