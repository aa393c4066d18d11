"""An authority of a test's own, and what it signs. Elliptic keys: made in a millisecond."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Signed:
    """PEM files."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates into a folder; `path` is its own."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._built(self._name, self._key, 365, x509.BasicConstraints(ca=True, path_length=0))
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(certificate)

    def sign(self, name: str, tenant: str = "", role: str | list[str] = "", days: float = 30, file: str = "") -> Signed:
        """For 127.0.0.1 and localhost. days: until it expires; negative: it has."""
        roles = [role] if isinstance(role, str) else role
        fields = [(NameOID.COMMON_NAME, name), (NameOID.ORGANIZATION_NAME, tenant)]
        fields += [(NameOID.ORGANIZATIONAL_UNIT_NAME, each) for each in roles]
        subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in fields if value])
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
        signed = Signed(self._folder / f"{file or name}.pem", self._folder / f"{file or name}.key")
        signed.cert.write_bytes(self._built(subject, key, days, hosts))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        signed.key.write_bytes(key.private_bytes(*form))
        return signed

    def _built(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: float, more: x509.ExtensionType
    ) -> bytes:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW - datetime.timedelta(days=90))
        builder = builder.not_valid_after(NOW + datetime.timedelta(days=days))
        builder = builder.add_extension(more, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
