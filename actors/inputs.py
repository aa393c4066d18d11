"""A client's frames on their way into a session."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from riverrun.actors.host import Hosted
from riverrun.graphs.runner import SessionEnded
from riverrun.models.base import TICKS_PER_SECOND, BadRequest, Chunk
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import RAW, Joined, Joiner

MAX_WAITING = 64
"""Frames that may lie here: what a client sends beyond them, before `input_ack` says that the first were taken, is an
error. The connection must go on reading (credits, pings), so it can't wait for room."""

MAX_WAITING_BYTES = 256 << 20
"""And at most so much of them, decoded; a single frame may be as large."""


MAX_PTS = 1 << 48
"""Ticks: a hundred years, so that no sum of media times leaves the wire's 64 bits."""

INLINE_PARTS = 4
"""A raw frame of so many parts is put together on the event loop (a millisecond or less); larger ones, and pictures, in
the pool."""


class InputFeed:
    """Puts the frames of one connection together and pushes each as a chunk of one, in order.

    `hosted.inputs` says how many frames of each input the session has: a client that reconnects sends what was not
    acked again, and what had arrived all the same is dropped here. pool: for decoding.
    """

    def __init__(self, hosted: Hosted, pool: Executor) -> None:
        self._hosted, self._pool = hosted, pool
        self._joiner = Joiner()
        self._waiting: asyncio.Queue[Joined | None] = asyncio.Queue()
        self._waiting_bytes = 0
        self._next = dict(hosted.inputs)
        self._finished = False

    async def take(self, part: pb.FramePart) -> None:
        """Raises WireError, BadRequest (numbers with a gap, too many waiting)."""
        joined = await self._joined(part)
        if joined is None:
            return
        header, due = joined.header, self._next.get(joined.header.port, 0)
        if header.frame < due:
            return
        if header.frame > due:
            raise BadRequest(f"input {header.port!r}: frame {header.frame} came where {due} was due")
        if self._waiting.qsize() >= MAX_WAITING:
            raise BadRequest(f"more than {MAX_WAITING} input frames wait; send more as input_ack comes")
        if self._waiting.qsize() and self._waiting_bytes + joined.array.nbytes > MAX_WAITING_BYTES:
            raise BadRequest(f"more than {MAX_WAITING_BYTES >> 20} MiB of input wait; send more as input_ack comes")
        self._waiting_bytes += joined.array.nbytes
        self._next[header.port] = due + 1
        self._waiting.put_nowait(joined)

    def finish(self) -> None:
        """No more input: the session is finished when the frames before this have gone in. Raises WireError in the
        middle of a frame. Said again, it says nothing more, and nothing more is kept."""
        self._joiner.check_whole()
        if not self._finished:
            self._finished = True
            self._waiting.put_nowait(None)

    async def run(self) -> None:
        """Pushes until cancelled, or the session has ended. Raises BadRequest for an input the graph has not."""
        runner = self._hosted.runner
        try:
            while True:
                joined = await self._waiting.get()
                if joined is None:
                    await runner.finish()
                    continue
                self._waiting_bytes -= joined.array.nbytes
                async with self._hosted.feeding:
                    await self._push(joined)
        except SessionEnded:
            return  # the end is on its way to the client

    async def _joined(self, part: pb.FramePart) -> Joined | None:
        """Nobody else waits while a large frame is decoded."""
        is_large = part.parts > INLINE_PARTS or part.codec != RAW
        if not is_large or part.part + 1 < part.parts:
            return self._joiner.add(part)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._joiner.add, part)

    async def _push(self, joined: Joined) -> None:
        """Unless the client's other connection has had it pushed meanwhile."""
        port, number = joined.header.port, joined.header.frame
        if number == self._hosted.inputs.get(port, 0):
            await self._hosted.runner.push(port, self._chunk(joined))
            self._hosted.inputs[port] = number + 1
            self._hosted.input_pts[port] = joined.header.pts

    def _chunk(self, joined: Joined) -> Chunk:
        """ticks to the next frame: as from the last one to this; for the first, the session's own rate."""
        header = joined.header
        if not 0 <= header.pts <= MAX_PTS:
            raise BadRequest(f"input {header.port!r}: pts must be 0..{MAX_PTS}, frame {header.frame} has {header.pts}")
        fps = next((o.fps for o in self._hosted.runner.status().outputs), 16.0)
        usual = round(TICKS_PER_SECOND / fps)
        ticks = header.pts - self._hosted.input_pts.get(header.port, header.pts - usual)
        if ticks <= 0:
            raise BadRequest(f"input {header.port!r}: pts must rise, frame {header.frame} has {header.pts}")
        return Chunk(header.port, joined.array[None], pts=header.pts, frame_ticks=ticks, frames=1)
