"""One connection of a stream: a bidirectional call that is kept alive by pings and known to be dead by silence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from riverrun.client.types import Patience
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata that asks for a trace of the next chunk, where whoever started this process handed it one of its own."""
    wanted = os.environ.get("TRACEPARENT")
    return (("traceparent", wanted),) if wanted else ()


class Lost(Exception):
    """The connection is of no more use; another may be. later_s: the service said to come so much later."""

    def __init__(self, message: str, later_s: float = 0.0) -> None:
        super().__init__(message)
        self.later_s = later_s


class Link:
    """Sends without waiting, reads one message at a time, and raises Lost after `Patience.silence` without any."""

    def __init__(self, channel: grpc.aio.Channel, patience: Patience) -> None:
        self._outbox: asyncio.Queue[pb.ClientMessage | None] = asyncio.Queue()
        self._call = rpc.StreamsStub(channel).Connect(self._requests(), metadata=trace_metadata())
        self._patience = patience
        self._open = True

    def send(self, message: pb.ClientMessage) -> None:
        """Sends a message soon; nothing after `half_close`."""
        if self._open:
            self._outbox.put_nowait(message)

    def half_close(self) -> None:
        """Sends nothing more; what the server still sends can be read."""
        self._open = False
        self._outbox.put_nowait(None)

    async def read(self) -> pb.ServerMessage | None:
        """The next message; None when the server has ended the call well. Raises AioRpcError otherwise, and Lost."""
        message = await self._read()
        return None if message is grpc.aio.EOF else message

    def close(self) -> None:
        self.half_close()
        self._call.cancel()

    async def _read(self) -> Any:
        read = asyncio.ensure_future(self._call.read())
        silent = 0.0
        # asyncio.wait, not wait_for: a read that is cancelled would cancel the whole call.
        while not (await asyncio.wait({read}, timeout=self._patience.ping))[0]:
            silent += self._patience.ping
            if silent >= self._patience.silence:
                self._call.cancel()
                await asyncio.wait({read})
                raise Lost(f"no word from the service for {silent:.0f} s")
            self.send(pb.ClientMessage(ping=pb.Ping()))
        if read.cancelled():  # by nobody here: whoever closes a link reads it no more
            raise Lost("the call was cut")
        return read.result()

    async def _requests(self) -> AsyncIterator[pb.ClientMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message
