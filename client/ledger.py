"""The client's bookkeeping for one port: which frames came, which credits are out. Pure.

At any time `credits + buffered + returning == window`: a frame the server may still send, one that waits for the user,
and one the user has taken but the server has not been told of yet. So memory is bounded by the window.
"""

from __future__ import annotations

from dataclasses import dataclass


class LedgerError(ValueError):
    """The service broke the contract of the port: a gap, or more frames than it had credit for."""


@dataclass
class Ledger:
    """One port of one stream, across its connections.

    window: most frames in flight and waiting together. lossless: the numbers have no gaps (a controller's stream).
    last_received, last_taken: frame numbers, None before the first.
    """

    port: str
    window: int
    lossless: bool = True
    credits: int = 0
    buffered: int = 0
    returning: int = 0
    last_received: int | None = None
    last_taken: int | None = None

    def connect(self) -> int:
        """Credits for a new connection: all that is not waiting for the user. The old connection's are void."""
        self.returning = 0
        self.credits = self.window - self.buffered
        return self.credits

    def receive(self, frame: int) -> bool:
        """Books an arrived frame; False if it came before and must be dropped. Raises LedgerError."""
        if self.credits < 1:
            raise LedgerError(f"frame {frame} of port {self.port!r} came without credit")
        self.credits -= 1
        if self.last_received is not None and frame <= self.last_received:
            self.returning += 1
            return False
        if self.lossless and self.last_received is not None and frame != self.last_received + 1:
            raise LedgerError(f"frame {frame} of port {self.port!r} came after {self.last_received}: frames are lost")
        self.last_received = frame
        self.buffered += 1
        return True

    def take(self, frame: int) -> None:
        """The user has taken a frame out of the buffer."""
        self.buffered -= 1
        self.returning += 1
        self.last_taken = frame

    def refill(self) -> int:
        """Credits to send now: none until a quarter of the window has come together, to keep messages few."""
        if self.returning * 4 < self.window:
            return 0
        due, self.returning = self.returning, 0
        self.credits += due
        return due

    def check(self) -> None:
        """Raises AssertionError where the counts don't add up."""
        counts = (self.credits, self.buffered, self.returning)
        if min(counts) < 0 or sum(counts) != self.window:
            raise AssertionError(f"port {self.port!r}: credits, buffered, returning {counts} of window {self.window}")
