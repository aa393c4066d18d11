"""Many runs: the same days under several policies, several times, and what they had in common."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from riverrun.cluster.sim.engine import Run, World
from riverrun.cluster.sim.policies import Policy, policy
from riverrun.cluster.sim.score import Score
from riverrun.cluster.sim.trace import Trace, cut, workload

WARM_S = 300.0
"""Of days on which users come and go all the time so much is left out at the begin, where nobody is there yet."""
STEADY = ("W1", "W6")


@dataclass(frozen=True)
class Figure:
    """Over the seeds: its mean, its standard deviation, and the largest."""

    mean: float
    spread: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Figure:
        return Figure(statistics.fmean(values), statistics.pstdev(values), max(values))

    def text(self, digits: int = 0) -> str:
        return f"{self.mean:,.{digits}f} ±{self.spread:.{digits}f}"


@dataclass(frozen=True)
class Result:
    """One policy on one kind of day. Latencies in milliseconds, cost in GPU hours; share_cost: of a cluster that is
    there all the time; unplaced_s: seconds that active sessions had no place, share_unplaced: of those they were
    active."""

    workload: str
    policy: str
    gpus: int
    profile: str
    seeds: int
    cpr: Figure
    ttfc_p50: Figure
    ttfc_p95: Figure
    p50: Figure
    p95: Figure
    p99: Figure
    worst: Figure
    cost: Figure
    share_cost: Figure
    migrations: Figure
    unplaced_s: Figure
    share_unplaced: Figure
    decide_ms: Figure
    chunks: Figure


@dataclass(frozen=True)
class Grid:
    """What is played: every policy on every workload for `gpus` workers, once for each seed. seconds: at most of each
    day (None: whole). trace: instead of the workloads. kill_every_s: a worker's process dies so often, besides what the
    workload says (0: never)."""

    workloads: Sequence[str]
    policies: Sequence[str]
    gpus: int
    seeds: int
    world: World = field(default_factory=World)
    seconds: float | None = None
    trace: Trace | None = None
    kill_every_s: float = 0.0

    def play(self, make: Callable[[str], Policy] | None = None) -> Iterator[Result]:
        """A result for each workload and policy. make: instead of `policy` by name."""
        profile = self.world.profile
        make = make or (lambda name: policy(name, self.gpus, profile))
        for day in [self.trace.name] if self.trace else self.workloads:
            traces = [self._day(day, seed) for seed in range(self.seeds)]
            for name in self.policies:
                worlds = [replace(self.world, seed=seed) for seed in range(self.seeds)]
                scores = [Run(t, make(name), world).score() for t, world in zip(traces, worlds, strict=True)]
                yield result(scores, day, name, self.gpus, profile.name, traces[0].seconds)

    def _day(self, name: str, seed: int) -> Trace:
        whole = self.trace or workload(name, seed, self.gpus * self.world.profile.places)
        begin = WARM_S if name in STEADY and not self.trace else 0.0
        seconds = min(self.seconds or whole.seconds, whole.seconds - begin)
        day = cut(whole, begin, seconds) if (begin, seconds) != (0.0, whole.seconds) else whole
        if not self.kill_every_s:
            return day
        deaths = [(self.kill_every_s * k, 0.0) for k in range(1, int(day.seconds / self.kill_every_s) + 1)]
        return replace(day, fails=tuple(sorted([*day.fails, *deaths])))


def result(scores: Sequence[Score], day: str, name: str, gpus: int, profile: str, seconds: float) -> Result:
    def over(value: Callable[[Score], float]) -> Figure:
        return Figure.of([value(score) for score in scores])

    return Result(
        workload=day,
        policy=name,
        gpus=gpus,
        profile=profile,
        seeds=len(scores),
        cpr=over(lambda s: s.cpr),
        ttfc_p50=over(lambda s: s.ttfc_p50_ms),
        ttfc_p95=over(lambda s: s.ttfc_p95_ms),
        p50=over(lambda s: s.p50_ms),
        p95=over(lambda s: s.p95_ms),
        p99=over(lambda s: s.p99_ms),
        worst=over(lambda s: s.max_ms),
        cost=over(lambda s: s.cost / 3600),
        share_cost=over(lambda s: s.cost / (gpus * seconds)),
        migrations=over(lambda s: s.migrations),
        unplaced_s=over(lambda s: s.unplaced_s),
        share_unplaced=over(lambda s: s.unplaced_s / s.active_s if s.active_s else 0.0),
        decide_ms=over(lambda s: s.decide_ms),
        chunks=over(lambda s: s.chunks),
    )


COLUMNS = (
    "workload",
    "GPUs",
    "policy",
    "CPR",
    "TTFC p50 ms",
    "p95",
    "chunk p50 ms",
    "p95",
    "p99",
    "worst",
    "GPU h",
    "of fixed",
    "moves",
    "unplaced s",
    "of active",
)


def row(found: Result) -> list[str]:
    """Cells under COLUMNS, each with its spread over the seeds."""
    return [
        found.workload,
        str(found.gpus),
        found.policy,
        found.cpr.text(4),
        found.ttfc_p50.text(),
        found.ttfc_p95.text(),
        found.p50.text(),
        found.p95.text(),
        found.p99.text(),
        found.worst.text(),
        found.cost.text(2),
        f"{found.share_cost.mean:.0%}",
        found.migrations.text(),
        found.unplaced_s.text(),
        f"{found.share_unplaced.mean:.1%}",
    ]
