"""Credentials of a cluster: a spec's references become an SSL context and SASL arguments.

References are read again for each connection, so that a rotated secret is used without a restart.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from sluiceway.common.errors import AccessDenied
from sluiceway.common.secrets import resolve
from sluiceway.common.specs.models import ClusterSpec, Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a connection needs to know. Never shown: it holds a password."""

    security_protocol: str
    ssl_context: ssl.SSLContext | None = None
    sasl_mechanism: str = "PLAIN"
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def credentials(spec: ClusterSpec) -> Credentials:
    """Reads the secrets that a cluster's spec refers to.

    Raises:
        AccessDenied: a secret can't be read, or a certificate or key is not one.
    """
    context = _ssl_context(spec.tls) if spec.tls is not None else None
    if spec.sasl is None:
        return Credentials(security_protocol="SSL" if context else "PLAINTEXT", ssl_context=context)
    return Credentials(
        security_protocol="SASL_SSL" if context else "SASL_PLAINTEXT",
        ssl_context=context,
        sasl_mechanism=spec.sasl.mechanism,
        username=spec.sasl.username,
        password=resolve(spec.sasl.password),
    )


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=resolve(tls.ca) if tls.ca else None)
        if tls.certificate and tls.key:
            _load_client_certificate(context, tls.certificate, tls.key)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise AccessDenied(f"the cluster's TLS files can't be used: {type(error).__name__}: {error}") from error
    return context


def _load_client_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for reference in (certificate, key):
        if not reference.startswith("file:"):
            raise AccessDenied(f"{reference}: a client certificate and its key are read from files only (file:/path)")
    # An empty password: an encrypted key must fail rather than ask on the terminal.
    context.load_cert_chain(certificate.removeprefix("file:"), key.removeprefix("file:"), password="")
