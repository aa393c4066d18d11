"""How a client shows who it is, and knows the service: a bearer token, and TLS."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from riverrun.client import errors

SYSTEM = "system"
Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Tls:
    """PEM files. ca: who signed the service's certificate; "system": the authorities this machine trusts.

    cert, key: the client's own certificate, for a service that asks for one.
    """

    ca: str | Path = SYSTEM
    cert: str | Path = ""
    key: str | Path = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise errors.BadRequest("a client's certificate and its key go together: give both", "INVALID_ARGUMENT")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises BadRequest for a file that can't be read."""
        roots = None if self.ca == SYSTEM else _read(self.ca)
        own = (_read(self.key), _read(self.cert)) if self.cert else (None, None)
        return grpc.ssl_channel_credentials(roots, *own)


@dataclass(frozen=True)
class Credentials:
    """tls None: plain text. token: "" for none."""

    token: str = field(default="", repr=False)
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise errors.BadRequest("a token is one word of printable ASCII characters", "INVALID_ARGUMENT")

    def channel(self, address: str, options: Options) -> Any:
        """A channel whose calls carry the token. Raises BadRequest."""
        made: Any
        if self.tls:
            made = grpc.aio.secure_channel(address, self.tls.credentials(), options=options)
        else:
            made = grpc.aio.insecure_channel(address, options=options)
        return _Carrying(made, self.token) if self.token else made


def credentials(token: str | None = None, tls: Tls | bool | None = None) -> Credentials:
    """What was given, and for what is None the environment: RIVERRUN_TOKEN; RIVERRUN_CA, _CERT and _KEY.

    tls: True for the authorities of this machine, False for plain text.
    """
    if token is None:
        token = os.environ.get("RIVERRUN_TOKEN", "")
    if tls is None:
        ca, cert, key = (os.environ.get(f"RIVERRUN_{name}", "") for name in ("CA", "CERT", "KEY"))
        tls = Tls(ca or SYSTEM, cert, key) if ca or cert or key else False
    return Credentials(token.strip(), Tls() if tls is True else tls or None)


def token_in(path: Path) -> str:
    """The token of a file. Raises BadRequest."""
    try:
        text = path.expanduser().read_text().strip()
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise errors.BadRequest(f"token file {path}: {error.strerror}", "INVALID_ARGUMENT") from None
    if not text:
        raise errors.BadRequest(f"token file {path} holds no token", "INVALID_ARGUMENT")
    return text


class _Carrying:
    """A channel that puts the token into each call. (gRPC's own way to do so works with TLS only.)"""

    def __init__(self, channel: Any, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)
        self.unary_unary = self._carrying(channel.unary_unary)
        self.unary_stream = self._carrying(channel.unary_stream)
        self.stream_stream = self._carrying(channel.stream_stream)

    async def close(self) -> None:
        await self._channel.close()

    def _carrying(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*about: Any, **more: Any) -> Callable[..., Any]:
            call = make(*about, **more)

            def with_token(request: Any, metadata: tuple[tuple[str, str], ...] = (), **options: Any) -> Any:
                return call(request, metadata=(*self._metadata, *metadata), **options)

            return with_token

        return made


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise errors.BadRequest(f"{path}: {error.strerror}", "INVALID_ARGUMENT") from None
