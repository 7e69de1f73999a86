"""The small HTTP server of every service: `/healthz`, `/readyz`, `/metrics`, and what a service adds to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import prometheus_client
import uvicorn
from fastapi import FastAPI, Response

Check = Callable[[], str | None]


def make_app(*, title: str, alive: Check, ready: Check) -> FastAPI:
    """An app whose checks return None when all is well and otherwise the reason that is shown with status 503."""
    app = FastAPI(title=title, openapi_url="/openapi.json")

    def answer(check: Check) -> Response:
        reason = check()
        return Response(reason or "ok", status_code=503 if reason else 200, media_type="text/plain")

    @app.get("/healthz")
    def healthz() -> Response:
        return answer(alive)

    @app.get("/readyz")
    def readyz() -> Response:
        return answer(ready)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return app


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the service decides what a signal means."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 takes any free one."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(128)
    return sock


async def serve(app: FastAPI, sock: socket.socket) -> None:
    """Serves until cancelled."""
    server = _Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    task = asyncio.ensure_future(server.serve([sock]))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        server.should_exit = True
        server.force_exit = True
        await task
        raise
