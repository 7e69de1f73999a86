"""An S3 store in this process that takes every PUT, conditional or not: what no exactly-once delivery may trust."""

from __future__ import annotations

import io
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow.parquet as pq


class ForgetfulStore:
    """Holds objects in memory, all in one bucket whatever its name. A context manager."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        store = self

        class Handler(_Handler):
            objects = store.objects

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="forgetful store")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def offsets(self, prefix: str) -> list[int]:
        """The offsets of all rows, sorted, with repetitions."""
        tables = [pq.read_table(io.BytesIO(self.objects[key][0]), columns=["_offset"]) for key in self.keys(prefix)]
        return sorted(offset for table in tables for offset in table["_offset"].to_pylist())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, dict[str, str]]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        metadata = {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}
        self.objects[self._key()] = (body, metadata)
        self._answer(200, headers={"ETag": '"etag"'})

    def do_GET(self) -> None:
        if not self._key():
            self._list(parse_qs(urlsplit(self.path).query).get("prefix", [""])[0])
        elif (found := self.objects.get(self._key())) is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, found[0], headers=found[1])

    def do_HEAD(self) -> None:
        found = self.objects.get(self._key())
        if found is None:
            self._answer(404 if self._key() else 200)
        else:
            self._answer(200, found[0], headers=found[1])

    def do_DELETE(self) -> None:
        self.objects.pop(self._key(), None)
        self._answer(204)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _list(self, prefix: str) -> None:
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size></Contents>"
            for key, (body, _) in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        self._answer(200, listing.encode())

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Last-Modified", formatdate(usegmt=True))
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
