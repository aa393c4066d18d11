"""What is decided for one model: where a session goes, how many actors there are, and who moves. The decisions
themselves are functions of `cluster/`; here they are given what the actors say of themselves, and are carried out."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from riverrun.actors.decisions import Decision, Decisions
from riverrun.actors.health import Resident
from riverrun.actors.member import Place, PlaceWish, Seen
from riverrun.actors.orders import MoveOrder
from riverrun.actors.pool import Pool
from riverrun.actors.sessions import ACTIVE_S, Growing, NoRoom
from riverrun.cluster.autoscale import ScaleMemory, ScaleRule
from riverrun.cluster.bottleneck import Floor
from riverrun.cluster.decide import Settings, decide
from riverrun.cluster.fleet import Move, Plan, Session
from riverrun.cluster.latency import Formula, Learned, Ratios, kept_up
from riverrun.cluster.placement import Load, keeps_headroom, least_bottleneck, least_loaded, worker
from riverrun.configs import ActorConfig
from riverrun.models.base import BadRequest, Unavailable

PROMISED_S = 10.0
"""A session that was given a place has opened there by then, or will not."""

WANTED_S = 3.0
"""One that found no place asks again sooner, or has given up."""

ORDER_S = 15.0
"""A move that no gateway has made by then is given up."""

REST_S = 10.0
"""After moves, what they changed is measured for so long before others are decided."""

LEAST_SHARE = 0.05
"""Of the bottleneck that a move must gain: less is noise."""

MOST_SHOWN = 16
"""Actors whose figures are kept with a decision."""


@dataclass(frozen=True)
class _Order:
    move: MoveOrder
    until: float


class Planner:
    """Safe for any thread. clock: as `time.time`. learned: what steps took under the controller before."""

    def __init__(
        self,
        pool: Pool,
        decisions: Decisions,
        clock: Callable[[], float] = time.time,
        learned: Ratios | None = None,
    ) -> None:
        self.pool, self._decisions, self._clock = pool, decisions, clock
        self._lock = threading.Lock()
        self._latency, self._memory = Learned(Formula(), learned or {}), ScaleMemory()
        self._learned: dict[tuple[str, int], int] = {}
        self._promised: dict[str, tuple[str, float]] = {}
        self._wanting: dict[str, float] = {}
        self._orders: tuple[_Order, ...] = ()
        self._rested, self._is_frozen = 0.0, False

    @property
    def learned(self) -> Ratios:
        """What steps took, for the next controller."""
        return self._latency.ratios

    # ---- placement ----

    def loads(self) -> list[Load]:
        """Of the actors that a new session may be placed on; started first if need be. Raises Unavailable."""
        return [self._load(seen) for seen in self.pool.ready() if self.pool.is_open(seen.member)]

    def place(self, wish: PlaceWish) -> Place:
        """The actor where the slowest chunk stays quickest; while nothing was measured, the one with most room. Raises
        Unavailable, NoRoom, BadRequest (none like it)."""
        model = self.pool.config.name
        for _ in range(3):  # an actor may turn out dead, and its replacement too
            seen = self.pool.ready()
            fit = {each.member.name: each for each in seen if self._suits(each, wish)}
            if fit:
                return self._place(fit, wish)
            if seen:
                raise Unavailable(f"no other actor of model {model!r} runs; one may be starting")
        raise self.pool.nobody()

    def settle(self, session: str) -> None:
        """It has opened, or will not: what it was promised counts no longer."""
        with self._lock:
            self._promised = {who: at for who, at in self._promised.items() if who.rpartition("/")[0] != session}

    def _place(self, fit: Mapping[str, Seen], wish: PlaceWish) -> Place:
        with self._lock:  # two at once must not both be given the last place
            loads = [self._load(seen) for seen in fit.values()]
            active = {name: _active(seen) for name, seen in fit.items()}
            usual = self._usual([session for those in active.values() for session in those])
            name = f"{wish.session}/{wish.stage}"
            if usual and self._latency.ratios:
                chosen = least_bottleneck(loads, active, Session(name, usual), self._latency, wish.node)
            else:
                chosen = least_loaded(loads, wish.node)
            inputs = self._figures(loads, active, usual)
            if refusal := self._refusal(loads, chosen, wish):
                if wish.session:
                    self._wanting[name] = self._clock()
                self._note("refuse", wish.session, str(refusal), inputs)
                raise refusal
            assert chosen is not None
            self._wanting.pop(name, None)
            if wish.session:
                self._promised[name] = (fit[chosen].member.incarnation, self._clock() + PROMISED_S)
        why = "a place" if wish.is_for_a_new_session else f"another place than {wish.avoid or 'it had'}"
        self._note("place", wish.session, f"stage {wish.stage!r} is given {why}: {chosen}", inputs)
        return self.pool.place_of(fit[chosen].member)

    def _suits(self, seen: Seen, wish: PlaceWish) -> bool:
        member, names = seen.member, self.pool.names
        if wish.actor and wish.actor not in names:
            there = ", ".join(names)
            raise BadRequest(f"model {self.pool.config.name!r} has no actor {wish.actor!r}; there are {there}")
        if member.until is not None or not (self.pool.is_open(member) or member.name == wish.actor):
            return False
        return member.incarnation != wish.avoid and wish.actor in ("", member.name)

    def _refusal(self, loads: Sequence[Load], chosen: str | None, wish: PlaceWish) -> NoRoom | None:
        config = self.pool.config
        if chosen is None:
            places = sum(load.max_sessions for load in loads)
            why = f"all {places} places of model {config.name!r} are taken"
            if self.pool.starting or (self.pool.wanted < most(config.actor) and not self._is_frozen):
                return Growing(f"{why}; another actor is being started")
            return NoRoom(f"{why}; one must end first")
        if wish.is_for_a_new_session and config.actor.headroom and not keeps_headroom(loads, chosen):
            return NoRoom(f"what is free of model {config.name!r} is kept for sessions whose actor dies")
        return None

    def _load(self, seen: Seen) -> Load:
        """Who was promised a place and has not come yet counts as there. Once seen, the promise is kept."""
        health, now = seen.health, self._clock()
        here = {(f"{r.session}/{r.stage}", health.incarnation) for r in seen.look.residents}
        self._promised = {
            who: (at, until) for who, (at, until) in self._promised.items() if until > now and (who, at) not in here
        }
        coming = sum(at == health.incarnation for at, _ in self._promised.values())
        reserved = health.reserved_bytes + coming * health.retained_bytes
        sizes = (health.retained_bytes, health.peak_bytes)
        name, taken = seen.member.name, health.sessions + coming
        return Load(name, taken, health.max_sessions, reserved, health.max_bytes, *sizes, node=health.node)

    # ---- once a second ----

    def tick(self, seen: Sequence[Seen], is_frozen: bool) -> None:
        """Learns what steps take; unless frozen, decides how many actors there should be, and who moves."""
        with self._lock:
            self._is_frozen = is_frozen
            self._learn(seen)
            now = self._clock()
            self._wanting = {who: at for who, at in self._wanting.items() if at > now - WANTED_S}
            self._orders = self._in_force(seen, now)
            if is_frozen or not seen:
                self._orders = ()
                return
            active = {each.member.name: _active(each) for each in seen}
            workers = [worker(self._load(s), active[s.member.name], not self.pool.is_open(s.member)) for s in seen]
            floor = Floor(workers, self._latency)
            usual = self._usual([session for those in active.values() for session in those])
            waiting = [Session(who, usual) for who in self._wanting]
            idle = sum(len(s.look.residents) for s in seen) - len(floor.home)
            settings = self._settings(seen, usual, rests=bool(self._orders) or now < self._rested + REST_S)
            before = floor.bottleneck_ms
            plan, self._memory = decide(floor, waiting, now, self._memory, settings, idle, self.pool.starting)
        if settings.scales:  # else there are as many as the configuration says, the dead among them
            self._scale(plan, seen)
        self._move(plan, {each.member.name: each.member.incarnation for each in seen}, before, floor.bottleneck_ms)

    def orders(self) -> list[MoveOrder]:
        """What is to be moved."""
        return [order.move for order in self._orders]

    def _scale(self, plan: Plan, seen: Sequence[Seen]) -> None:
        have = self.pool.wanted
        staying = [s.member for s in seen if s.member.until is None]
        cordoned = sum(not self.pool.is_open(member) for member in staying)
        self.pool.resize(plan.workers + cordoned, plan.released)
        if self.pool.wanted != have:
            released = dict.fromkeys(plan.released, "is let go")
            self._note("scale", "", f"{self.pool.wanted} actors after {have}: {plan.why['scale']}", released)

    def _move(self, plan: Plan, incarnations: Mapping[str, str], before: float, after: float) -> None:
        """Those on actors that are let go are moved as from cordoned ones: a place is found when it is their turn."""
        moves = [m for m in plan.moves if m.source in incarnations and m.source not in plan.released]
        if not moves:
            return
        now = self._clock()
        found = tuple(_Order(_ordered(move, incarnations), now + ORDER_S) for move in moves)
        self._orders, self._rested = found, now
        figures = {"slowest chunk before": f"{before:.0f} ms", "after all moves": f"{after:.0f} ms"}
        for each in found:
            line = f"stage {each.move.stage!r} is to move from {each.move.source} to {each.move.target}"
            self._note("move", each.move.session, line, figures)

    def _in_force(self, seen: Sequence[Seen], now: float) -> tuple[_Order, ...]:
        here = {(r.session, r.stage, s.member.incarnation) for s in seen for r in s.look.residents}
        due = (o for o in self._orders if o.until > now)
        return tuple(o for o in due if (o.move.session, o.move.stage, o.move.source) in here)

    def _settings(self, seen: Sequence[Seen], usual: float, rests: bool) -> Settings:
        actor = self.pool.config.actor
        rule = ScaleRule(actor.count, most(actor), self._places(seen, usual), hold_s=actor.shrink_s)
        scales = most(actor) > actor.count
        return Settings(rule, least_share=LEAST_SHARE, moves=not rests, scales=scales)

    def _places(self, seen: Sequence[Seen], usual: float) -> float:
        """Of an actor, by its configuration and its memory; as soon as steps were measured, no more than it keeps up
        with while everybody plays at 1x."""
        empty = [replace(self._load(each), sessions=0, reserved_bytes=0).room for each in seen]
        places = max(1, min(empty))
        info = next((each.member.info for each in seen if each.member.info), None)
        if not (info and info.description.fps and usual and self._latency.ratios):
            return places
        chunk_ms = 1000 * info.description.chunk_frames / info.description.fps
        return kept_up(self._latency, usual, places, chunk_ms)

    def _learn(self, seen: Sequence[Seen]) -> None:
        for each in seen:
            for measured in each.look.measured:
                key = (each.member.incarnation, measured.sessions)
                if measured.steps != self._learned.get(key) and measured.alone_ms > 0:
                    places = max(each.health.max_sessions, 1)
                    figures = (measured.alone_ms, measured.sessions, places, measured.took_ms)
                    self._latency = self._latency.told(*figures)
                    self._learned[key] = measured.steps
        alive = {each.member.incarnation for each in seen}
        self._learned = {key: steps for key, steps in self._learned.items() if key[0] in alive}

    def _usual(self, active: Sequence[Session]) -> float:
        """What the step of a session that is not there yet will take by itself; 0: nothing is known."""
        known = [session.alone_ms for session in active if session.alone_ms]
        return statistics.median(known) if known else 0.0

    def _figures(self, loads: Sequence[Load], active: Mapping[str, Sequence[Session]], usual: float) -> dict[str, str]:
        desks = Floor([worker(load, active[load.actor]) for load in loads], self._latency).desks
        found = {}
        for load in sorted(loads, key=lambda each: (-each.room, each.actor))[:MOST_SHOWN]:
            line = f"{load.sessions} of {load.max_sessions} sessions, {len(active[load.actor])} active"
            if usual:
                desk = desks[load.actor]
                line += f", slowest chunk {desk.worst_ms:.0f} ms, {desk.with_one(Session('', usual)):.0f} with one more"
            found[load.actor] = line
        return found

    def _note(self, kind: str, session: str, line: str, inputs: Mapping[str, str]) -> None:
        self._decisions.note(Decision(self._clock(), kind, self.pool.config.name, session, line, inputs))


def most(actor: ActorConfig) -> int:
    """The most actors of a model."""
    return max(actor.count, actor.max_count or 0)


def _active(seen: Seen) -> list[Session]:
    """Who wants chunks of an actor now."""
    return [_session(resident) for resident in seen.look.residents if resident.idle_s < ACTIVE_S]


def _session(resident: Resident) -> Session:
    return Session(f"{resident.session}/{resident.stage}", resident.alone_ms, resident.held_bytes)


def _ordered(move: Move, incarnations: Mapping[str, str]) -> MoveOrder:
    assert move.source is not None
    session, _, stage = move.session.rpartition("/")
    return MoveOrder(session, stage, incarnations[move.source], move.target)
