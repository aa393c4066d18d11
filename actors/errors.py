"""Where exceptions become gRPC codes: the only place, at the edge."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode as Code

from riverrun.actors.sessions import NoRoom
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.stage import Lost, Mismatch, StaleEpoch, StepFailed
from riverrun.models.base import BadRequest, Corrupt, Unavailable, one_line
from riverrun.protos.wire import WireError
from riverrun.store.records import Conflict

log = logging.getLogger(__name__)
DOMAIN = "riverrun"


class NotFound(BadRequest):
    """There is no such graph, session or job."""


class Unauthenticated(BadRequest):
    """Who calls is not known: no token, or a wrong one."""


class Denied(BadRequest):
    """The caller may not do this: its role, a wrong resume token, or a viewer that wants to steer."""


class Malformed(BadRequest):
    """What came is no message of the kind that was due."""

    def __init__(self, error: DecodeError) -> None:
        _, _, said = str(error).partition("'")  # Error parsing message with type 'riverrun.v1.Open': <why>
        kind, _, why = said.partition("': ")
        super().__init__(f"the message can't be read as {kind or 'any'}: {why or error}; text must be UTF-8")


class SessionFailed(Corrupt):
    """The session ended by a fault, which its reason names. fault: what was raised.

    To a client it means what `fault` means where that says how things stand (an actor is gone, another gateway took
    the session), and else that the service failed.
    """

    def __init__(self, reason: str, fault: BaseException | None = None) -> None:
        super().__init__(reason)
        self.fault = fault


@dataclass(frozen=True)
class Meaning:
    """What an exception is to a client. retry_s: when trying again may help; 0: it won't."""

    code: Code
    reason: str
    retry_s: float = 0.0


_MEANINGS: tuple[tuple[type[Exception], Meaning], ...] = (  # the first that fits
    (NotFound, Meaning(Code.NOT_FOUND, "NOT_FOUND")),
    (Unauthenticated, Meaning(Code.UNAUTHENTICATED, "UNAUTHENTICATED")),
    (Denied, Meaning(Code.PERMISSION_DENIED, "DENIED")),
    (SessionEnded, Meaning(Code.FAILED_PRECONDITION, "SESSION_ENDED")),
    (BadRequest, Meaning(Code.INVALID_ARGUMENT, "BAD_REQUEST")),
    (WireError, Meaning(Code.INVALID_ARGUMENT, "BAD_FRAME")),
    (NoRoom, Meaning(Code.RESOURCE_EXHAUSTED, "NO_ROOM", retry_s=5.0)),
    (StaleEpoch, Meaning(Code.ABORTED, "TAKEN_OVER", retry_s=1.0)),
    (Conflict, Meaning(Code.ABORTED, "TAKEN_OVER", retry_s=1.0)),
    (Unavailable, Meaning(Code.UNAVAILABLE, "UNAVAILABLE", retry_s=1.0)),
    (StepFailed, Meaning(Code.INTERNAL, "STEP_FAILED")),
    (Mismatch, Meaning(Code.FAILED_PRECONDITION, "ENGINE_MISMATCH")),
    (SessionFailed, Meaning(Code.INTERNAL, "SESSION_FAILED")),
    (Corrupt, Meaning(Code.DATA_LOSS, "CORRUPT")),
)


def meaning(error: Exception) -> Meaning:
    """The code and reason of any exception; INTERNAL for what is none of ours."""
    if isinstance(error, SessionFailed) and isinstance(error.fault, Unavailable | Mismatch | Lost):
        return meaning(error.fault)
    return next((m for kind, m in _MEANINGS if isinstance(error, kind)), Meaning(Code.INTERNAL, "INTERNAL"))


def status(error: Exception) -> status_pb2.Status:
    """The google.rpc.Status of an exception: one line, ErrorInfo, and RetryInfo where trying again may help."""
    what = meaning(error)
    details = [error_details_pb2.ErrorInfo(reason=what.reason, domain=DOMAIN)]
    if what.retry_s:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(what.retry_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    ours = isinstance(error, BadRequest | Unavailable | Corrupt | WireError)
    text = str(error) if ours else f"internal error: {type(error).__name__}: {error}"
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=what.code.value[0], message=one_line(text), details=packed)


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    """Ends a call with the status of `error`."""
    rich = status(error)
    if meaning(error).reason == "INTERNAL":
        log.error("%s", rich.message, exc_info=error)
    trailers = (("grpc-status-details-bin", rich.SerializeToString()),)
    try:
        await context.abort(meaning(error).code, rich.message, trailers)
    except grpc.aio.InternalError:
        raise _left() from None
    raise AssertionError("abort does not return")


@contextlib.asynccontextmanager
async def mapped(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """Whatever is raised inside ends the call with its status."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except grpc.aio.InternalError:  # of a write
        raise _left() from None
    except Exception as error:  # noqa: BLE001 - the edge: every exception becomes a status here
        await abort(context, _first(error))


def unary(
    method: Callable[[Any, Any, grpc.aio.ServicerContext], Awaitable[Any]],
) -> Callable[[Any, Any, grpc.aio.ServicerContext], Awaitable[Any]]:
    """For methods of servicers: `mapped` around them."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with mapped(context):
            return await method(self, request, context)

    return call


def _left() -> asyncio.CancelledError:
    """The client has left, so there is nobody to tell: grpc takes this as the end of such a call, and would log an
    AbortError that its own `abort` did not raise."""
    return asyncio.CancelledError("the client has left")


def _first(error: Exception) -> Exception:
    """The first of a group: a runner opens its stages side by side."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return Malformed(error) if isinstance(error, DecodeError) else error
