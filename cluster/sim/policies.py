"""What a simulated cluster may be run by: ours, of the functions that production calls, and the baselines of peers.md
§3.3, each by its letter there.

A policy is asked where an activated session goes (`place`), once a control period for a plan (`tick`), and by a free
worker for its next step (`batch`). It sees predicted latencies, never true ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from riverrun.cluster.autoscale import SPARE, ScaleMemory, ScaleRule, port_target
from riverrun.cluster.bottleneck import Floor, consolidate, rebalance
from riverrun.cluster.decide import Settings, decide
from riverrun.cluster.fair import Used
from riverrun.cluster.fleet import Move, Plan, Session
from riverrun.cluster.latency import Formula, Latency, Learned, kept_up
from riverrun.cluster.sim.truth import Profile
from riverrun.cluster.slack import Pace, Ready, pick, rest_s

ROUNDS = 3.0
"""Of a full worker's steps: so much further ahead a session keeps, for it may wait as long for its own."""

PAPER_HOLD_S = 5.0
"""TurboServe's (peers.md §1.2)."""


@dataclass
class Policy:
    """The common ground: `fixed` workers that never change, a session goes to the one with least sessions, one session
    a step in turn. places: of a worker. pace: None: sessions run ahead of their viewers as far as the buffer goes."""

    name: str
    places: int
    fixed: int | None = None
    latency: Latency = field(default_factory=Formula)
    pace: Pace | None = None

    def workers_at_start(self, active: int) -> int:
        """active: sessions that want chunks from the first moment on."""
        return self.fixed or port_target(active, self.places, active + 1)

    def arrives(self, session: str, floor: Floor) -> None:
        """A session has come; it wants nothing yet."""

    def place(self, session: Session, floor: Floor) -> str | None:
        """Where an active session without a place goes now, where it has been put; None: it waits."""
        worker = floor.lightest()
        if worker is not None:
            floor.put(session, worker)
        return worker

    def tick(self, now: float, floor: Floor, waiting: Sequence[Session]) -> Plan:
        """A control period is over. waiting: active sessions without a place. What is planned is done on the floor."""
        moves = [Move(each.id, None, worker) for each in waiting if (worker := self.place(each, floor))]
        return Plan(len(floor.desks), tuple(moves))

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        """Of one worker; never empty."""
        return [min(ready, key=lambda each: (-each.waited_s, each.id))]

    def pause_s(self, lead_s: float, took_s: float) -> float:
        """For how long a session asks for nothing that was given a chunk so long after it had come to its worker."""
        return lead_s - self.pace.wake_s if self.pace and self.pace.is_parked(lead_s, False) else 0.0

    def saw(self, alone_ms: float, n: int, took_ms: float) -> None:
        """A step of n sessions took so long."""


@dataclass
class Static(Policy):
    """B1: pinned at arrival in turn, and back to the same worker after each silence. B2, not pinned: in turn at each
    activation, and all that are ready share a step."""

    is_pinned: bool = True
    _homes: dict[str, str] = field(default_factory=dict)
    _turn: int = 0
    _names: tuple[str, ...] = ()

    def arrives(self, session: str, floor: Floor) -> None:
        if self.is_pinned and floor.desks:
            self._homes[session] = self._next(floor)

    def place(self, session: Session, floor: Floor) -> str | None:
        if not floor.desks:
            return None
        if self.is_pinned and self._homes.get(session.id) not in floor.desks:  # it died
            self._homes[session.id] = self._next(floor)
        tries = 1 if self.is_pinned else len(floor.desks)
        for _ in range(tries):
            worker = self._homes[session.id] if self.is_pinned else self._next(floor)
            if floor.desks[worker].room > 0:
                floor.put(session, worker)
                return worker
        return None

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        return super().batch(ready, alone_ms) if self.is_pinned else list(ready)

    def _next(self, floor: Floor) -> str:
        self._turn += 1
        if len(self._names) != len(floor.desks) or self._names[self._turn % len(self._names)] not in floor.desks:
            self._names = tuple(floor.desks)
        return self._names[self._turn % len(self._names)]


@dataclass
class Greedy(Policy):
    """B3: the worker with least active sessions at activation; nothing moves, and all that are ready share a step."""

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        return list(ready)


@dataclass
class ByMemory(Greedy):
    """B4: the worker with most memory free at activation."""

    def place(self, session: Session, floor: Floor) -> str | None:
        held = {d.id: sum(s.state_bytes for s in d.sessions.values()) for d in floor.desks.values() if d.room > 0}
        worker = min(held, key=lambda name: (held[name], name), default=None)
        if worker is not None:
            floor.put(session, worker)
        return worker


@dataclass
class Paper(Policy):
    """B5: TurboServe as its paper has it: least bottleneck, rebalancing while it pays, workers for the places that are
    wanted at a share that falls with volatility, and all that are ready share a step."""

    settings: Settings = field(default_factory=Settings)
    memory: ScaleMemory = field(default_factory=ScaleMemory)

    def place(self, session: Session, floor: Floor) -> str | None:
        move = floor.place(session)
        return move.target if move else None

    def tick(self, now: float, floor: Floor, waiting: Sequence[Session]) -> Plan:
        plan, self.memory = decide(floor, waiting, now, self.memory, self.settings)
        return plan

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        return list(ready)


@dataclass
class Port(Policy):
    """B6: TurboServe's code as TeleFuser's port has it: the budget first, least loaded, three rounds of moves that gain
    more than 40 ms, one session a step in turn."""

    rule: ScaleRule = field(default_factory=ScaleRule)
    hold_s: float = PAPER_HOLD_S
    _lower: tuple[int, float] | None = None

    def tick(self, now: float, floor: Floor, waiting: Sequence[Session]) -> Plan:
        active = len(floor.home) + len(waiting)
        wanted = port_target(active, self.places, self.rule.most) if active else 1
        have = count = len(floor.desks)
        if wanted >= have:
            count, self._lower = wanted, None
        elif self._lower is None or self._lower[0] != wanted:
            self._lower = (wanted, now)
        elif now - self._lower[1] >= self.hold_s:
            count, self._lower = wanted, None
        names = list(floor.desks)[count:]
        moves, kept = consolidate(floor, names)
        moves += [move for session in waiting if (move := floor.place(session))]
        moves += rebalance(floor, eta=0.35, least_gain_ms=40.0, rounds=3, of_pair=False)
        released = tuple(name for name in names if name not in kept)
        return Plan(max(count, have - len(released)), tuple(moves), released=released)


@dataclass
class Slack(Paper):
    """Ours: B5's placement and moves, with gains of the pair; workers for the load's mean and its root, and for what
    they keep up with; sessions that wait for their viewers, steps by playout slack and shared where that saves;
    latencies learned as they are seen.

    guard_s: how far a session keeps ahead of its viewer beyond `ROUNDS` of the steps it waits for: long enough for a
    recovery.
    """

    profile: Profile = field(default_factory=lambda: Profile("port"))
    guard_s: float = 2.0
    learns_s: float = 10.0
    _learned: float = 0.0

    def __post_init__(self) -> None:
        self.latency = self._seen = Learned(self.latency)
        self._learn()

    def tick(self, now: float, floor: Floor, waiting: Sequence[Session]) -> Plan:
        if now - self._learned >= self.learns_s:
            self.latency, self._learned = self._seen, now
            self._learn()
            floor.learn(self.latency)
        return super().tick(now, floor, waiting)

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        return pick(ready, Used(), self._step_ms, self.places)

    def pause_s(self, lead_s: float, took_s: float) -> float:
        return max(super().pause_s(lead_s, took_s), rest_s(self.profile.chunk_s, took_s))

    def saw(self, alone_ms: float, n: int, took_ms: float) -> None:
        self._seen = self._seen.told(alone_ms, n, self.places, took_ms)

    def _learn(self) -> None:
        """What follows from latencies as they are known now."""
        latency, profile = self.latency, self.profile
        self._step_ms = functools.cache(lambda n: latency.chunk_ms(profile.alone_ms, n, profile.places))
        wake_s = self.guard_s + ROUNDS * self._step_ms(profile.places) / 1000
        self.pace = Pace(wake_s, wake_s)
        places = kept_up(latency, profile.alone_ms, profile.places, profile.chunk_s * 1000)
        self.settings = replace(self.settings, rule=replace(self.settings.rule, places=places))


POLICIES: Mapping[str, str] = {
    "B1": "static: pinned at arrival in turn",
    "B2": "round robin at each activation, coalesced steps",
    "B3": "greedy by active sessions",
    "B4": "greedy by free memory",
    "B5": "TurboServe, paper",
    "B6": "TurboServe, code",
    "B8": "first come, first served",
    "ours": "least bottleneck, moves, scale, pace, steps by slack",
    "ours-moves": "ours without moves",
    "ours-scale": "ours on a fixed cluster",
}


def policy(name: str, gpus: int, profile: Profile, spare: float = SPARE, full: float | None = None) -> Policy:
    """One of POLICIES for a model, told what its profile says. Raises ValueError.

    gpus: workers of a fixed cluster, and the most of one that scales. spare: of ours. full: of B5, instead of the
    shares by restlessness.
    """
    places, told = profile.places, profile.latency
    shares = ScaleRule().full if full is None else ((math.inf, full),)
    rule = ScaleRule(most=gpus, places=places, full=shares, spare=None, hold_s=PAPER_HOLD_S)
    paper = Settings(rule, eta=1.0, least_gain_ms=0.0, of_pair=False)
    ours = Settings(ScaleRule(most=gpus, places=places, spare=spare))
    makers: Mapping[str, Callable[[], Policy]] = {
        "B1": lambda: Static(name, places, gpus, told),
        "B2": lambda: Static(name, places, gpus, told, is_pinned=False),
        "B3": lambda: Greedy(name, places, gpus, told),
        "B4": lambda: ByMemory(name, places, gpus, told),
        "B5": lambda: Paper(name, places, None, told, settings=paper),
        "B6": lambda: Port(name, places, None, told, rule=paper.rule),
        "B8": lambda: Policy(name, places, gpus, told),
        "ours": lambda: Slack(name, places, None, told, settings=ours, profile=profile),
        "ours-moves": lambda: Slack(name, places, None, told, settings=replace(ours, moves=False), profile=profile),
        "ours-scale": lambda: Slack(name, places, gpus, told, settings=replace(ours, scales=False), profile=profile),
    }
    if name not in makers:
        raise ValueError(f"policy is one of {', '.join(makers)}, got {name!r}")
    return makers[name]()
