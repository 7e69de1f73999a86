"""Kafka's error codes and a client library's exceptions as our errors. Pure."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final

from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    for_code,
)

from sluiceway.common.errors import AccessDenied, SluicewayError, SourceUnavailable

NONE: Final = 0
OFFSET_OUT_OF_RANGE: Final = 1
CORRUPT_MESSAGE: Final = 2
UNKNOWN_TOPIC_OR_PARTITION: Final = 3
NOT_LEADER: Final = 6
INVALID_TOPIC: Final = 17
FENCED_LEADER_EPOCH: Final = 74
UNKNOWN_LEADER_EPOCH: Final = 75
UNKNOWN_TOPIC_ID: Final = 100
INCONSISTENT_TOPIC_ID: Final = 103

_DENIED: Final = frozenset({29, 31})  # topic, cluster authorisation failed
_NAMES: Final = {
    FENCED_LEADER_EPOCH: "FencedLeaderEpoch",
    UNKNOWN_LEADER_EPOCH: "UnknownLeaderEpoch",
    78: "OffsetNotAvailable",
    UNKNOWN_TOPIC_ID: "UnknownTopicId",
    INCONSISTENT_TOPIC_ID: "InconsistentTopicId",
}
_AUTHENTICATION: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

# After these the leader has moved, or what we know of it is old: ask again where it is.
STALE_LEADER: Final = frozenset(
    {UNKNOWN_TOPIC_OR_PARTITION, 5, NOT_LEADER, 8, 9, 56, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH}
    | {UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID}
)


def failure(code: int, subject: str) -> SluicewayError:
    """The error for a broker's error code about a topic or a partition."""
    if code in _DENIED:
        return AccessDenied(f"{subject}: the cluster does not let us read it; grant READ and DESCRIBE to our user")
    if code in (UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID):
        return SourceUnavailable(f"{subject} does not exist on the cluster: create it, or correct the Topic's spec")
    return SourceUnavailable(f"{subject}: the broker answers {code_name(code)}")


def code_name(code: int) -> str:
    """A short name for an error code."""
    return _NAMES.get(code) or f"{for_code(code).__name__.removesuffix('Error')} (code {code})"


def wrapped(error: Exception, subject: str) -> SluicewayError:
    """The error for what went wrong with a connection to `subject`, for example `broker 10.0.0.1:9092`."""
    if isinstance(error, SluicewayError):
        return error
    causes = list(_causes(error))
    if any(isinstance(cause, _AUTHENTICATION) for cause in causes):
        return AccessDenied(
            f"{subject} refuses our credentials ({error}): check sasl.username and the secret of sasl.password"
        )
    if any(_is_certificate_problem(cause) for cause in causes):
        return AccessDenied(f"TLS with {subject} failed, check the certificates: {causes[-1]}")
    if isinstance(error, TimeoutError):
        return SourceUnavailable(f"{subject} does not answer in time")
    return SourceUnavailable(f"{subject} can't be reached: {type(error).__name__}: {error}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = 0
    cause: BaseException | None = error
    while cause is not None and seen < 8:
        yield cause
        cause = cause.__cause__
        seen += 1


def _is_certificate_problem(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    return reason is not None and ("ALERT" in reason or "CERT" in reason)
