"""How many workers there should be. Pure: what it must remember between two looks is an argument and a result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

SPARE, HOLD_S = 1.0, 15.0
"""Of the service and of the simulator's `ours`: `python -m riverrun.bench.sim --only pareto` shows what others cost."""


@dataclass(frozen=True)
class ScaleRule:
    """least, most: workers. places: of one.

    spare: so many roots of the mean load of the last `mean_s` seconds are kept free. Many users who come and go by
    themselves vary by the root of their number, so that a large cluster keeps a smaller share free; and the mean sees
    through a moment that would be over before a worker has come. None: `full` counts.
    full: share of the places that are planned to be taken, by how restless the load is: the first entry whose bound is
    not passed counts; an endless bound comes last.
    hold_s: a smaller target must stand so long before it counts, so that a short lull sends no one home.
    window_s: over which restlessness is looked at.
    """

    least: int = 1
    most: int = 1024
    places: float = 4
    full: tuple[tuple[float, float], ...] = ((0.05, 0.98), (0.15, 0.94), (math.inf, 0.88))
    hold_s: float = HOLD_S
    window_s: float = 60.0
    spare: float | None = SPARE
    mean_s: float = 30.0


@dataclass(frozen=True)
class ScaleMemory:
    """seen: (time, active sessions) of the window. lower: the smaller targets since they began to stand, as (since,
    largest of them); None: the last target was no smaller."""

    seen: tuple[tuple[float, int], ...] = ()
    lower: tuple[float, int] | None = None


@dataclass(frozen=True)
class Target:
    """workers: how many there should be from now on. why: in one line."""

    workers: int
    why: str
    memory: ScaleMemory = field(default_factory=ScaleMemory)


def restlessness(seen: tuple[tuple[float, int], ...]) -> float:
    """Standard deviation over mean of the active sessions seen; 0 for fewer than two."""
    if len(seen) < 2:
        return 0.0
    counts = [count for _, count in seen]
    mean = sum(counts) / len(counts)
    if not mean:
        return 0.0
    return math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts)) / mean


def target(rule: ScaleRule, memory: ScaleMemory, now: float, active: int, workers: int) -> Target:
    """`ceil(max(active, mean + spare * sqrt(mean)) / places)`, without spare `ceil(active / (places * full))`, within
    bounds; more at once, fewer after `hold_s`.

    active: sessions that want chunks, those without a place among them. A restless load is given more free places, so
    that an activation finds one. Under overload, where `most` is not enough, the target is `most` and sessions wait.
    """
    seen = (*((at, n) for at, n in memory.seen if now - at <= rule.window_s), (now, active))
    planned, because = _planned(rule, seen)
    wanted = min(max(math.ceil(planned / rule.places), rule.least), rule.most)
    memory = replace(memory, seen=seen)
    if wanted >= workers:
        return Target(wanted, f"{wanted} workers: {because}", replace(memory, lower=None))
    since, largest = memory.lower or (now, wanted)
    lower = (since, max(largest, wanted))
    if now - since < rule.hold_s:
        waits = f"{workers} workers stay: {wanted} would do, for {now - since:.1f} of {rule.hold_s:g} s"
        return Target(workers, f"{waits}; {because}", replace(memory, lower=lower))
    return Target(lower[1], f"{lower[1]} workers: {because}", replace(memory, lower=(now, wanted)))


def _planned(rule: ScaleRule, seen: tuple[tuple[float, int], ...]) -> tuple[float, str]:
    """Places there should be for the load seen, and why."""
    now, active = seen[-1]
    if rule.spare is None:
        unrest = restlessness(seen)
        full = next(share for bound, share in rule.full if unrest <= bound)
        places = f"{rule.places:g} places a worker, {full:.0%} of them planned"
        return active / full, f"{active} active, {places} (restlessness {unrest:.2f})"
    counts = [n for at, n in seen if now - at <= rule.mean_s]
    mean = sum(counts) / len(counts)
    free = rule.spare * math.sqrt(mean)
    why = f"{active} active, {mean:.1f} for {rule.mean_s:g} s, {rule.places:.3g} places a worker, {free:.1f} kept free"
    return max(mean + free, active), why


@dataclass(frozen=True)
class Hysteresis:
    """TeleFuser's rule (peers.md B7): thresholds beside a target share that falls with the load's variation."""

    places: int
    least: int = 1
    most: int = 1024
    cooldown_s: float = 30.0

    def workers(self, now: float, changed: float, active: int, workers: int, variation: float) -> int:
        """changed: when the number was last changed. variation: of events in ten bins of the last minute."""
        share = max(0.25, 0.75 - min(0.25, 0.05 * variation))
        raw = min(max(math.ceil(active / (self.places * share)), self.least), self.most)
        if now - changed < self.cooldown_s:
            return workers
        used = active / (workers * self.places) if workers else math.inf
        if (raw > workers and used > share + 0.1) or (raw < workers and used < share - 0.1):
            return raw
        return workers


def port_target(active: int, places: int, workers: int, full: float = 0.9) -> int:
    """TurboServe's, as its port has it (peers.md B6), between 1 and `workers`."""
    return min(max(math.ceil(active / (places * full)), math.ceil(active / places), 1), workers)
