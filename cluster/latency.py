"""How long a chunk takes on a worker that others share: a published formula, and what was measured since.

Milliseconds. n: active sessions on the worker, the one in question among them; places: the most it may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Ratios = Mapping[int, tuple[float, float]]
"""By n: how many were measured, and the mean ratio of measured to predicted latency."""

RESOLUTION = {"360p": 0.45, "480p": 0.65, "720p": 1.0, "1080p": 1.7, "4k": 3.2}

MEASURED_AFTER = 8.0
"""The prior counts as so many measurements."""

STRAIN = 0.85
"""Share of a worker's time that is planned: what is measured is a mean, and who comes late to a step waits for it."""


class Latency(Protocol):
    """Rising in n."""

    def chunk_ms(self, alone_ms: float, n: int, places: int) -> float:
        """Of a session whose chunk takes `alone_ms` by itself."""


@dataclass(frozen=True)
class Formula:
    """TurboServe's, as its public port has it (peers.md B6): each other session costs `each_ms`, and a worker near its
    limit `crowd_ms` more."""

    each_ms: float = 55.0
    crowd_ms: float = 18.0

    def chunk_ms(self, alone_ms: float, n: int, places: int) -> float:
        return alone_ms + self.each_ms * (n - 1) + self.crowd_ms * (n / places) ** 2


def alone_ms(frames: int, prompt_tokens: int, resolution: str, units: float = 1.0) -> float:
    """A session's own part of the formula, for a chunk of so many frames."""
    return 180 * units * RESOLUTION[resolution] * max(0.5, (frames / 64) ** 0.5) + 0.015 * prompt_tokens


def kept_up(latency: Latency, alone_ms: float, places: int, chunk_ms: float, strain: float = STRAIN) -> float:
    """How many sessions of `places` a worker keeps up with in `strain` of its time, when each wants a chunk every
    `chunk_ms`: where the step of so many takes as long, between two whole numbers by a line."""
    chunk_ms *= strain
    took = [latency.chunk_ms(alone_ms, n, places) for n in range(1, places + 1)]
    n = next((n for n, ms in enumerate(took) if ms > chunk_ms), places)
    if n == places or n == 0:
        return max(float(n), 1.0)
    return n + (chunk_ms - took[n - 1]) / (took[n] - took[n - 1])


def move_ms(state_bytes: int, fixed_ms: float = 8.0, mb_per_ms: float = 32.0) -> float:
    """What a move holds its session up (peers.md B6); the service measures its own."""
    return fixed_ms + state_bytes / 1e6 / mb_per_ms


@dataclass(frozen=True)
class Learned:
    """`prior` corrected by the mean ratio of measured to predicted latency at each n, which fades with distance in n.

    A value: `told` returns the next one. ratios: by n, (count, mean ratio).
    """

    prior: Latency
    ratios: Ratios = field(default_factory=dict)

    def chunk_ms(self, alone_ms: float, n: int, places: int) -> float:
        own = self.prior.chunk_ms(alone_ms, n, places) * self._ratio(n)
        # More company is never quicker, whatever a few measurements say.
        return max(own, *(self.prior.chunk_ms(alone_ms, m, places) * self._ratio(m) for m in self.ratios if m < n), 0.0)

    def told(self, alone_ms: float, n: int, places: int, took_ms: float, most: float = 256.0) -> Learned:
        """most: measurements that count; older ones fade."""
        count, mean = self.ratios.get(n, (0.0, 1.0))
        ratio = took_ms / self.prior.chunk_ms(alone_ms, n, places)
        now = min(count + 1, most)
        return Learned(self.prior, {**self.ratios, n: (now, mean + (ratio - mean) / now)})

    def _ratio(self, n: int) -> float:
        weights = [(count / (1 + abs(n - m)) ** 2, mean) for m, (count, mean) in self.ratios.items()]
        total = sum(weight for weight, _ in weights)
        return (MEASURED_AFTER + sum(w * mean for w, mean in weights)) / (MEASURED_AFTER + total)
