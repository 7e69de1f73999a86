"""An S3-compatible bucket as an object store, through boto3.

Neighbours: `api` states the contract, `open` builds the client. One HTTP request a call: retrying is the sink's, which
checks its lease before each. Every client error becomes one of ours here. Bodies are guarded in transit by TLS or, over
plain HTTP, by the signature's SHA-256; at rest by the checksums of Parquet's readers and the store itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.exceptions as client_errors
import pyarrow as pa
from botocore.config import Config

from sluiceway.common import secrets
from sluiceway.common.errors import AccessDenied, SinkUnavailable, SinkUnfit, SluicewayError
from sluiceway.common.specs.models import S3
from sluiceway.worker.objects.api import StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 30
CONNECTIONS: Final = 32
CONFLICT_TRIES: Final = 5

_MISSING: Final = {"404", "NoSuchKey", "NotFound"}
_EXISTS: Final = {"412", "PreconditionFailed"}
_CONFLICT: Final = {"409", "ConditionalRequestConflict", "OperationAborted"}
_BUSY: Final = {"429", "SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestLimitExceeded"}
_KEYS: Final = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}
_CREDENTIALS: Final = (
    client_errors.NoCredentialsError,
    client_errors.PartialCredentialsError,
    client_errors.CredentialRetrievalError,
)


class S3Store:
    """Objects of one bucket below one prefix. Safe to use from many threads."""

    def __init__(self, client: S3Client, bucket: str, prefix: str = "") -> None:
        self._client, self._bucket = client, bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""

    def create(self, key: str, body: bytes | memoryview, metadata: dict[str, str]) -> bool:
        """See ObjectStore."""
        for _ in range(CONFLICT_TRIES):
            with self._wrapped():
                try:
                    self._client.put_object(
                        Bucket=self._bucket,
                        Key=self._prefix + key,
                        Body=_readable(body),
                        Metadata=metadata,
                        IfNoneMatch="*",
                    )
                    return True
                except client_errors.ClientError as error:
                    code = _code(error)
                    if code in _EXISTS:
                        return False
                    if code not in _CONFLICT:
                        raise
        # Two creates at once: the store asks to send again, and the winner's object is there soon.
        raise SinkUnavailable(f"the store reports conflicting creates of {key}")

    def head(self, key: str) -> StoredObject | None:
        with self._wrapped():
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            except client_errors.ClientError as error:
                if _code(error) not in _MISSING:
                    raise
                self._client.head_bucket(Bucket=self._bucket)  # the answer to a HEAD does not say what is missing
                return None
        metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
        return StoredObject(key, answer["ContentLength"], metadata)

    def read(self, key: str) -> bytes:
        with self._wrapped():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
                with contextlib.closing(answer["Body"]) as body:
                    return body.read()
            except client_errors.ClientError as error:
                if _code(error) in _MISSING:
                    raise FileNotFoundError(key) from error
                raise

    def list(self, prefix: str = "") -> list[StoredObject]:
        found: list[tuple[str, int]] = []
        with self._wrapped():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                found += [(item["Key"].removeprefix(self._prefix), item["Size"]) for item in page.get("Contents", [])]
        return [StoredObject(key, size, {}) for key, size in sorted(found)]

    def delete(self, key: str) -> None:
        with self._wrapped():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    @contextlib.contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except client_errors.ClientError as error:
            raise self._meaning(error) from error
        except _CREDENTIALS as error:
            raise AccessDenied(
                f"no credentials for bucket {self._bucket}: set s3.access_key and s3.secret_key of the sink, or give "
                "the worker AWS credentials"
            ) from error
        except client_errors.ParamValidationError:
            raise
        except client_errors.BotoCoreError as error:
            raise SinkUnavailable(f"bucket {self._bucket} at {self._endpoint}: {error}") from error

    @property
    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url

    def _meaning(self, error: client_errors.ClientError) -> SluicewayError:
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        where = f"bucket {self._bucket} at {self._endpoint}"
        if code == "NoSuchBucket" or status == 404:
            return AccessDenied(f"{where} does not exist: create it, or correct the sink's url")
        if code in _KEYS:
            return AccessDenied(f"{where} refuses the keys ({code}): check s3.access_key and s3.secret_key of the sink")
        if code in ("NotImplemented", "501"):
            return SinkUnfit(
                f"{where} does not implement If-None-Match: set delivery: at_least_once, or use a store with "
                "conditional writes"
            )
        if status >= 500 or code in _BUSY or status == 429:
            return SinkUnavailable(f"{where} answered {code}")
        if status == 403 or code == "AccessDenied":
            return AccessDenied(
                f"{where} denies access: the keys need GetObject, PutObject and ListBucket below the url"
            )
        return SinkUnfit(f"{where} answered {code}: {error.response.get('Error', {}).get('Message', '')}")


def s3_client(spec: S3 | None) -> S3Client:
    """A client for the store that a sink names; keys are read from their references now.

    Raises:
        AccessDenied: a secret can't be read.
        SinkUnfit: the endpoint is no address.
    """
    s3 = spec or S3()
    keys: dict[str, Any] = {}
    if s3.access_key is not None and s3.secret_key is not None:
        keys = {
            "aws_access_key_id": secrets.resolve(s3.access_key),
            "aws_secret_access_key": secrets.resolve(s3.secret_key),
        }
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if s3.endpoint else {},
    )
    session = boto3.session.Session()
    try:
        return session.client("s3", endpoint_url=s3.endpoint, region_name=s3.region, config=config, **keys)
    except (ValueError, client_errors.BotoCoreError) as error:
        raise SinkUnfit(f"the sink's s3 settings can't be used, correct them: {error}") from error


def _readable(body: bytes | memoryview) -> Any:
    return body if isinstance(body, bytes) else pa.BufferReader(body)


def _code(error: client_errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
