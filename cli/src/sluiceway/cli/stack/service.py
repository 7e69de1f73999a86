"""Our own services as child processes: a scheduler, a worker."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sluiceway.cli.stack.ports import LOOPBACK
from sluiceway.cli.stack.process import Server, http_status

STOP_LIMIT_S = 75.0  # longer than a worker's drain


class PythonService(Server):
    """`python -m MODULE` that serves HTTP on the port of `SLUICEWAY_HTTP_PORT`.

    Args:
        name: what it is called in logs and errors.
        module: what to run, for example `sluiceway.worker`.
        settings: environment variables (`SLUICEWAY_…`).
        ready_path: answers 200 once the service is ready.
    """

    port_names = ("http",)

    def __init__(
        self, name: str, module: str, settings: Mapping[str, str], *, ready_path: str = "/readyz", **options: Any
    ) -> None:
        super().__init__(name, **{"stop_limit_s": STOP_LIMIT_S, **options})
        self._module = module
        self._settings = dict(settings)
        self._ready_path = ready_path

    @property
    def url(self) -> str:
        """The base URL of its HTTP server."""
        return f"http://{LOOPBACK}:{self.ports['http']}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", self._module]

    def environment(self) -> Mapping[str, str]:
        return {
            "PYTHONUNBUFFERED": "1",
            **self._settings,
            "SLUICEWAY_HTTP_HOST": LOOPBACK,
            "SLUICEWAY_HTTP_PORT": str(self.ports["http"]),
        }

    def probe(self) -> bool:
        return http_status(self.ports["http"], self._ready_path) == 200
