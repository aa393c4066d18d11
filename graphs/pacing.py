"""How far a session may be ahead of who plays it: a media clock for the player, and how long sources stand for it.

Media time is in ticks of 1/90000 s. The *lead* is what was made minus what was played. Nothing is dropped to shorten
it: the sources stand ("parked", which costs no compute) until the player has come closer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from riverrun.graphs.waiting import Clock
from riverrun.models.base import TICKS_PER_SECOND


@dataclass(frozen=True)
class Position:
    """Of a player, in ticks of media time. held: its clock stands. delivered is never below played."""

    played: float
    delivered: int
    held: bool = False


def moved(at: Position, seconds: float) -> Position:
    """The position `seconds` later: on at 1x, but never past what was delivered (a late frame stalls it)."""
    if at.held:
        return at
    return Position(min(at.delivered, at.played + seconds * TICKS_PER_SECOND), at.delivered)


def lead_s(made: int, at: Position | None) -> float:
    """Seconds of media that are made and not played; 0 before the first frame was delivered."""
    return max(0.0, made - at.played) / TICKS_PER_SECOND if at else 0.0


def parked_s(made: int, at: Position | None, limit_s: float) -> float:
    """For how long no step may be begun. 0: it may. inf: until more is delivered, or the player goes on.

    made: pts of the next frame to be made. limit_s: the most lead at which a step is begun; 0: no limit. A player that
    was given all there is comes to `made` by itself, so this never waits for a frame that waits for it.
    """
    if not limit_s or at is None:
        return 0.0
    target = made - limit_s * TICKS_PER_SECOND
    if at.played >= target:
        return 0.0
    if at.held or at.delivered < target:
        return math.inf
    return (target - at.played) / TICKS_PER_SECOND


class Playhead:
    """Where the controller's player is, as far as the service can know: it plays at 1x from the first frame delivered.

    A frame that comes again after a reconnect is no news. A gap in pts is not played. stalled_s: for so long it stood
    for want of a frame that came; what it waits for now counts when that comes. played_s: for so long it did not stand.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._position: Position | None = None
        self._held = False
        self._looked = self._waited_s = 0.0
        self.played_s = self.stalled_s = 0.0

    def now(self) -> Position | None:
        """None before the first frame was delivered."""
        now = self._clock.now()
        if at := self._position:
            self._position = moved(at, now - self._looked)
            played_s = (self._position.played - at.played) / TICKS_PER_SECOND
            self.played_s += played_s
            self._waited_s += 0.0 if at.held else now - self._looked - played_s
        self._looked = now
        return self._position

    def deliver(self, pts: int, end: int) -> None:
        """A frame that is shown from `pts` to `end` was delivered."""
        at = self.now() or Position(pts, pts, self._held)
        self.stalled_s, self._waited_s = self.stalled_s + self._waited_s, 0.0
        gap = max(0, pts - at.delivered)
        self._position = Position(at.played + gap, max(at.delivered, end), at.held)

    def hold(self, held: bool) -> None:
        """Stops the clock, or lets it go on."""
        self._held = held
        if at := self.now():
            self._position = Position(at.played, at.delivered, held)
