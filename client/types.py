"""What the client hands out: frames and receipts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from riverrun.protos.wire import Joined

TICKS_PER_SECOND = 90_000  # of `pts` on the wire (see riverrun.proto)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of one port; numpy takes it as its array.

    array: what the port carries: uint8 [H, W, 3] RGB for pictures, float32 [H, W] for depth, and so on.
    number: of the frame on its port, from 0, without gaps. seconds: media time. chunk: the chunk it came in.
    revision: the newest control in force for it (0: none).
    """

    array: np.ndarray
    port: str
    number: int
    seconds: float
    chunk: int
    revision: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)


@dataclass(frozen=True)
class Receipt:
    """Where a control took effect: from frame `frame` of chunk `chunk` on."""

    revision: int
    chunk: int
    frame: int


@dataclass(frozen=True)
class Patience:
    """How long a stream waits for its service, in seconds.

    reconnect: away, or answering nothing, before the stream gives up. first_wait, longest_wait: between attempts,
    doubling. room: of a session that had to make room for others, until it finds a place again; how often to ask, the
    service says. ping: silence after which the client asks whether the service is there. silence: after which it isn't.
    """

    reconnect: float = 30.0
    first_wait: float = 0.1
    longest_wait: float = 2.0
    room: float = 600.0
    ping: float = 5.0
    silence: float = 20.0

    def wait(self, attempt: int) -> float:
        """Before attempt number `attempt`, from 0."""
        return min(self.longest_wait, self.first_wait * 2 ** min(attempt, 30))


def frame_of(joined: Joined) -> Frame:
    """The user's frame for one off the wire."""
    header = joined.header
    return Frame(
        array=joined.array,
        port=header.port,
        number=header.frame,
        seconds=header.pts / TICKS_PER_SECOND,
        chunk=header.chunk,
        revision=header.revision,
    )
