"""What a user of the client can catch. Every error has a code and one clear line; none shows gRPC's own traceback."""

from __future__ import annotations

import re

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS = "grpc-status-details-bin"


class Error(Exception):
    """Something the service or the connection refused. `str()` is one line; `code` is a gRPC code's name."""

    def __init__(self, message: str, code: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.code = code


class BadRequest(Error):
    """An unknown parameter, a value that can't work, or a call in the wrong state."""


class NotFound(Error):
    """No such graph, session or job (it may have ended and been forgotten)."""


class Denied(Error):
    """The service does not know who calls (code UNAUTHENTICATED), or that caller may not do this."""


class NoRoom(Error):
    """The service is full, or the caller's quota is; later it may work."""


class Unavailable(Error):
    """No service answers there, or it stayed away for longer than the client waits."""


class Rejected(Error):
    """A control was refused; the stream goes on unchanged."""


class Replaced(Error):
    """Another client took over this session's controls with its resume token."""


_CLASSES: dict[str, type[Error]] = {
    "INVALID_ARGUMENT": BadRequest,
    "FAILED_PRECONDITION": BadRequest,
    "OUT_OF_RANGE": BadRequest,
    "UNIMPLEMENTED": BadRequest,
    "NOT_FOUND": NotFound,
    "UNAUTHENTICATED": Denied,
    "PERMISSION_DENIED": Denied,
    "RESOURCE_EXHAUSTED": NoRoom,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Unavailable,
}
_PASSING = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


def passing(error: grpc.aio.AioRpcError) -> bool:
    """Whether connecting again may help: the service is away, or cut the call while it shut down.

    grpc.aio says "Internal error from Core" when a message of ours met a call that had just ended; how it had ended
    is lost then.
    """
    return error.code() in _PASSING or error.details() == "Internal error from Core"


def come_back_s(error: grpc.aio.AioRpcError) -> float:
    """When to try again, as a full service says; 0.0 where it does not."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return 0.0
    for key, value in error.trailing_metadata() or ():
        for detail in status_pb2.Status.FromString(value).details if key == DETAILS else ():
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return info.retry_delay.ToTimedelta().total_seconds()
    return 0.0


def from_rpc(error: grpc.aio.AioRpcError, address: str) -> Error:
    """The error a user sees for a failed call."""
    code = error.code().name
    details = " ".join((error.details() or "").split())
    if code == "UNAVAILABLE" and details.startswith(("failed to connect", "connections to all backends", "DNS")):
        details = _unreached(details, address)
    elif code == "UNAUTHENTICATED":
        details = f"the service at {address} does not know you: {details} (RIVERRUN_TOKEN, --token-file, token=)"
    elif code == "UNIMPLEMENTED":
        details = f"what answers at {address} is no riverrun service, or one of another version"
    elif code == "RESOURCE_EXHAUSTED" and (sizes := re.search(r"larger than max \((\d+) vs\.? (\d+)\)", details)):
        details, code = f"a message has {int(sizes[1]):,} bytes, too many for the other side", "INVALID_ARGUMENT"
    elif code == "DEADLINE_EXCEEDED":
        details = f"the service at {address} did not answer in time"
    return _CLASSES.get(code, Error)(details or f"the call failed with {code}", code)


def _unreached(details: str, address: str) -> str:
    """Why no connection came about, in our words: gRPC's are long, and hide the reason at their end."""
    if "WRONG_VERSION_NUMBER" in details:
        return f"what answers at {address} speaks no TLS; leave ca, cert and key out"
    if re.search("handshake failed", details, re.I):
        why = details.removesuffix(": OK").rpartition("SSL routines:")[2].rpartition(": ")[2]
        return f"no TLS with the service at {address}: {why}"
    if "Socket closed" in details:
        return f"what answers at {address} hung up: it wants TLS, or a certificate that it knows (ca, cert, key)"
    return f"no riverrun service answers at {address}; start one with `riverrun serve`"
