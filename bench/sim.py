"""Policies on simulated clusters: ours beside the published baselines, its ablations, and large clusters.

`python -m riverrun.bench.sim [--quick] [--json FILE] [--only grid,heavy,ablation,pareto,large]`

grid: every workload on 8 to 64 GPUs. heavy: a model whose workers can hardly keep up. ablation: ours without moves,
without scaling. pareto: what ours and B5 give for other shares of free places, and fixed clusters of other sizes.
large: 1,000 and 10,000 GPUs for 120 s. `bench.sim_plot` draws what `--json` wrote.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from riverrun.bench.options import parsed
from riverrun.bench.report import table, write_json
from riverrun.cluster.sim.engine import Run, World
from riverrun.cluster.sim.grid import COLUMNS, Grid, Result, result, row
from riverrun.cluster.sim.policies import Policy, policy
from riverrun.cluster.sim.trace import Trace, cut, demo
from riverrun.cluster.sim.truth import PROFILES

PARTS = ("grid", "heavy", "ablation", "pareto", "large")
BASELINES = ("B1", "B2", "B3", "B4", "B5", "B6", "B8")
ABLATIONS = ("ours", "ours-moves", "ours-scale")
DAYS = ("W1", "W2", "W3", "W4", "W5", "W6")
STAND_IN_PEAK = 80.0
"""Sessions active at once of W1 as it is."""


@dataclass(frozen=True)
class Plan:
    """sizes: GPUs. seconds: at most of a day. large: GPUs; large_s: seconds of their day."""

    sizes: tuple[int, ...] = (8, 16, 32, 64)
    seeds: int = 5
    seconds: float = 200.0
    large: tuple[int, ...] = (1000, 10_000)
    large_s: float = 120.0


QUICK = Plan((8,), 2, 120.0, (200,), 30.0)


def grid(plan: Plan) -> Iterator[Result]:
    for gpus in plan.sizes:
        yield from Grid(DAYS, (*BASELINES, "ours"), gpus, plan.seeds, seconds=plan.seconds).play()


def heavy(plan: Plan) -> Iterator[Result]:
    world = World(PROFILES["h100"])
    yield from Grid(DAYS, (*BASELINES, *ABLATIONS), plan.sizes[0] * 2, plan.seeds, world, plan.seconds).play()


def ablation(plan: Plan) -> Iterator[Result]:
    for gpus in plan.sizes:
        yield from Grid(("W1",), ABLATIONS, gpus, plan.seeds, seconds=plan.seconds).play()


def pareto(plan: Plan) -> Iterator[Result]:
    """On 16 GPUs and W1: each policy beside itself with more or fewer places free."""
    gpus = plan.sizes[0] * 2
    base = Grid(("W1",), ("ours",), gpus, plan.seeds, seconds=plan.seconds)
    profile = base.world.profile
    asked: list[tuple[str, Callable[[], Policy]]] = []
    for spare in (0.5, 1.0, 1.25, 1.5, 2.0, 3.0):
        asked.append((f"ours spare {spare:g}", partial(policy, "ours", gpus, profile, spare=spare)))
    for full in (1.0, 0.95, 0.9, 0.85, 0.8):
        asked.append((f"B5 full {full:g}", partial(policy, "B5", gpus, profile, full=full)))
    asked.append(("B6", partial(policy, "B6", gpus, profile)))
    for few in (round(share * gpus) for share in (0.75, 0.85, 1.0)):
        for name in ("B1", "B2", "B3", "B8", "ours-scale"):
            asked.append((f"{name} on {few}", partial(policy, name, few, profile)))
    for name, make in asked:
        yield from _named(name, base.play(_always(make)))


def _always(make: Callable[[], Policy]) -> Callable[[str], Policy]:
    return lambda name: make()


def _named(name: str, found: Iterator[Result]) -> Iterator[Result]:
    for each in found:
        yield replace(each, policy=name)


def large(plan: Plan) -> Iterator[tuple[Result, float]]:
    """One day of one seed; and the seconds that its simulation took."""
    for gpus in plan.large:
        day = crowd(gpus, plan.large_s)
        for name in ("ours", "B1", "B6"):
            world = World()
            began = time.perf_counter()
            score = Run(day, policy(name, gpus, world.profile), world).score()
            took = time.perf_counter() - began
            yield result([score], "W1", name, gpus, world.profile.name, day.seconds), took


def crowd(gpus: int, seconds: float) -> Trace:
    """W1's users, so many that they take nine in ten places of `gpus` workers, from their fifth minute on."""
    places = gpus * World().profile.places
    return cut(demo(0, 0.9 * places / STAND_IN_PEAK, 300.0 + seconds), 300.0, seconds)


def gains(found: Sequence[Result]) -> list[dict[str, Any]]:
    """What is lost without moves and without scaling, beside what TurboServe's paper says of its own."""
    rows = []
    for gpus in dict.fromkeys(each.gpus for each in found):
        whole, *others = [each for each in found if each.gpus == gpus]
        for other, published in zip(others, ("+15.0 %", "+42.9 %"), strict=True):
            rows.append(
                {
                    "GPUs": gpus,
                    "ours": other.policy.removeprefix("ours-") + " off",
                    "cost": f"{100 * (other.cost.mean / whole.cost.mean - 1):+.1f} %",
                    "paper's cost": published,
                    "worst chunk": f"{100 * (other.worst.mean / whole.worst.mean - 1):+.1f} %",
                    "unplaced of active": f"{whole.share_unplaced.mean:.2%} to {other.share_unplaced.mean:.2%}",
                }
            )
    return rows


def beside(found: Sequence[Result], mine: str = "ours") -> list[dict[str, Any]]:
    """`mine` against each baseline: the mean over workloads and sizes of the change in each, and how often both are
    lower."""
    ours = {(each.workload, each.gpus): each for each in found if each.policy == mine}
    rows = []
    for name in dict.fromkeys(each.policy for each in found if not each.policy.startswith("ours")):
        pairs = [(ours[each.workload, each.gpus], each) for each in found if each.policy == name]
        rows.append(
            {
                f"{mine} against": name,
                "worst chunk": _mean([a.worst.mean / b.worst.mean for a, b in pairs]),
                "p95": _mean([a.p95.mean / b.p95.mean for a, b in pairs]),
                "cost": _mean([a.cost.mean / b.cost.mean for a, b in pairs]),
                "CPR, least difference": f"{min(a.cpr.mean - b.cpr.mean for a, b in pairs):+.4f}",
                "unplaced of active": _points([a.share_unplaced.mean - b.share_unplaced.mean for a, b in pairs]),
                "lower in both": f"{sum(a.worst.mean < b.worst.mean and a.cost.mean < b.cost.mean for a, b in pairs)}"
                f" of {len(pairs)}",
            }
        )
    return rows


def _mean(ratios: Sequence[float]) -> str:
    return f"{100 * (sum(ratios) / len(ratios) - 1):+.1f} %"


def _points(differences: Sequence[float]) -> str:
    return f"{100 * sum(differences) / len(differences):+.2f} points"


def _show(rows: Sequence[dict[str, Any]]) -> None:
    print(table(list(rows[0]), [list(each.values()) for each in rows]), flush=True)


def _print(found: Sequence[Result], title: str) -> None:
    print(f"\n{title}\n\n{table(COLUMNS, [row(each) for each in found])}\n", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed("sim", __doc__, argv, PARTS)
    plan = QUICK if options.quick else Plan()
    figures: dict[str, list[dict[str, Any]]] = {}

    def note(part: str, figure: dict[str, Any]) -> None:
        """Kept at once: a grid takes long, and what is played is played."""
        figures.setdefault(part, []).append(figure)
        if options.json:
            write_json(options.json, "sim", asdict(plan), figures)

    for name, play in {"grid": grid, "heavy": heavy, "ablation": ablation, "pareto": pareto}.items():
        if name in options.only:
            found = []
            for each in play(plan):
                found.append(each)
                note(name, asdict(each))
            _print(found, name)
            if name == "ablation":
                _show(gains(found))
            elif name != "pareto":
                for mine in ("ours", "ours-scale"):
                    if any(each.policy == mine for each in found):
                        _show(beside(found, mine))
    if "large" in options.only:
        timed = []
        for each, took in large(plan):
            timed.append((each, took))
            note("large", asdict(each) | {"took_s": took})
        _print([each for each, _ in timed], "large")
        _show([_pace(each, took) for each, took in timed])
    return 0


def _pace(found: Result, took_s: float) -> dict[str, Any]:
    return {
        "GPUs": found.gpus,
        "policy": found.policy,
        "chunks": int(found.chunks.mean),
        "run took s": took_s,
        "longest decision ms": found.decide_ms.mean,
    }


if __name__ == "__main__":
    sys.exit(main())
