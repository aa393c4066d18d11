"""How long an actor's steps have taken, by how many sessions share it and by how many share a step: what placement and
batching are decided by. Of the last minute only, since load and models change."""

from __future__ import annotations

import statistics
import threading
from collections import defaultdict, deque
from collections.abc import Callable

from riverrun.actors.health import Measured
from riverrun.actors.session import StageSession

KEPT = 64
"""Samples kept of each kind."""

FRESH_S = 60.0
ENOUGH = 3
"""Fewer say nothing: the first step of so many together may be building its kernels."""

HOPED = 0.8
"""A step of more than were ever together is expected to take this share of what they would alone, so that it is tried:
batching is mostly worth it, and where it is not, that is known after `ENOUGH` steps."""

SMOOTH = 0.2
"""Share of the newest measurement in a session's own figure."""


class Measures:
    """Safe for any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._chunks: dict[int, deque[tuple[float, float, float]]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._steps: dict[int, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._counts: dict[int, int] = defaultdict(int)

    def note(self, session: StageSession, active: int, batched: int, wait_ms: float, took_ms: float) -> None:
        """A step of `batched` sessions gave `session` its chunk, `active` sessions wanting chunks of the actor then."""
        with self._lock:
            if batched == 1 and session.alone_ms:
                session.alone_ms += SMOOTH * (took_ms - session.alone_ms)
            elif not session.alone_ms:  # shared with others it would be less; the first step alone says so
                session.alone_ms = took_ms
            now = self._clock()
            self._chunks[active].append((now, session.alone_ms, wait_ms + took_ms))
            self._counts[active] += 1

    def stepped(self, batched: int, took_ms: float) -> None:
        """A step of so many was made; each of its sessions is noted besides."""
        with self._lock:
            self._steps[batched].append((self._clock(), took_ms))

    def measured(self) -> tuple[Measured, ...]:
        """Of each number of sessions there was in the last minute."""
        with self._lock:
            since = self._clock() - FRESH_S
            found = []
            for active, samples in sorted(self._chunks.items()):
                fresh = [(alone, took) for at, alone, took in samples if at >= since]
                if fresh:
                    alone, took = (statistics.fmean(each) for each in zip(*fresh, strict=True))
                    found.append(Measured(active, self._counts[active], alone, took))
            return tuple(found)

    def step_ms(self, batched: int) -> float:
        """What a step of so many takes: measured, or as long for each as in the next smaller one that was, less what is
        hoped for. 0: nothing is known."""
        with self._lock:
            since = self._clock() - FRESH_S
            known = {n: [took for at, took in samples if at >= since] for n, samples in self._steps.items()}
            sizes = [n for n, fresh in known.items() if len(fresh) >= ENOUGH]
            near = max((n for n in sizes if n <= batched), default=min(sizes, default=0))
            if not near:
                return 0.0
            more = max(1.0, HOPED * batched / near) if batched > near else 1.0
            return statistics.median(known[near]) * more
