"""How long steps take in a simulated cluster: what the policies are told, and what is so.

A `Profile` is a model on a kind of worker. The truth differs from it by factors that no policy sees.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from riverrun.cluster.latency import Formula, Latency


@dataclass(frozen=True)
class Measured:
    """Latency as it was measured: step_ms[n - 1] is a step of n sessions; past the last, each one more costs what the
    last one did. A session that is slower alone is slower by as much in company."""

    step_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = self.step_ms
        if not steps or min(steps) <= 0 or any(later < sooner for sooner, later in pairwise(steps)):
            raise ValueError(f"step_ms must be at least one number above 0, none below the one before, got {steps}")

    def chunk_ms(self, alone_ms: float, n: int, places: int) -> float:
        count = len(self.step_ms)
        known = self.step_ms[min(n, count) - 1]
        if n > count:
            known += (n - count) * (known - self.step_ms[-2] if count > 1 else known)
        return alone_ms * known / self.step_ms[0]


@dataclass(frozen=True)
class Profile:
    """A model on a kind of worker. alone_ms: a chunk with a worker to itself. chunk_s: media in it. places: active
    sessions a worker holds. state_bytes: of a session."""

    name: str
    latency: Latency = field(default_factory=Formula)
    alone_ms: float = 62.34
    chunk_s: float = 0.75
    places: int = 4
    state_bytes: int = 500_000_000


PROFILES: Mapping[str, Profile] = {
    # peers.md B6: 480p, 9 frames, 256 tokens
    "port": Profile("port"),
    # peers.md §1.1: ABot-World 5B on an H100, 12 frames of 12 a second: 30.98 frames/s alone, 37.01 in fours; between
    # them a line. Three keep up with their viewers, four don't.
    "h100": Profile("h100", Measured((387.3, 690.6, 993.9, 1297.0)), 387.3, 1.0, 3),
}


_MORE = ("chunk_s", "places", "state_bytes")


def profile(source: str) -> Profile:
    """One of PROFILES by name, or of a JSON file: {"step_ms": [alone, of two, …], "chunk_s", "places",
    "state_bytes"}; all but the first may be left out. Raises ValueError."""
    if source in PROFILES:
        return PROFILES[source]
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"latency is {', '.join(PROFILES)} or a JSON file, got {source!r}")
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or "step_ms" not in found or set(found) - {"step_ms", *_MORE}:
        raise ValueError(f"{path.name} must be an object with step_ms, and may have {', '.join(_MORE)}")
    steps = tuple(float(ms) for ms in found.pop("step_ms"))
    return Profile(path.stem, Measured(steps), steps[0], **found)


@dataclass(frozen=True)
class Truth:
    """What is so: the model that policies are told, its first session and each further one off by a factor of their
    own, and every step by another. draws: of the steps. means: those asked for
    before."""

    told: Latency
    alone: float
    company: float
    spread: float
    draws: random.Random
    means: dict[tuple[float, int, int], float] = field(default_factory=dict)

    @staticmethod
    def drawn(told: Latency, spread: float, seed: int) -> Truth:
        """Each factor within `spread` of 1."""
        draw = random.Random(f"truth:{seed}")
        low, high = 1 - spread, 1 + spread
        return Truth(told, draw.uniform(low, high), draw.uniform(low, high), spread, random.Random(f"steps:{seed}"))

    def mean_ms(self, alone_ms: float, n: int, places: int) -> float:
        """Of all steps of n sessions."""
        if (asked := (alone_ms, n, places)) not in self.means:
            first = self.told.chunk_ms(alone_ms, 1, places)
            more = self.told.chunk_ms(alone_ms, n, places) - first
            self.means[asked] = self.alone * first + self.company * more
        return self.means[asked]

    def step_ms(self, alone_ms: float, n: int, places: int) -> float:
        """Of one step of n sessions."""
        return self.mean_ms(alone_ms, n, places) * (1 + self.spread * (2 * self.draws.random() - 1))
