"""TLS of the gateway's port: certificates are read again when their files have changed, so that renewing one ends no
stream."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from riverrun.configs.auth import TlsConfig
from riverrun.models.base import BadRequest

log = logging.getLogger(__name__)


def server_credentials(config: TlsConfig) -> grpc.ServerCredentials | None:
    """None: the service speaks plain text. Raises BadRequest naming the file that can't be used."""
    if not config.cert:
        return None
    files = CertificateFiles(config)
    # None from `changed` means: as before (the stubs do not say so).
    return grpc.dynamic_ssl_server_credentials(files.first, files.changed, bool(config.client_ca))  # type: ignore[arg-type]


class CertificateFiles:
    """What `grpc.dynamic_ssl_server_credentials` asks for. Raises BadRequest."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._stamp = self._look()
        self.first = certificate_configuration(config)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked before each handshake: the files' contents if they have changed, and make sense."""
        stamp = self._look()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            fresh = certificate_configuration(self._config)
        except BadRequest as error:
            log.warning("the certificates stay as they were: %s", error)
            return None
        log.info("the certificate %s has changed and is in use", self._config.cert)
        return fresh

    def _look(self) -> tuple[int, ...]:
        found: list[int] = []
        for name in filter(None, (self._config.cert, self._config.key, self._config.client_ca)):
            with contextlib.suppress(OSError):
                about = Path(name).expanduser().stat()
                found += [about.st_ino, about.st_size, about.st_mtime_ns]
        return tuple(found)


def certificate_configuration(config: TlsConfig) -> grpc.ServerCertificateConfiguration:
    """Raises BadRequest naming the file that can't be used; gRPC itself would only fail each handshake."""
    cert, key = pem("tls.cert", config.cert), pem("tls.key", config.key)
    leaf = certificates(config.cert, cert)[0]
    try:
        owner = load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise BadRequest(f"tls.key: {config.key} holds no private key in PEM without a password") from None
    if owner.public_key() != leaf.public_key():
        raise BadRequest(f"tls.key: {config.key} is not the key of the certificate {config.cert}")
    ca = pem("tls.client_ca", config.client_ca) if config.client_ca else None
    if ca:
        certificates(config.client_ca, ca)
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)


def pem(what: str, path: str) -> bytes:
    """A file's contents. Raises BadRequest."""
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise BadRequest(f"{what}: {path}: {error.strerror}") from None


def certificates(path: str, data: bytes) -> list[x509.Certificate]:
    """All of a PEM file, at least one. Raises BadRequest."""
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise BadRequest(f"{path} holds no certificate in PEM") from None
