"""From a sink's url to its object store. Neighbours: `__main__` composes with it; no network call is made here."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from sluiceway.common.specs.models import ParquetSink
from sluiceway.worker.objects.api import ObjectStore
from sluiceway.worker.objects.local import LocalStore
from sluiceway.worker.objects.s3 import S3Store, s3_client


def open_store(sink: ParquetSink) -> ObjectStore:
    """The store below the sink's url. One a sink and process: it is safe to share between threads.

    Raises:
        AccessDenied: a secret can't be read, or the directory can't be made.
        SinkUnavailable: the directory's file system fails.
    """
    scheme, _, rest = sink.url.partition("://")
    if scheme == "file":
        return LocalStore(Path(unquote(rest)))
    bucket, _, prefix = rest.partition("/")
    return S3Store(s3_client(sink.s3), bucket, prefix)
