"""The embedded Kafka-compatible broker: starts at once, needs no Java, and keeps everything in memory.

It writes what it holds when it is stopped in an orderly way; what it holds is lost when it is killed. It names every
transaction that was ever aborted in each answer, also those that ended before the wanted offset; a reader then takes a
later transaction of the same producer for aborted, too. So it is no broker for transactions that abort. `kafka.py` has
the real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sluiceway.cli.stack.binaries import noida_binary
from sluiceway.cli.stack.kafka_protocol import known_brokers
from sluiceway.cli.stack.ports import LOOPBACK
from sluiceway.cli.stack.process import Server


class EmbeddedBroker(Server):
    """A Kafka-compatible broker of one node; see `Server` for the options."""

    port_names = ("kafka",)

    def __init__(self, name: str = "broker", **options: Any) -> None:
        super().__init__(name, **options)

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"{LOOPBACK}:{self.ports['kafka']}"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def command(self) -> Sequence[str]:
        kafka = ["--only", "kafka", "--kafka-port", str(self.ports["kafka"])]
        return [str(noida_binary()), "start", *kafka, "--host", LOOPBACK, "--data-dir", str(self._data)]

    def environment(self) -> Mapping[str, str]:
        return {"HOME": str(self.directory)}

    def probe(self) -> bool:
        return known_brokers(self.ports["kafka"]) > 0
