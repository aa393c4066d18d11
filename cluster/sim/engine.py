"""A cluster that is played instead of run: events in order of time, and one of the policies at the wheel.

A worker makes one step at a time, of one or several sessions; how long it truly takes is drawn from a model that no
policy sees. A session is ready for its next chunk when the last one is there, unless it is parked ahead of its viewer.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from riverrun.cluster.bottleneck import Floor
from riverrun.cluster.fleet import Plan, Session, Worker
from riverrun.cluster.latency import move_ms
from riverrun.cluster.sim.policies import Policy
from riverrun.cluster.sim.score import Playout, Score, Tally
from riverrun.cluster.sim.trace import Act, Event, Trace
from riverrun.cluster.sim.truth import Profile, Truth
from riverrun.cluster.slack import PATIENCE_S, Ready


@dataclass(frozen=True)
class World:
    """profile: the model that runs, as policies are told of it. spread: the truth, and each step, lie within this share
    of what was told. start_s: a node comes so long after it was asked for; load_s: and its worker has loaded the model
    so much later. tick_s: from one plan to the next. recover_s: from a worker's death until its sessions can be placed
    again. call_s: from a chunk to its session's next call. recache: what a prompt switch adds to the next chunk, in
    chunks alone. most_lead_s: what a viewer's buffer holds: a session that nobody parks stops there."""

    profile: Profile = field(default_factory=lambda: Profile("port"))
    spread: float = 0.2
    start_s: float = 20.0
    load_s: float = 10.0
    tick_s: float = 1.0
    recover_s: float = 2.0
    call_s: float = 0.0
    recache: float = 1.0
    most_lead_s: float = 8.0
    seed: int = 0


@dataclass(slots=True, eq=False)
class _User:
    session: Session
    playout: Playout = field(default_factory=Playout)
    is_active: bool = False
    is_new: bool = True
    parked: bool = False
    ready_at: float | None = None  # its next chunk could be made
    asked_at: float = 0.0  # it became active
    free_at: float = 0.0  # its state is where it lives
    in_step: bool = False
    queue: _Machine | None = None  # where it waits for its step
    recaches: int = 0  # prompt switches that its next chunk has to see to
    queued_at: float = 0.0
    turn: int = 0  # events of an earlier turn are void


@dataclass(slots=True, eq=False)
class _Machine:
    id: str
    since: float
    ready: dict[str, None] = field(default_factory=dict)
    is_busy: bool = False
    is_leaving: bool = False


class Run:
    """One trace under one policy. `score` says how it went; a Run is played once."""

    def __init__(self, trace: Trace, policy: Policy, world: World, truth: Truth | None = None) -> None:
        self.trace, self.policy, self.world = trace, policy, world
        self._truth = truth or Truth.drawn(world.profile.latency, world.spread, world.seed)
        self._draw = random.Random(f"deaths:{world.seed}")
        self._move_s = move_ms(world.profile.state_bytes) / 1000
        self.now, self.tally = 0.0, Tally()
        self.floor = Floor((), policy.latency)
        self._machines: dict[str, _Machine] = {}
        self._users: dict[str, _User] = {}
        self._waiting: dict[str, float] = {}  # active without a place, since when
        self._coming: dict[int, float] = {}  # workers that were asked for, and when
        self._names = itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        for _ in range(policy.workers_at_start(trace.active_at_once)):
            self._up(0.0)

    def score(self) -> Score:
        for at, share in self.trace.fails:
            self._at(at, self._fail, share)
        self._at(self.world.tick_s, self._tick)
        ahead = iter(self.trace.events)
        event = next(ahead, None)
        while True:
            due = self._events[0][0]  # a tick is always due
            if event is not None and event.time_s <= due:
                self.now = event.time_s
                self._act(event)
                event = next(ahead, None)
            elif due <= self.trace.seconds:
                self.now, _, call, about = heapq.heappop(self._events)
                call(*about)
            else:
                return self._end()

    def _end(self) -> Score:
        self.now = self.trace.seconds
        for user in self._users.values():
            self._fall_silent(user)
        for name in list(self._machines):
            self._down(name)
        self.tally.worker_s += sum(self.now - asked for asked in self._coming.values())
        return self.tally.score(self.policy.name, self.trace.name)

    # -- users -----------------------------------------------------------------------------------------------

    def _act(self, event: Event) -> None:
        if event.act is Act.ARRIVE:
            profile = self.world.profile
            session = Session(event.session, profile.alone_ms, profile.state_bytes)
            self._users[event.session] = _User(session)
            self.policy.arrives(event.session, self.floor)
            return
        user = self._users.get(event.session)
        if user is None:
            return
        if event.act is Act.ACTIVE and not user.is_active:
            user.is_active, user.is_new, user.asked_at = True, True, self.now
            user.turn += 1
            self._seek(user)
        elif event.act is Act.SWITCH:
            user.recaches += user.is_active
        elif event.act in (Act.IDLE, Act.LEAVE):
            self._fall_silent(user)
            if event.act is Act.LEAVE:
                del self._users[event.session]

    def _seek(self, user: _User) -> None:
        """A place for an active session."""
        worker = None if self._is_store_away else self.policy.place(user.session, self.floor)
        if worker is None:
            self._waiting.setdefault(user.session.id, self.now)
        else:
            self._settle(user)

    def _settle(self, user: _User) -> None:
        """It has a place, and goes on there when its state has come."""
        self._waits_no_more(user.session.id)
        user.free_at = self.now + self._move_s
        if user.ready_at is None and not user.parked and not user.in_step:
            user.ready_at = user.asked_at if user.is_new else self.now
        self._at(user.free_at, self._offer, user, user.turn)

    def _fall_silent(self, user: _User) -> None:
        if not user.is_active:
            return
        name = user.session.id
        self.tally.active_s += self.now - user.asked_at
        user.is_active, user.turn = False, user.turn + 1
        user.ready_at, user.parked, user.recaches = None, False, 0
        self._unqueue(user)
        self.floor.leave(name)
        self._waits_no_more(name)
        user.playout.end(self.now)
        self.tally.played_s += user.playout.played_s
        self.tally.stalled_s += user.playout.stalled_s
        user.playout = Playout()
        if self._waiting:
            self._seek(self._users[next(iter(self._waiting))])

    def _offer(self, user: _User, turn: int) -> None:
        """Its next chunk can be made, if it is still where and what it was."""
        machine = self._machine(user.session.id)
        if turn != user.turn or machine is None or user.ready_at is None or user.in_step or user.queue:
            return
        if self.now + 1e-9 < user.free_at:
            return  # it moved meanwhile; it is offered again there
        machine.ready[user.session.id] = None
        user.queued_at = self.now
        user.queue = machine
        self._step(machine)

    # -- steps -----------------------------------------------------------------------------------------------

    def _step(self, machine: _Machine) -> None:
        if machine.is_busy or not machine.ready:
            return
        profile = self.world.profile
        chosen = [self._users[name] for name in machine.ready]
        if len(chosen) > 1:
            ready = [self._ready(user) for user in chosen]
            chosen = [self._users[each.id] for each in self.policy.batch(ready, profile.alone_ms)]
        took = self._truth.step_ms(profile.alone_ms, len(chosen), profile.places)
        for user in chosen:
            self._unqueue(user)
            user.in_step = True
            if user.recaches:
                took += self.world.recache * self._truth.step_ms(profile.alone_ms, 1, profile.places)
                user.recaches = 0
        machine.is_busy = True
        self.tally.steps += 1
        self.tally.busy_s += took / 1000
        self._at(self.now + took / 1000, self._made, machine, [(user, user.turn) for user in chosen], took)

    def _ready(self, user: _User) -> Ready:
        waited_s = self.now - user.queued_at
        lead_s = PATIENCE_S - waited_s if user.is_new else user.playout.lead(self.now)
        return Ready(user.session.id, lead_s, "", waited_s)

    def _made(self, machine: _Machine, members: list[tuple[_User, int]], took: float) -> None:
        for user, _ in members:
            user.in_step = False
        if machine.id not in self._machines:  # it died under them: nothing was made
            for user, turn in members:
                self._at(self.now, self._offer, user, turn)  # who was to move away lives on elsewhere
            return
        machine.is_busy = False
        self.policy.saw(self.world.profile.alone_ms, len(members), took)
        for user, turn in members:
            if turn == user.turn:
                self._deliver(user, machine)
            elif user.is_active and user.ready_at is not None:  # silent and active again meanwhile
                self._at(max(self.now, user.free_at), self._offer, user, user.turn)
        if machine.is_leaving and not machine.ready:
            self._down(machine.id)
        else:
            self._step(machine)

    def _deliver(self, user: _User, made_at: _Machine) -> None:
        assert user.ready_at is not None
        if user.is_new:
            self.tally.first_ms.append((self.now - user.asked_at) * 1000)
            user.is_new = False
        else:
            self.tally.chunk_ms.append((self.now - user.ready_at) * 1000)
        user.playout.add(self.now, self.world.profile.chunk_s)
        if made_at is not self._machine(user.session.id):
            user.free_at = self.now + self._move_s  # it moves now, between two chunks
        lead = user.playout.lead(self.now)
        pause_s = max(self.policy.pause_s(lead, self.now - user.queued_at), lead - self.world.most_lead_s)
        if pause_s <= 0:
            user.ready_at = self.now
            self._at(max(self.now + self.world.call_s, user.free_at), self._offer, user, user.turn)
        else:
            user.ready_at, user.parked = None, True
            self._at(self.now + pause_s, self._wake, user, user.turn)

    def _wake(self, user: _User, turn: int) -> None:
        if turn == user.turn:
            user.parked, user.ready_at = False, self.now
            self._at(max(self.now, user.free_at), self._offer, user, turn)

    # -- workers ---------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._at(self.now + self.world.tick_s, self._tick)
        if self._is_store_away:
            return
        waiting = [self._users[name].session for name in self._waiting]
        began = time.perf_counter()
        plan = self.policy.tick(self.now, self.floor, waiting)
        self.tally.decide_ms = max(self.tally.decide_ms, (time.perf_counter() - began) * 1000)
        self._carry_out(plan)

    def _carry_out(self, plan: Plan) -> None:
        for move in plan.moves:
            user = self._users[move.session]
            self.tally.migrations += move.source is not None
            if not user.queue and not user.in_step:
                self._settle(user)
        for name in plan.released:
            self.floor.remove(name)
            self._machines[name].is_leaving = True
            if not self._machines[name].is_busy:
                self._down(name)
        for _ in range(plan.workers - len(self.floor.desks) - len(self._coming)):
            self._buy(self.world.start_s + self.world.load_s)

    def _buy(self, takes_s: float) -> None:
        """A worker is paid for from the moment it is asked for."""
        number = next(self._names)
        self._coming[number] = self.now
        self._at(self.now + takes_s, self._arrive, number)

    def _arrive(self, number: int) -> None:
        self._up(self._coming.pop(number))
        for name in list(self._waiting):
            self._seek(self._users[name])

    def _up(self, since: float) -> None:
        name = f"w{next(self._names):06d}"
        self._machines[name] = _Machine(name, since)
        self.floor.add(Worker(name, self.world.profile.places))
        self.tally.peak_workers = max(self.tally.peak_workers, len(self._machines))

    def _down(self, name: str) -> None:
        """Who was to make a last chunk here before it moved makes it where it lives."""
        machine = self._machines.pop(name)
        self.tally.worker_s += self.now - machine.since
        for session in list(machine.ready):
            self._unqueue(self._users[session])
            self._at(self.now, self._offer, self._users[session], self._users[session].turn)

    def _fail(self, share: float) -> None:
        """So many of the nodes are lost, and new ones asked for; share 0: a worker's process dies, and is started again
        on its node."""
        again_s = self.world.load_s + (self.world.start_s if share else 0.0)
        many = min(max(1, int(share * len(self._machines))), len(self._machines))
        for name in self._draw.sample(sorted(self.floor.desks), min(many, len(self.floor.desks))):
            orphans = self.floor.remove(name)
            self._down(name)
            self._buy(again_s)
            for session in orphans:
                user = self._users[session.id]
                user.turn += 1  # a step in hand is lost with it
                user.parked = False
                user.ready_at = self.now if user.ready_at is None else user.ready_at
                self.tally.recoveries += 1
                self._at(self.now + self.world.recover_s, self._again, user, user.turn)

    def _again(self, user: _User, turn: int) -> None:
        if turn == user.turn and user.session.id not in self.floor.home:
            self._seek(user)

    # -- helpers ---------------------------------------------------------------------------------------------

    @property
    def _is_store_away(self) -> bool:
        return any(since <= self.now < until for since, until in self.trace.store_away)

    def _waits_no_more(self, session: str) -> None:
        since = self._waiting.pop(session, None)
        if since is not None:
            self.tally.unplaced_s += self.now - since

    def _unqueue(self, user: _User) -> None:
        if user.queue:
            del user.queue.ready[user.session.id]
            user.queue = None

    def _machine(self, session: str) -> _Machine | None:
        home = self.floor.home.get(session)
        return self._machines[home] if home else None

    def _at(self, when: float, call: Callable[..., None], *about: object) -> None:
        heapq.heappush(self._events, (when, next(self._order), call, about))
