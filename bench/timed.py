"""A model that takes as long as a real one and computes nothing, so that two cores stand for many GPUs."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from riverrun.models.base import Chunk
from riverrun.models.synthetic import Synthetic, SyntheticState


class Timed(Synthetic):
    """A synthetic model whose step of n sessions waits step_ms[n - 1] milliseconds, more or less by up to the share
    `spread`, and frees the core meanwhile."""

    def __init__(self, step_ms: Sequence[float], spread: float = 0.0) -> None:
        self._step_ms, self._spread = tuple(step_ms), spread
        self._draws = random.Random()

    def step(self, states: Sequence[SyntheticState]) -> list[list[Chunk]]:
        began = time.perf_counter()
        takes_ms = self._step_ms[len(states) - 1] * (1 + self._spread * (2 * self._draws.random() - 1))
        made = super().step(states)
        time.sleep(max(0.0, takes_ms / 1000 - (time.perf_counter() - began)))
        return made
