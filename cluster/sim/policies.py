"""What a simulated cluster may be run by: ours, of the functions that production calls, and the baselines of peers.md
§3.3, each by its letter there.

A policy is asked where an activated session goes (`place`), once a control period for a plan (`tick`), and by a free
worker for its next step (`batch`). It sees predicted latencies, never true ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from riverrun.cluster.autoscale import ScaleMemory, ScaleRule, port_target, target
from riverrun.cluster.bottleneck import Floor, consolidate, rebalance
from riverrun.cluster.fleet import Move, Plan, Session
from riverrun.cluster.latency import Formula, Latency, Learned
from riverrun.cluster.slack import Pace, Ready, batch


@dataclass
class Policy:
    """The common ground: `fixed` workers that never change, a session goes to the one with least sessions, one session
    a step in turn. places: of a worker. pace: None: sessions run ahead of their viewers as far as the buffer goes."""

    name: str
    places: int
    fixed: int | None = None
    latency: Latency = field(default_factory=Formula)
    pace: Pace | None = None

    def workers_at_start(self) -> int:
        return self.fixed or 1

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
        return Plan(len(floor.desks))

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        """Of one worker; never empty."""
        return [min(ready, key=lambda each: (each.since, each.id))]

    def saw(self, alone_ms: float, n: int, took_ms: float) -> None:
        """A step of n sessions took so long."""


@dataclass
class Static(Policy):
    """B1: pinned at arrival in turn, and back to the same worker after each silence. B2, not pinned: in turn at each
    activation, and all that are ready share a step."""

    is_pinned: bool = True
    _homes: dict[str, str] = field(default_factory=dict)
    _turn: int = 0

    def arrives(self, session: str, floor: Floor) -> None:
        if self.is_pinned:
            self._homes[session] = self._next(floor)

    def place(self, session: Session, floor: Floor) -> str | None:
        if self.is_pinned and self._homes[session.id] not in floor.desks:  # it died
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
        names = list(floor.desks)
        return names[self._turn % len(names)]


@dataclass
class ByMemory(Policy):
    """B4: the worker with most memory free at activation; nothing moves."""

    def place(self, session: Session, floor: Floor) -> str | None:
        held = {d.id: sum(s.state_bytes for s in d.sessions.values()) for d in floor.desks.values() if d.room > 0}
        worker = min(held, key=lambda name: (held[name], name), default=None)
        if worker is not None:
            floor.put(session, worker)
        return worker


@dataclass
class Paper(Policy):
    """B5: TurboServe as its paper has it: least bottleneck, rebalancing while it pays, workers for the places that are
    wanted at a share that falls with volatility, and all that are ready share a step. Without `moves` or `scales`: its
    ablations."""

    rule: ScaleRule = field(default_factory=ScaleRule)
    eta: float = 1.0
    moves: bool = True
    scales: bool = True
    memory: ScaleMemory = field(default_factory=ScaleMemory)
    of_pair: bool = False
    least_gain_ms: float = 0.0

    def place(self, session: Session, floor: Floor) -> str | None:
        move = floor.place(session)
        return move.target if move else None

    def tick(self, now: float, floor: Floor, waiting: Sequence[Session]) -> Plan:
        moves = [move for session in waiting if (move := floor.place(session))]
        have = count = len(floor.desks)
        why, released = "fixed", list[str]()
        if self.scales:
            active = len(floor.home) + len(waiting) - len(moves)
            wanted = target(self.rule, self.memory, now, active, have)
            count, why, self.memory = wanted.workers, wanted.why, wanted.memory
        if count < have:
            moved, released = let_go(floor, have - count, self.moves)
            moves += moved
        if self.moves:
            moves += rebalance(floor, self.eta, self.least_gain_ms, of_pair=self.of_pair)
        return Plan(max(count, have - len(released)), tuple(moves), released=tuple(released), why={"scale": why})

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        return list(ready)


@dataclass
class Port(Policy):
    """B6: TurboServe's code as TeleFuser's port has it: the budget first, least loaded, three rounds of moves that gain
    more than 40 ms, one session a step in turn."""

    rule: ScaleRule = field(default_factory=ScaleRule)
    hold_s: float = 5.0
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
    """Ours: B5's placement and scale with gains of the pair, sessions that wait for their viewers, steps by playout
    slack, latencies learned as they are seen."""

    latency: Latency = field(default_factory=lambda: Learned(Formula()))
    pace: Pace | None = field(default_factory=Pace)
    eta: float = 0.35
    of_pair: bool = True
    least_gain_ms: float = 5.0
    spend: float = 0.5
    learns_s: float = 10.0
    _learned: float = 0.0

    def tick(self, now: float, floor: Floor, waiting: Sequence[Session]) -> Plan:
        if now - self._learned >= self.learns_s:
            floor.learn(self.latency)
            self._learned = now
        return super().tick(now, floor, waiting)

    def batch(self, ready: Sequence[Ready], alone_ms: float) -> list[Ready]:
        return batch(ready, lambda n: self.latency.chunk_ms(alone_ms, n, self.places), self.spend)

    def saw(self, alone_ms: float, n: int, took_ms: float) -> None:
        if isinstance(self.latency, Learned):
            self.latency = self.latency.told(alone_ms, n, self.places, took_ms)


def let_go(floor: Floor, many: int, moves: bool) -> tuple[list[Move], list[str]]:
    """Of the lightest workers so many; without moves, only empty ones."""
    lightest = sorted(floor.desks.values(), key=lambda desk: (len(desk.sessions), desk.id))[:many]
    names = [desk.id for desk in lightest if moves or not desk.sessions]
    moved, kept = consolidate(floor, names)
    return moved, [name for name in names if name not in kept]


BASELINES: Mapping[str, str] = {
    "B1": "static: pinned at arrival in turn",
    "B2": "round robin at each activation, coalesced steps",
    "B3": "greedy by active sessions",
    "B4": "greedy by free memory",
    "B5": "TurboServe, paper",
    "B6": "TurboServe, code",
    "B8": "first come, first served",
    "ours": "slack",
}


def policy(name: str, places: int, peak: int, most: int) -> Policy:
    """peak: workers that the most active sessions of a trace need, which is what a fixed cluster is given."""
    rule = ScaleRule(most=most, places=places)
    makers: Mapping[str, Callable[[], Policy]] = {
        "B1": lambda: Static(name, places, peak),
        "B2": lambda: Static(name, places, peak, is_pinned=False),
        "B3": lambda: Policy(name, places, peak),
        "B4": lambda: ByMemory(name, places, peak),
        "B5": lambda: Paper(name, places, rule=rule),
        "B6": lambda: Port(name, places, rule=rule),
        "B8": lambda: Policy(name, places, peak),
        "ours": lambda: Slack(name, places, rule=rule),
    }
    if name not in makers:
        raise ValueError(f"no policy is called {name!r}; there are {', '.join(makers)}")
    return makers[name]()
