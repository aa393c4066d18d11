"""Whether the simulator tells the truth: the same sessions through it and through the service.

`python -m riverrun.bench.validate [--quick] [--json FILE] [--only timed,tiny]`

timed: a service whose actors wait as long as a step takes (`bench/timed.py`), and free the core. tiny: LongLive's tiny
weights, computed here; what its steps take was measured before, without a service. A session is a client that takes
frames as they come; a chunk's latency is from the one before it to its own arrival. The simulator is told what steps
take and, from one session alone, what the service adds to each (`call`); nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from riverrun.actors.measures import Measures
from riverrun.actors.planner import LEAST_SHARE, REST_S
from riverrun.bench.chunks import firsts_as_they_come
from riverrun.bench.options import parsed
from riverrun.bench.report import tables, write_json
from riverrun.bench.service import serving
from riverrun.client.aio import AsyncClient, AsyncStream
from riverrun.client.errors import NoRoom
from riverrun.cluster import fleet
from riverrun.cluster.bottleneck import Floor
from riverrun.cluster.decide import Settings, decide
from riverrun.cluster.fair import Used
from riverrun.cluster.fleet import Session
from riverrun.cluster.sim.engine import Run, World
from riverrun.cluster.sim.policies import Paper
from riverrun.cluster.sim.score import Playout, Score
from riverrun.cluster.sim.trace import Act, Trace, bursts, poisson, thinned, waves
from riverrun.cluster.sim.truth import Measured, Profile, Truth
from riverrun.cluster.slack import Ready, pick

PARTS = ("timed", "tiny")
SIMULATED = 5
"""Runs of the simulator whose mean is compared."""

STEPS_MS, SPREAD = (387.3, 690.6, 993.9, 1297.0), 0.2
CHUNK_S = 1.0
"""The simulator's profile `h100`, with a fourth place: four sessions are more than an actor keeps up with."""

LATENCY_WITHIN, CPR_WITHIN = 0.15, 0.05
SERVED = Settings(least_share=LEAST_SHARE, scales=False)
TINY, TINY_PLACES = "longlive-world", 3


@dataclass(frozen=True)
class Plan:
    """seconds: of a day. alone: chunks of the session from which `call` is measured. turns: of a tiny model's steps."""

    seconds: float = 120.0
    alone: int = 20
    turns: int = 12


QUICK = Plan(30.0, 6, 3)


@dataclass
class AsServed(Paper):
    """How the service places, moves (`actors/planner.py`) and batches (`actors/stage.py`) on a fixed number of
    actors."""

    rests_until: float = 0.0
    measures: Measures = field(default_factory=lambda: Measures(lambda: 0.0))

    def tick(self, now: float, floor: Floor, waiting: Sequence[Session]) -> fleet.Plan:
        settings = replace(SERVED, moves=now >= self.rests_until)
        plan, self.memory = decide(floor, waiting, now, self.memory, settings)
        if plan.moves:
            self.rests_until = now + REST_S
        return plan

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        return pick(ready, Used(), self.measures.step_ms, self.places)

    def saw(self, alone_ms: float, n: int, took_ms: float) -> None:
        """As an actor notes it; here all learn together."""
        self.measures.stepped(n, took_ms)


@dataclass
class Seen:
    """What the viewers of one day saw."""

    chunk_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    played_s: float = 0.0
    stalled_s: float = 0.0

    def figures(self) -> dict[str, float]:
        p50, p95, p99 = np.percentile(self.chunk_ms, (50, 95, 99))
        return {
            "chunks": len(self.chunk_ms),
            "p50": float(p50),
            "p95": float(p95),
            "p99": float(p99),
            "first_p50": statistics.median(self.first_ms),
            "cpr": self.played_s / (self.played_s + self.stalled_s),
        }


def simulated(scores: Sequence[Score]) -> dict[str, float]:
    """The same of some runs, in the mean."""

    def mean(value: Callable[[Score], float]) -> float:
        return statistics.fmean(value(score) for score in scores)

    return {
        "chunks": round(mean(lambda s: s.chunks)),
        "p50": mean(lambda s: s.p50_ms),
        "p95": mean(lambda s: s.p95_ms),
        "p99": mean(lambda s: s.p99_ms),
        "first_p50": mean(lambda s: s.ttfc_p50_ms),
        "cpr": mean(lambda s: s.cpr),
    }


def compared(day: str, service: Mapping[str, float], simulator: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row a figure: both, how far apart, and whether that is within what is promised (None: nothing is)."""
    rows = []
    for name, real in service.items():
        told = simulator[name]
        apart = told - real if name == "cpr" else told / real - 1
        bound = {"p50": LATENCY_WITHIN, "p95": LATENCY_WITHIN, "cpr": CPR_WITHIN}.get(name)
        shown = f"{apart:+.3f}" if name == "cpr" else f"{100 * apart:+.1f} %"
        rows.append(
            {
                "day": day,
                "figure": name,
                "service": real,
                "simulator": told,
                "apart": shown,
                "within": None if bound is None else abs(apart) <= bound,
            }
        )
    return rows


COLUMNS = {
    "day": "day",
    "figure": "figure",
    "service": "service",
    "simulator": "simulator",
    "apart": "apart",
    "as promised": "within",
}


# ---- the service ----


class Viewers:
    """Plays a trace against a service: a client a session. graph, params: what each asks for."""

    def __init__(self, rr: AsyncClient, graph: str, params: Mapping[str, Any], chunk_s: float) -> None:
        self._rr, self._graph, self._params, self._chunk_s = rr, graph, params, chunk_s
        self.seen = Seen()

    async def play(self, trace: Trace) -> Seen:
        """Sessions that are active from their begin to their end."""
        ends = {e.session: e.time_s for e in trace.events if e.act is Act.LEAVE}
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for event in trace.events:
                if event.act is Act.ACTIVE:
                    until = began + ends.get(event.session, trace.seconds)
                    group.create_task(self._watch(began + event.time_s, until))
        return self.seen

    async def _watch(self, at: float, until: float) -> None:
        await asyncio.sleep(at - time.perf_counter())
        asked, playout, last = time.perf_counter(), Playout(), 0.0
        stream = await self._open(until)
        if stream is None:
            return
        try:
            async with asyncio.timeout(until - time.perf_counter()):
                async for _ in firsts_as_they_come(stream):
                    now = time.perf_counter()
                    (self.seen.chunk_ms if last else self.seen.first_ms).append(1000 * (now - (last or asked)))
                    playout.add(now, self._chunk_s)
                    last = now
        except TimeoutError:
            pass
        await stream.close()
        playout.end(until)
        self.seen.played_s += playout.played_s
        self.seen.stalled_s += playout.stalled_s

    async def _open(self, until: float) -> AsyncStream | None:
        """Asks until there is room, as long as anybody would watch."""
        while time.perf_counter() < until:
            with contextlib.suppress(NoRoom):
                return await self._rr.stream(self._graph, buffer=64, lead=0, **self._params)
            await asyncio.sleep(0.1)
        return None


async def alone_ms(rr: AsyncClient, graph: str, params: Mapping[str, Any], chunks: int) -> float:
    """Mean time from chunk to chunk of one session, the first few left out."""
    stream = await rr.stream(graph, buffer=64, lead=0, **params)
    times: list[float] = []
    async for _ in firsts_as_they_come(stream):
        times.append(time.perf_counter())
        if len(times) == chunks + 4:
            break
    await stream.close()
    return 1000 * (times[-1] - times[3]) / (len(times) - 4)


# ---- both ----


def play_both(
    days: Sequence[Trace], profile: Profile, spread: float, graph: str, params: Mapping[str, Any], plan: Plan,
    actors: int, *overrides: str,
) -> list[dict[str, Any]]:  # fmt: skip
    with serving("stall_s=0", f"limits.sessions={4 * actors * profile.places}", *overrides) as service:
        served = [asyncio.run(_served(service.address, day, profile, graph, params, plan.alone)) for day in days]
    # of all days, since the machine is busier at one moment than at another
    call_s = max(0.0, statistics.fmean(alone for _, alone in served) - profile.alone_ms) / 1000
    rows = [{"day": "all", "figure": "call", "service": 1000 * call_s} | _NONE]
    for day, (seen, _) in zip(days, served, strict=True):
        rows += compared(day.name, seen.figures(), simulated(played(day, profile, spread, actors, call_s)))
    return rows


_NONE = {"simulator": None, "apart": "", "within": None}


async def _served(
    address: str, day: Trace, profile: Profile, graph: str, params: Mapping[str, Any], chunks: int
) -> tuple[Seen, float]:
    async with AsyncClient(address) as rr:
        alone = await alone_ms(rr, graph, params, chunks)
        return await Viewers(rr, graph, params, profile.chunk_s).play(day), alone


def played(day: Trace, profile: Profile, spread: float, actors: int, call_s: float) -> list[Score]:
    """The day in the simulator, whose truth is what it was told; several times, since steps vary."""
    world = World(profile, spread=spread, call_s=call_s, most_lead_s=float("inf"))
    runs = []
    for seed in range(SIMULATED):
        policy = AsServed("as served", profile.places, actors, profile.latency)
        runs.append(Run(day, policy, world, Truth(profile.latency, 1.0, 1.0, spread, random.Random(seed))).score())
    return runs


def timed(plan: Plan) -> list[dict[str, Any]]:
    """Three actors of four places."""
    actors, places = 3, len(STEPS_MS)
    profile = Profile("timed", Measured(STEPS_MS), STEPS_MS[0], CHUNK_S, places, 0)
    with tempfile.TemporaryDirectory(prefix="riverrun-validate-") as folder:
        model, graph = Path(folder, "timed.yaml"), Path(folder, "timed-graph.yaml")
        about = {
            "name": "timed",
            "class": "riverrun.bench.timed:Timed",
            "stage": "generation",
            "args": {"step_ms": list(STEPS_MS), "spread": SPREAD},
            "actor": {"count": actors, "max_sessions": places, "max_batch": places},
        }
        model.write_text(yaml.safe_dump(about))
        stages = {"timed": {"model": "timed"}}
        graph.write_text(yaml.safe_dump({"name": "timed", "stages": stages, "outputs": {"frames": "timed.frames"}}))
        params = {"chunk_frames": 1, "fps": 1 / CHUNK_S}
        overrides = (f"models=[{model}]", f"graphs=[{graph}]")
        return play_both(
            days(plan.seconds, actors * places), profile, SPREAD, "timed", params, plan, actors, *overrides
        )


def tiny(plan: Plan) -> list[dict[str, Any]]:
    """One actor that computes."""
    from riverrun.bench.batching import cases, rate

    case = next(case for case in cases() if case.name == TINY)
    model = case.model()
    counts = range(1, TINY_PLACES + 1)
    steps = [1000 * n / rate(case, model, n, plan.turns).batched for n in counts]
    steps = [max(steps[: n + 1]) for n in range(len(steps))]
    description = model.describe(model.Params(prompt="x"))
    profile = Profile(
        TINY, Measured(tuple(steps)), steps[0], description.chunk_frames / description.fps, TINY_PLACES, 0
    )
    overrides = (f"models=[world-text,{TINY}]",)
    few = [replace(day, name=f"{day.name}, tiny") for day in days(plan.seconds, TINY_PLACES)[:1]]
    return play_both(few, profile, 0.1, "generate", {"prompt": "a red cube"}, plan, 1, *overrides)


def days(seconds: float, active: int) -> list[Trace]:
    """Sessions that come by chance, in waves, and all at once; at most `active` at once, in a shorter time."""
    makes: Sequence[Callable[[], Trace]] = (
        lambda: poisson(0, active / 20, 4 * seconds),
        lambda: waves(0, active / 16),
        lambda: bursts(0, active / 24),
    )
    return [quick(thinned(make(), active), seconds) for make in makes]


def quick(trace: Trace, seconds: float) -> Trace:
    """The same in less time; a silence ends a session."""
    share = seconds / trace.seconds
    acts = {Act.IDLE: Act.LEAVE}
    gone: set[str] = set()
    events = []
    for event in trace.events:
        if event.session in gone:
            continue
        act = acts.get(event.act, event.act)
        if act is Act.LEAVE:
            gone.add(event.session)
        events.append(event._replace(time_s=event.time_s * share, act=act))
    return replace(trace, events=tuple(events), seconds=seconds)


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed("validate", __doc__, argv, PARTS)
    plan = QUICK if options.quick else Plan()
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, part in {"timed": timed, "tiny": tiny}.items():
        if name in options.only:
            figures[name] = part(plan)
            print(tables({name: COLUMNS}, {name: figures[name]}), flush=True)
    if options.json:
        write_json(options.json, "validate", asdict(plan), figures)
    return 0 if all(row["within"] is not False for row in figures.get("timed", [])) else 1


if __name__ == "__main__":
    sys.exit(main())
