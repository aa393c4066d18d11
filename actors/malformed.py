"""Messages that are no protobuf, hold text that is no UTF-8, or are too large: refused like any other wrong request.

gRPC reads a request before its method is called, and tells a client UNKNOWN and our parser's own words if that fails.
(A stream's messages are read inside its method, where `errors.mapped` sees it.)
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from riverrun.actors.errors import Malformed, abort
from riverrun.models.base import BadRequest

MAX_BYTES = 4 << 20
"""Of a message: a frame is sent in parts of at most 1 MiB."""

UNREAD_BYTES = 4 * MAX_BYTES
"""What is larger gRPC does not even read, and refuses in its own words."""

Read = Callable[[bytes], Any]


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Around methods that take one request: one that can't be read ends the call with INVALID_ARGUMENT."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        if handler.request_streaming:
            return handler._replace(request_deserializer=_bounded(handler.request_deserializer))
        return handler._replace(
            request_deserializer=_reading(handler.request_deserializer),
            unary_unary=handler.unary_unary and _answering(handler.unary_unary),
            unary_stream=handler.unary_stream and _streaming(handler.unary_stream),
        )


def _bounded(read: Read) -> Read:
    """Raises BadRequest for a message that is too large."""

    def tried(data: bytes) -> Any:
        if len(data) > MAX_BYTES:
            raise BadRequest(f"a message has {len(data):,} bytes, at most {MAX_BYTES:,}; frames go in parts of 1 MiB")
        return read(data)

    return tried


def _reading(read: Read) -> Read:
    """The request, or BadRequest where it can't be read."""
    bounded = _bounded(read)

    def tried(data: bytes) -> Any:
        try:
            return bounded(data)
        except DecodeError as error:
            return Malformed(error)
        except BadRequest as error:
            return error

    return tried


def _answering(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if isinstance(request, BadRequest):
            await abort(context, request)
        return await method(request, context)

    return call


def _streaming(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    if not inspect.isasyncgenfunction(method):  # one that writes its answers itself
        return _answering(method)

    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        if isinstance(request, BadRequest):
            await abort(context, request)
        async for answer in method(request, context):
            yield answer

    return call
