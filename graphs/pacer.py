"""How far a session is ahead of its controller, and for how long its sources stand still for that (`pacing`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from riverrun.cluster.slack import rest_s
from riverrun.graphs.audience import Audience
from riverrun.graphs.driver import StageDriver
from riverrun.graphs.pacing import lead_s, parked_s
from riverrun.graphs.waiting import Clock

LEAST_SLEEP_S = 0.001


class Pacer:
    """sources: drivers that nothing goes into. limit_s: the most lead at which they begin a step; 0: no limit, and they
    never stand."""

    def __init__(self, audience: Audience, sources: Sequence[StageDriver], limit_s: float, clock: Clock):
        self._audience, self._sources, self._limit_s, self._clock = audience, sources, limit_s, clock

    @property
    def lead_s(self) -> float:
        """Seconds of media made and not played."""
        return lead_s(self._audience.made, self._audience.playhead.now())

    @property
    def slack_s(self) -> float | None:
        """As `lead_s`; None before the first frame was delivered."""
        return self.lead_s if self._audience.playhead.now() else None

    @property
    def parked_s(self) -> float:
        """For how long no step may be begun, since the lead is too long or a source rests between two chunks. inf:
        until more is delivered, or the player goes on."""
        if not self._limit_s:
            return 0.0
        parked = parked_s(self._audience.made, self._audience.playhead.now(), self._limit_s)
        return max([parked, *map(self._rest_s, self._sources)])

    def until_known(self) -> float | None:
        """Seconds to sleep while parked; None while not, or until something else happens first."""
        seconds = self.parked_s
        return max(seconds, LEAST_SLEEP_S) if 0 < seconds < math.inf else None

    def _rest_s(self, source: StageDriver) -> float:
        """What is left of its rest between two chunks."""
        about = source.description
        if not (source.wait_ms and about.fps):
            return 0.0
        took_s = (source.wait_ms[-1] + source.compute_ms[-1]) / 1000
        return rest_s(about.chunk_frames / about.fps, took_s) - (self._clock.now() - source.answered_at)
