"""How long one whole decision of the cluster takes: places for who waits, how many workers, moves.

`python -m riverrun.bench.decisions [--quick] [--json FILE]`

The floor is as a controller finds it: workers nine tenths full, some with more sessions than others, one session in a
hundred without a place. It is filled anew each time, which counts, since a controller reads a snapshot.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from riverrun.bench.options import parsed
from riverrun.bench.report import tables, write_json
from riverrun.cluster.autoscale import ScaleMemory, ScaleRule
from riverrun.cluster.bottleneck import Floor
from riverrun.cluster.decide import Settings, decide
from riverrun.cluster.fair import Used
from riverrun.cluster.fleet import Session, Worker
from riverrun.cluster.latency import Formula
from riverrun.cluster.slack import Ready, pick

SIZES = ((100, 25), (1_000, 256), (10_000, 2_560), (100_000, 10_000))
LIMITS_MS = {1_000: 50.0, 100_000: 5_000.0}
KINDS_MS = (62.3, 120.0, 400.0)
READY = (4, 16, 64)


@dataclass(frozen=True)
class Plan:
    """sizes: (sessions, workers). turns: decisions of each; the median counts."""

    sizes: tuple[tuple[int, int], ...] = SIZES
    turns: int = 9


QUICK = Plan(SIZES[:2], 3)


def snapshot(sessions: int, workers: int, seed: int) -> tuple[list[Worker], list[Session]]:
    """Workers with sessions of three kinds on them, and who waits."""
    draw = random.Random(seed)
    waiting = sessions // 100
    places = -(-sessions * 10 // (9 * workers))
    held: list[list[Session]] = [[] for _ in range(workers)]
    for number in range(sessions - waiting):
        session = Session(f"s{number:06d}", draw.choice(KINDS_MS), draw.randrange(10**8, 10**9))
        worker = draw.randrange(workers)
        while len(held[worker]) == places:
            worker = (worker + 1) % workers
        held[worker].append(session)
    there = [Worker(f"w{n:06d}", places, tuple(each)) for n, each in enumerate(held)]
    return there, [Session(f"new{n:06d}", KINDS_MS[0]) for n in range(waiting)]


def decision_ms(workers: Sequence[Worker], waiting: Sequence[Session]) -> tuple[float, int]:
    """Of one; and the moves that it made of sessions that had a place."""
    settings = Settings(ScaleRule(most=2 * len(workers), places=workers[0].places))
    began = time.perf_counter()
    plan, _ = decide(Floor(workers, Formula()), waiting, 0.0, ScaleMemory(), settings)
    took = 1000 * (time.perf_counter() - began)
    return took, sum(move.source is not None for move in plan.moves)


def batch_us(ready: int, turns: int) -> float:
    """Of one choice among sessions that are ready on one worker, microseconds."""
    draw = random.Random(ready)
    waiting = [Ready(f"s{n}", draw.uniform(0, 4), "k", draw.random()) for n in range(ready)]
    took = []
    for _ in range(100 * turns):
        began = time.perf_counter()
        pick(waiting, Used(), lambda n: 60 + 20 * n, len(waiting))
        took.append(1e6 * (time.perf_counter() - began))
    return statistics.median(took)


COLUMNS = {
    "decisions": {
        "sessions": "sessions",
        "workers": "workers",
        "ms": "ms",
        "slowest ms": "slowest_ms",
        "µs a session": "us_each",
        "moves": "moves",
        "limit ms": "limit_ms",
        "kept": "is_kept",
    },
    "batches": {"ready": "ready", "µs": "us"},
}


def measure(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    rows = []
    for sessions, workers in plan.sizes:
        turns = [decision_ms(*snapshot(sessions, workers, seed)) for seed in range(plan.turns)]
        ms, limit = statistics.median(took for took, _ in turns), LIMITS_MS.get(sessions)
        rows.append(
            {
                "sessions": sessions,
                "workers": workers,
                "ms": ms,
                "slowest_ms": max(took for took, _ in turns),
                "us_each": 1000 * ms / sessions,
                "moves": max(moves for _, moves in turns),
                "limit_ms": limit,
                "is_kept": None if limit is None else ms < limit,
            }
        )
    return {"decisions": rows, "batches": [{"ready": n, "us": batch_us(n, plan.turns)} for n in READY]}


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed("decisions", __doc__, argv)
    plan = QUICK if options.quick else Plan()
    figures = measure(plan)
    print(tables(COLUMNS, figures))
    if options.json:
        write_json(options.json, "decisions", asdict(plan), figures)
    return 0 if all(row["is_kept"] is not False for row in figures["decisions"]) else 1


if __name__ == "__main__":
    sys.exit(main())
