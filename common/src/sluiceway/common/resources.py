"""Demand and capacity: vectors of what a partition needs and a worker has."""

from __future__ import annotations

import msgspec


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A resource vector.

    Units: `cpu` in cores, `memory` in bytes, `network_in` and `network_out` in bytes per second.
    """

    cpu: float = 0.0
    memory: float = 0.0
    network_in: float = 0.0
    network_out: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            cpu=self.cpu + other.cpu,
            memory=self.memory + other.memory,
            network_in=self.network_in + other.network_in,
            network_out=self.network_out + other.network_out,
        )

    def scaled(self, factor: float) -> Resources:
        return Resources(
            cpu=self.cpu * factor,
            memory=self.memory * factor,
            network_in=self.network_in * factor,
            network_out=self.network_out * factor,
        )

    def as_tuple(self) -> tuple[float, float, float, float]:
        """In the order cpu, memory, network_in, network_out."""
        return (self.cpu, self.memory, self.network_in, self.network_out)
