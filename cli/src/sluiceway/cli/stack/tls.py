"""A throw-away certificate authority with one server and one client certificate, for trying TLS on loopback.

It needs the development dependency `cryptography`, which is imported only when certificates are made.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder

VALID_DAYS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Paths of PEM files. The server's certificate is for 127.0.0.1 and localhost."""

    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path


def make_certificates(directory: Path, *, client_name: str = "sluiceway") -> Certificates:
    """Writes a new authority and the two certificates that it signed into `directory`.

    Args:
        directory: made if it does not exist.
        client_name: the common name of the client's certificate.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    directory.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign(_builder("sluiceway test authority", authority_key, authority=True), authority_key)
    _write_certificate(directory / "ca.pem", authority)
    for file, name in (("server", "localhost"), ("client", client_name)):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(_builder(name, key, authority=False).issuer_name(authority.subject), authority_key)
        _write_certificate(directory / f"{file}.pem", certificate)
        _write_key(directory / f"{file}.key", key)
    return Certificates(
        ca=directory / "ca.pem",
        certificate=directory / "server.pem",
        key=directory / "server.key",
        client_certificate=directory / "client.pem",
        client_key=directory / "client.key",
    )


def _builder(name: str, key: EllipticCurvePrivateKey, *, authority: bool) -> CertificateBuilder:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if authority:
        return builder.issuer_name(subject)
    # A server that asks for client certificates also calls itself, so that its own one must do as such.
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False).add_extension(
        x509.SubjectAlternativeName(names), critical=False
    )


def _sign(builder: CertificateBuilder, key: EllipticCurvePrivateKey) -> Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _write_certificate(path: Path, certificate: Certificate) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    path.write_bytes(certificate.public_bytes(Encoding.PEM))


def _write_key(path: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
