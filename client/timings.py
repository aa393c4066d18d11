"""How a stream performed, as its receiver saw it. Pure: the clock's readings are arguments."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RECENT_CHUNKS = 4096


@dataclass
class Timings:
    """Readings of one port, in seconds of any steady clock.

    start: when the session was asked for. Chunk latency is the time from one chunk's first frame to the next one's:
    what a chunk costs from end to end once the stream runs. p50 and p99 are of the last `RECENT_CHUNKS` chunks.
    """

    start: float
    first: float | None = None
    last: float | None = None
    frames: int = 0
    chunks: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_CHUNKS))
    _chunk: int = -1
    _chunk_at: float = 0.0

    def note(self, chunk: int, now: float) -> None:
        """Books one frame of chunk `chunk`, received at `now`."""
        if self.first is None:
            self.first = now
        elif chunk != self._chunk:
            self.chunks.append(now - self._chunk_at)
        if chunk != self._chunk:
            self._chunk, self._chunk_at = chunk, now
        self.last = now
        self.frames += 1

    @property
    def fps(self) -> float:
        """Frames a second since the first one; 0 while there is no second one."""
        if self.first is None or self.last is None or self.last <= self.first:
            return 0.0
        return (self.frames - 1) / (self.last - self.first)

    def chunk_ms(self, percent: float) -> float:
        """The chunk latency's percentile, milliseconds; 0 before the second chunk."""
        return 1000 * float(np.percentile(self.chunks, percent)) if self.chunks else 0.0

    def summary(self) -> dict[str, Any]:
        """Plain values for a table or JSON."""
        first = self.first if self.first is not None else None
        return {
            "first_frame_s": None if first is None else round(first - self.start, 3),
            "wall_s": None if self.last is None else round(self.last - self.start, 3),
            "fps": round(self.fps, 2),
            "chunks": len(self.chunks) + (first is not None),
            "chunk_ms_p50": round(self.chunk_ms(50), 2),
            "chunk_ms_p99": round(self.chunk_ms(99), 2),
        }
