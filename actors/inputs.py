"""A client's frames on their way into a session."""

from __future__ import annotations

import asyncio

from riverrun.graphs.runner import Runner
from riverrun.models.base import TICKS_PER_SECOND, BadRequest, Chunk
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joined, Joiner

MAX_WAITING = 64
"""Frames that may lie here: what a client sends beyond them, before `input_ack` says that the first were taken, is an
error. The connection must go on reading (credits, pings), so it can't wait for room."""


class InputFeed:
    """Puts frames together and pushes each as a chunk of one, in order."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._joiner = Joiner()
        self._waiting: asyncio.Queue[Joined] = asyncio.Queue(MAX_WAITING)
        self._next: dict[str, int] = {}
        self._last_pts: dict[str, int] = {}

    def take(self, part: pb.FramePart) -> None:
        """Raises WireError, BadRequest (numbers with a gap, too many waiting). Repeated frames are dropped."""
        joined = self._joiner.add(part)
        if joined is None:
            return
        header = joined.header
        due = self._next.setdefault(header.port, header.frame)  # a reconnect goes on where the client stands
        if header.frame < due:
            return
        if header.frame > due:
            raise BadRequest(f"input {header.port!r}: frame {header.frame} came where {due} was due")
        self._next[header.port] = due + 1
        try:
            self._waiting.put_nowait(joined)
        except asyncio.QueueFull:
            raise BadRequest(f"more than {MAX_WAITING} input frames wait; send more as input_ack comes") from None

    async def run(self) -> None:
        """Pushes until cancelled. Raises BadRequest for an input the graph has not."""
        while True:
            joined = await self._waiting.get()
            await self._runner.push(joined.header.port, self._chunk(joined))

    def _chunk(self, joined: Joined) -> Chunk:
        """ticks to the next frame: as from the last one to this; for the first, the session's own rate."""
        header = joined.header
        fps = next((o.fps for o in self._runner.status().outputs), 16.0)
        usual = round(TICKS_PER_SECOND / fps)
        ticks = header.pts - self._last_pts.get(header.port, header.pts - usual)
        self._last_pts[header.port] = header.pts
        if ticks <= 0:
            raise BadRequest(f"input {header.port!r}: pts must rise, frame {header.frame} has {header.pts}")
        return Chunk(header.port, joined.array[None], pts=header.pts, frame_ticks=ticks, frames=1)
