"""What a run is judged by (peers.md §3.1)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Playout:
    """One viewer's buffer: CPR counts the seconds it played against those it stood, from its first chunk on.

    made, played: seconds of media. A session that falls silent plays out what is there and begins anew.
    """

    buffer_s: float = 0.0
    at: float = 0.0
    is_playing: bool = False
    played_s: float = 0.0
    stalled_s: float = 0.0

    def lead(self, now: float) -> float:
        """Media made and not played; negative by how long it has stood."""
        return self.buffer_s - (now - self.at) if self.is_playing else 0.0

    def advance(self, now: float) -> None:
        if self.is_playing:
            elapsed = now - self.at
            play = min(self.buffer_s, elapsed)
            self.played_s += play
            self.stalled_s += elapsed - play
            self.buffer_s -= play
        self.at = now

    def add(self, now: float, media_s: float) -> None:
        self.advance(now)
        self.is_playing = True
        self.buffer_s += media_s

    def end(self, now: float) -> None:
        """Nothing more is wanted: what is there is played out, and its end is no stall."""
        if self.is_playing:
            elapsed = now - self.at
            self.stalled_s += max(0.0, elapsed - self.buffer_s)
            self.played_s += self.buffer_s
        self.buffer_s, self.is_playing, self.at = 0.0, False, now


@dataclass
class Tally:
    """Collected while a run goes on. Times of chunks and first chunks are in milliseconds."""

    chunk_ms: array[float] = field(default_factory=lambda: array("d"))
    first_ms: array[float] = field(default_factory=lambda: array("d"))
    steps: int = 0
    busy_s: float = 0.0
    active_s: float = 0.0
    played_s: float = 0.0
    stalled_s: float = 0.0
    worker_s: float = 0.0
    unplaced_s: float = 0.0
    migrations: int = 0
    recoveries: int = 0
    peak_workers: int = 0
    decide_ms: float = 0.0

    def score(self, policy: str, trace: str) -> Score:
        chunk = np.array(self.chunk_ms or [0.0])
        first = np.array(self.first_ms or [0.0])
        p50, p95, p99 = (float(v) for v in np.percentile(chunk, (50, 95, 99)))
        watched = self.played_s + self.stalled_s
        return Score(
            policy=policy,
            trace=trace,
            chunks=len(self.chunk_ms),
            steps=self.steps,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=float(chunk.max()),
            ttfc_p50_ms=float(np.median(first)),
            ttfc_p95_ms=float(np.percentile(first, 95)),
            cpr=self.played_s / watched if watched else 1.0,
            cost=self.worker_s,
            peak_workers=self.peak_workers,
            migrations=self.migrations,
            recoveries=self.recoveries,
            unplaced_s=self.unplaced_s,
            active_s=self.active_s,
            busy=self.busy_s / self.worker_s if self.worker_s else 0.0,
            decide_ms=self.decide_ms,
        )


@dataclass(frozen=True)
class Score:
    """cost: worker-seconds, a worker counted from when it was asked for. unplaced_s: seconds that active sessions had
    no place, of active_s that they were active. busy: share of the cost that was spent in steps. decide_ms: the longest
    decision of this run, on the clock."""

    policy: str
    trace: str
    chunks: int
    steps: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    ttfc_p50_ms: float
    ttfc_p95_ms: float
    cpr: float
    cost: float
    peak_workers: int
    migrations: int
    recoveries: int
    unplaced_s: float
    active_s: float
    busy: float
    decide_ms: float
