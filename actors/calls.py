"""Counts calls by method and code, whatever ends them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc

Count = Callable[[str, str], None]
Context = grpc.aio.ServicerContext
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class CountCalls(grpc.aio.ServerInterceptor):
    """count: called with the method ("/riverrun.v1.Sessions/Create") and the code's name when a call is over."""

    def __init__(self, count: Count) -> None:
        self._count = count

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:  # no such method, and its name is the caller's: it is not counted
            return None
        kind = next(name for name in _KINDS if getattr(handler, name) is not None)
        return handler._replace(**{kind: self._counted(getattr(handler, kind), details.method)})

    def _counted(self, inner: Callable[..., Any], method: str) -> Callable[..., Any]:
        """The same behaviour, of the same kind: grpc.aio looks at what sort of function it is."""

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counting(method, context):
                async with aclosing(inner(request, context)) as replies:  # left early, the method ends now
                    async for each in replies:
                        yield each

        async def call(request: Any, context: Context) -> Any:
            with self._counting(method, context):
                return await inner(request, context)

        return stream if inspect.isasyncgenfunction(inner) else call

    @contextmanager
    def _counting(self, method: str, context: Context) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AbortError:
            self._count(method, code_name(context.code()))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._count(method, "CANCELLED")
            raise
        except BaseException:
            self._count(method, "UNKNOWN")
            raise
        else:
            self._count(method, code_name(context.code()))


def code_name(code: Any) -> str:
    """grpc.aio says a code as `StatusCode` or number, and nothing at all while it is OK."""
    number = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 0)
    return _NAMES.get(number, "UNKNOWN")
