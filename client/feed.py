"""The client's bookkeeping for one input: frames that were sent and may have to be sent again. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

MOST_HELD, LEAST_HELD = 48, 32
"""Frames that may be sent and not acked: below what a gateway lets wait, above what it takes to make a checkpoint due,
which is when frames are acked."""

MOST_HELD_BYTES = 128 << 20
"""Of large frames fewer are held, but never less than `LEAST_HELD`."""


@dataclass(frozen=True, eq=False)
class Sent:
    """One frame on its way in. pts: media time, ticks of 1/90000 s."""

    number: int
    pts: int
    array: np.ndarray


@dataclass
class Feed:
    """One input port of one stream, across its connections. number: of the next frame. held: those that may be needed
    again, oldest first. finished: no more will come."""

    port: str
    number: int = 0
    held: deque[Sent] = field(default_factory=deque)
    held_bytes: int = 0
    last_pts: int = -1
    finished: bool = False

    @property
    def has_room(self) -> bool:
        """Whether another frame may be sent now."""
        if len(self.held) < LEAST_HELD:
            return True
        return len(self.held) < MOST_HELD and self.held_bytes < MOST_HELD_BYTES

    def add(self, array: np.ndarray, pts: int) -> Sent:
        """Numbers the next frame. Raises ValueError for a time that does not come after the last one's, or the end."""
        if self.finished:
            raise ValueError(f"input {self.port!r} was finished, it takes no more frames")
        if pts <= self.last_pts:
            raise ValueError(f"frame {self.number} of input {self.port!r}: its time must lie after the last one's")
        sent = Sent(self.number, pts, array)
        self.held.append(sent)
        self.held_bytes += array.nbytes
        self.number, self.last_pts = self.number + 1, pts
        return sent

    def ack(self, frame: int) -> None:
        """Frames up to this number need not be sent again. A repeat says nothing."""
        while self.held and self.held[0].number <= frame:
            self.held_bytes -= self.held.popleft().array.nbytes

    def again(self) -> Iterator[Sent]:
        """What a new connection is sent first; the service drops what it has."""
        return iter(tuple(self.held))
