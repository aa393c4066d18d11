"""The client's half of `bench/overhead`: frames there and back over one bidirectional call, and a source's frames.

The same code drives the bare echo and the service, so that what differs is theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from PIL import Image

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc
from riverrun.protos.wire import JPEG, Header, Joiner, split

PORT = "frames"
TICKS = 5625  # of 1/90000 s: 16 frames a second
CREDITS = 64
OPTIONS = (("grpc.max_receive_message_length", 8 << 20),)


@dataclass(frozen=True)
class Case:
    """What is sent. codec: RAW or JPEG."""

    height: int
    width: int
    codec: pb.Codec

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width} {pb.Codec.Name(self.codec).removeprefix('CODEC_').lower()}"

    def parts(self) -> list[pb.FramePart]:
        """One frame on the wire: a soft picture, so that its JPEG has the size of a real one."""
        return split(picture(self.height, self.width), Header(PORT, 0, 0, 0, 0, 0, 0), self.codec)


def picture(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: patches of colour about 16 pixels wide, blurred into one another."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def codec_ms(case: Case, times: int = 15) -> float:
    """Median time to decode a frame and to encode one: what a service can't do without."""
    if case.codec != JPEG:
        return 0.0
    parts, took = case.parts(), []
    for _ in range(times):
        began, joiner = time.perf_counter(), Joiner()
        (joined,) = [whole for part in parts if (whole := joiner.add(part))]
        split(255 - joined.array, joined.header, case.codec)
        took.append(time.perf_counter() - began)
    return 1000 * float(np.median(took))


class Line:
    """An open call. Frames are numbered on over all trips. credits: whether the other side counts them."""

    def __init__(self, call: Any, parts: Sequence[pb.FramePart], credits: bool) -> None:
        self._call, self._credits = call, credits
        self._writing = asyncio.Lock()  # grpc.aio takes one write at a time
        self._parts = [pb.FramePart.FromString(part.SerializeToString()) for part in parts]
        self._sent = self._got = self._returned = 0

    async def trips(self, count: int, window: int) -> list[float]:
        """Sends `count` frames, at most `window` of them on their way at a time; seconds of each, there and back."""
        room = asyncio.Semaphore(window)
        began: list[float] = []
        sending = asyncio.create_task(self._send(count, room, began))
        took = []
        for i in range(count):
            await self._take()
            took.append(time.perf_counter() - began[i])
            room.release()
        await sending
        return took

    async def pull(self, count: int) -> float:
        """Takes `count` frames from a source; seconds."""
        began = time.perf_counter()
        for _ in range(count):
            await self._take()
        return time.perf_counter() - began

    async def prime(self) -> None:
        """Gives an echo the frame it is to be a source of."""
        await self.trips(1, 1)
        await self._grant(CREDITS)

    async def _send(self, count: int, room: asyncio.Semaphore, began: list[float]) -> None:
        for _ in range(count):
            await room.acquire()
            began.append(time.perf_counter())
            for part in self._parts:
                part.frame, part.pts = self._sent, self._sent * TICKS
                await self._write(pb.ClientMessage(frame=part))
            self._sent += 1

    async def _take(self) -> None:
        """Reads to the end of the next frame; now and then gives credit for more, and acks."""
        while True:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                raise RuntimeError("the other side ended the call")
            if message.WhichOneof("message") == "frame" and message.frame.part + 1 == message.frame.parts:
                break
        self._got += 1
        if self._credits and self._got - self._returned >= CREDITS // 4:
            await self._grant(self._got - self._returned, message.frame.frame)
            self._returned = self._got

    async def _grant(self, frames: int, received: int | None = None) -> None:
        await self._write(pb.ClientMessage(credit=pb.Credit(port=PORT, frames=frames)))
        if received is not None:
            await self._write(pb.ClientMessage(ack=pb.Ack(port=PORT, frame=received)))

    async def _write(self, message: pb.ClientMessage) -> None:
        async with self._writing:
            await self._call.write(message)


@asynccontextmanager
async def echo_line(channel: grpc.aio.Channel, case: Case, source: bool) -> AsyncIterator[Line]:
    """A line to the echo. source: it sends by itself, against credits."""
    call = rpc.StreamsStub(channel).Connect()
    line = Line(call, case.parts(), credits=source)
    if source:
        await line.prime()
    try:
        yield line
    finally:
        call.cancel()


@asynccontextmanager
async def session_line(channel: grpc.aio.Channel, case: Case, graph: str, **params: Any) -> AsyncIterator[Line]:
    """A line to a session of `graph`, which is closed at the end."""
    sessions = rpc.SessionsStub(channel)
    request = pb.CreateSessionRequest(graph=graph)
    request.params.update({"height": case.height, "width": case.width, **params})
    session = await sessions.Create(request)
    call = rpc.StreamsStub(channel).Connect()
    wish = pb.PortWish(port=PORT, codec=case.codec, credits=CREDITS)
    role = pb.ROLE_CONTROLLER
    opening = pb.Open(session_id=session.session_id, role=role, resume_token=session.resume_token, ports=[wish])
    try:
        await call.write(pb.ClientMessage(open=opening))
        yield Line(call, case.parts(), credits=True)
    finally:
        call.cancel()
        await sessions.Close(pb.CloseSessionRequest(session_id=session.session_id, reason="measured"))
