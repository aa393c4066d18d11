"""What one call of an actor costs by itself: through Ray, and over a line (`actors/line.py`). No service, no client.

`python -m riverrun.bench.calls` prints a table; `bench/overhead` runs it in a process of its own, with `--json`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import ray

from riverrun.actors.line import Line, LinePlace, LineServer
from riverrun.bench.report import table
from riverrun.graphs.driver import percentile

SIZES = ((64, 64), (480, 832))
CALLS = 150


@dataclass(frozen=True)
class Call:
    """One way of calling with one frame, which comes back inverted: median milliseconds, and the best tenth's."""

    frame: str
    way: str
    ms: float
    best_ms: float


class Inverter:
    """The actor."""

    def __init__(self) -> None:
        self._lines = LineServer("", self.invert)

    def invert(self, frame: np.ndarray) -> np.ndarray:
        return 255 - frame

    def line(self) -> LinePlace:
        return self._lines.place


async def measure() -> list[Call]:
    """Ray and line in turns, call by call."""
    actor = ray.remote(num_cpus=0)(Inverter).remote()
    line = await Line.to(await actor.line.remote())
    found = []
    for height, width in SIZES:
        frame = np.zeros((1, height, width, 3), np.uint8)
        ways: dict[str, Callable[[np.ndarray], Awaitable[np.ndarray]]] = {"Ray": actor.invert.remote, "line": line.call}
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(CALLS):
            for way, call in ways.items():
                began = time.perf_counter()
                await call(frame)
                took[way].append(1000 * (time.perf_counter() - began))
        found += [Call(f"{height}x{width}", w, percentile(ms, 0.5), percentile(ms, 0.1)) for w, ms in took.items()]
    line.close()
    return found


def show(calls: Sequence[Call]) -> str:
    return table(["frame", "one call over", "ms", "best tenth"], [[c.frame, c.way, c.ms, c.best_ms] for c in calls])


def main() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", include_dashboard=False, num_cpus=0, object_store_memory=256 << 20, logging_level="error")
    try:
        calls = asyncio.run(measure())
    finally:
        ray.shutdown()
    print(json.dumps([asdict(call) for call in calls]) if "--json" in sys.argv else show(calls))


if __name__ == "__main__":
    main()
