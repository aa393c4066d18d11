"""Seeded schedules: one session from its opening to its end, while parties die, messages go astray and stores forget.

`python schedule.py SEED [SEED2]` runs one schedule, or all from one to the other, without a wall clock: what is drawn
from a seed is the same each time, and so is what happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from schedule_client import Viewer, Violation, demand
from schedule_faults import draw_faults, strike
from schedule_graphs import SEED, draw
from schedule_loop import PROCESS, LoopClock, VirtualLoop, run
from schedule_world import Gateway, Placer, World

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.durability import Durability
from riverrun.graphs.gate import Gate
from riverrun.graphs.recovery import RecoveryConfig
from riverrun.graphs.runner import Runner
from riverrun.models.base import Unavailable
from riverrun.store.records import SessionRecord

SESSION = "s1"
MOST_TURNS = 150_000
END_S = 5_000.0
"""Nothing takes longer, by the schedule's clock."""


@dataclass
class Outcome:
    """Of one schedule. fault: what was violated, "" if nothing. trace: a number that is the same if it ran the same."""

    seed: int
    fault: str = ""
    frames: int = 0
    trace: int = 0
    turns: int = 0
    excused: str = ""
    struck: Counter = field(default_factory=Counter)


class Show:
    """A session with everything around it, drawn from a seed."""

    def __init__(self, seed: int, loop: VirtualLoop, many_faults: int = 6):
        self.dice = dice = random.Random(seed)
        self.case = draw(dice)
        clock = LoopClock(loop)
        self.loop, self.clock = loop, clock
        self.world = World(loop, clock, random.Random(seed + 1), places=dice.choice((2, 3, 8)))
        self.config = RunnerConfig(
            edge_chunks=dice.choice((1, 2, 4)),
            ring_frames=dice.choice((4, 16)),
            idle_timeout_s=0.0,
            cadence=Cadence(dice.choice((1, 2, 3, 5, 9)), dice.choice((0.02, 10.0)), dice.choice((2, 6))),
            recovery=RecoveryConfig(tries=1000),
            grace_s=dice.choice((15.0, 30.0)),
        )
        self.broad = dice.random() < 0.3
        self.gate = Gate(2)
        self.gateways: list[Gateway] = []
        self.current: Gateway | None = None
        self.elsewhere = False
        self.excuse = ""
        self.viewer = Viewer(self, self.case, dice)
        self.faults = draw_faults(dice, many_faults)
        self.lookups = 0
        self.left: list[str] = []
        self.broken: Exception | None = None
        self.playing: asyncio.Task[None]

    async def play(self) -> None:
        """The whole life of the session. Raises Violation."""
        self.playing = asyncio.create_task(self._play())
        await asyncio.wait({self.playing})
        if self.broken:
            raise self.broken
        self.playing.result()

    async def _play(self) -> None:
        for number in range(self.dice.randint(2, 4)):
            self.world.add(f"a{number}")
        await self._open()
        self.world.weather = self.faults.weather
        self.world.on_message = self._message
        try:
            async with asyncio.timeout(END_S):
                await self.viewer.live()
        except TimeoutError:
            self.left = [
                f"{g.name}: {t.get_coro().__qualname__} {t.get_stack(limit=1)}" for g in self.gateways for t in g.tasks
            ]
            raise Violation(f"not over after {END_S:g} s") from None
        self._calm()
        if self.viewer.over == "closed":
            self.viewer.check_whole()
        await self._settle()
        self._check_end()

    # ---- gateways ----

    def new_gateway(self) -> Gateway:
        self.gateways.append(Gateway(f"g{len(self.gateways)}"))
        return self.gateways[-1]

    def start(self, gateway: Gateway, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """Runs it in the process of a gateway."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, gateway)
        return context.run(self.loop.create_task, work)

    def kill(self, gateway: Gateway) -> None:
        gateway.lives = False
        for task in list(gateway.tasks):
            task.cancel()
        if gateway is self.current:
            self.viewer.cut(self.dice.choice((0.0, 0.01, 4.0)))

    def _runner(self, gateway: Gateway, record: SessionRecord, handles: Mapping[str, Any]) -> Runner:
        placer = Placer(self.world, gateway, dict(self.case.models))
        durable = Durability(placer, self.world.blobs.by(gateway), self.gate)
        store: Any = self.world.store.by(gateway)
        return Runner(record, self.case.graph, handles, {}, store, self.clock, self.config, durability=durable)

    async def _open(self) -> None:
        gateway = self.new_gateway()
        placer = Placer(self.world, gateway, dict(self.case.models))
        params, most = self.case.params, self.case.frames
        record = SessionRecord(
            SESSION, self.case.graph.name, nonce="n1", params=params, seed=SEED, max_frames=most, created=1000.0
        )

        async def opening() -> Runner:
            stored = await self.world.store.by(gateway).create(record)
            placed = {}
            for name, actor in zip(self.case.graph.order(), itertools.cycle(list(self.world.actors))):
                placed[name] = await placer.place(name, actor=actor)
            handles = {name: handle for name, (handle, _) in placed.items()}
            stored = replace(stored, placement={name: at for name, (_, at) in placed.items()})
            runner = gateway.runner = self._runner(gateway, stored, handles)
            await runner.open()
            return runner

        await self.start(gateway, opening())
        self.current = gateway
        self.start(gateway, self._watch(gateway))

    async def _watch(self, gateway: Gateway) -> None:
        """As the host of sessions does: when one has ended, the store is told until it knows."""
        await gateway.runner.ended()
        with contextlib.suppress(Unavailable):
            await gateway.runner.catch_up()

    async def reach(self, received: Mapping[str, int]) -> Gateway | None:
        """A gateway where the session runs: the one that has it, or another that takes it over. None: not now."""
        at = self.current
        if at and at.lives and at.runner and at.runner.state.runs and not self.elsewhere:
            return at
        self.elsewhere = False
        is_same = bool(at and at.lives and at.runner and not at.runner.state.runs and self.dice.random() < 0.5)
        gateway = at if is_same and at else self.new_gateway()
        self.current = gateway
        adopting = self.start(gateway, self._adopt(gateway, received))
        await asyncio.wait({adopting})
        if adopting.cancelled():
            self.world.struck["taking over was cut off"] += 1
            return None
        if error := adopting.exception():
            if not isinstance(error, Unavailable):
                raise error
            self.viewer.away_s = self.dice.choice((0.1, 1.0, 5.0))
            return None
        return gateway if adopting.result() else None

    async def _adopt(self, gateway: Gateway, received: Mapping[str, int]) -> bool:
        if gateway.runner:
            await gateway.runner.ended()
        store, shelf = self.world.store.by(gateway), self.world.blobs.by(gateway)
        record = await store.get(SESSION)
        if record is None:
            record = await self._rebuilt(store, shelf)
        if record is None or record.state.ended:
            self._over(record)
            return False
        epoch = max(record.epoch, await shelf.max_epoch(SESSION)) + 1
        nonce = f"n{next(self.world.numbers)}"
        taken = await store.take(SESSION, record.version, epoch, nonce)
        self.world.struck["taken over"] += 1
        runner = self._runner(gateway, replace(taken, gateway=gateway.name), {})
        gateway.runner = None
        try:
            await runner.resume(received)
        except BaseException:
            if gateway.lives:
                await runner.ended()
            raise
        gateway.runner = runner
        self.start(gateway, self._watch(gateway))
        return True

    async def _rebuilt(self, store: Any, shelf: Any) -> SessionRecord | None:
        """The store has forgotten the session: what lies beside its checkpoints says what it was."""
        manifests = await shelf.manifests(SESSION)
        if not manifests:
            return None
        self.world.struck["record rebuilt"] += 1
        record = SessionRecord.from_json(max(manifests, key=lambda m: m.order).record)
        return await store.create(replace(record, version=0))

    def _over(self, record: SessionRecord | None) -> None:
        if record is None:
            demand("redis emptied" in self.world.struck, "the record is gone, and nothing emptied the store")
            self.lookups += 1
            if self.lookups < 30:  # who has it will tell the store again
                self.viewer.away_s = 10.0
                return
            self.viewer.over = self.excuse = "the store was emptied before there was a checkpoint"
        elif record.state.value == "closed":
            self.viewer.over = "closed"
        else:
            self.failed(record.reason)

    def failed(self, reason: str) -> None:
        """A gateway says that the session has failed."""
        if "taken over" in reason or "another gateway" in reason:
            return  # by another gateway
        demand(self.faults.may_fail, f"the session failed: {reason}")
        self.viewer.over = self.excuse = reason

    # ---- while it runs ----

    def moved(self) -> None:
        """The client was given something."""
        if self.world.messages % 4 == 0:
            self.check()

    def _message(self, what: str) -> None:
        """Faults strike, and books are looked into, when the task that sends it waits."""
        if self.world.messages % 8 == 0:
            self.loop.call_soon(self._guarded, self.check)
        while self.faults.due and self.faults.due[0].at <= self.world.messages:
            self.loop.call_soon(self._guarded, partial(strike, self, self.faults.due.pop(0)))

    def _guarded(self, work: Callable[[], None]) -> None:
        """What it raises ends the schedule, and is nobody's in the session."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by `play`
            self.broken = self.broken or error
            self.playing.cancel()

    def check(self) -> None:
        for gateway in self.gateways:
            if gateway.lives and gateway.runner:
                gateway.runner.check()
        for actor in self.world.actors.values():
            for worker in actor.workers.values():
                worker.check()
        self.gate.check()

    def describe(self) -> str:
        """Where everything stands."""
        lines = [f"{self.case}", f"{self.config.cadence}, at {self.loop.time():.3f} s, {self.world.messages} messages"]
        viewer = self.viewer
        lines.append(
            f"client: {viewer.received}, credits {viewer.credits}, ack every {viewer.lag}, {viewer.acked_input}"
        )
        for gateway in (g for g in self.gateways if g.lives and g.runner):
            runner = gateway.runner
            lines.append(f"{gateway.name}: {runner.state.value} {runner._reason}, paused: {runner.status().paused}")
            flow = runner._flow
            for driver in flow.drivers.values() if flow else ():
                facts = (driver.next_seq, driver.acked, driver.log, driver.finished, driver.is_held, driver.is_stepping)
                lines.append(f"  {driver.name}: {facts} {driver.turn()} {driver.fault} kept {driver._kept}")
                if flow.saver:
                    mine = flow.saver.stages[driver.name]
                    lines.append(f"    {[m.mark.seq for m in mine.book.manifests]} writing {mine.is_writing}")
            for at, edge in flow.edges.items() if flow else ():
                facts = (edge.base, edge.taken, edge.end, edge._pushed, edge.ended, edge.capacity, bool(edge.head))
                lines.append(f"  {at}: {facts}")
            for name, ring in flow.audience.rings.items() if flow else ():
                lines.append(f"  {name}: cursor {ring.cursor}, acked {ring.acked}, next {ring.next_frame}, {len(ring)}")
        return "\n".join(lines)

    # ---- its end ----

    def _calm(self) -> None:
        self.faults.due.clear()
        self.world.weather = replace(self.world.weather, lose=0.0, twice=0.0, slow=0.0)
        self.world.on_message = lambda what: None

    async def _settle(self) -> None:
        """Whoever still runs - a gateway that lost the session and does not know it - has to find out."""
        async with asyncio.timeout(3000):
            while any(g.lives and g.runner and g.runner.state.runs for g in self.gateways):
                await asyncio.sleep(1.0)
            await asyncio.sleep(600)
            for gateway in self.gateways:
                if gateway.lives and gateway.runner:
                    await gateway.runner.ended()
        self.check()

    def _check_end(self) -> None:
        world = self.world
        left = {task.get_coro().__qualname__ for g in self.gateways for task in g.tasks if not task.done()}
        demand(not left, f"tasks are left: {sorted(left)}")
        demand(self.gate._free == self.gate._limit, "places of the gate are left taken")
        if self.excuse:
            return
        record = world.store._all()
        demand(all(r.state.value == "closed" for r in record), f"the record says {[r.state.value for r in record]}")
        blobs = set(world.blobs.paths) - world.blobs.late
        is_kept = world.struck["blobs left to the reaper"]
        demand(is_kept or not blobs, f"blobs are left: {sorted(blobs)}")
        frozen = {"gateway killed", "both killed", "gateway frozen", "gateway frozen and left", "actor frozen"}
        is_reaped = world.lost_closes or frozen & set(world.struck) or self.faults.weather.slow_s > 10
        demand(is_reaped or not world.states(), f"{world.states()} states are left")


def play(seed: int) -> Outcome:
    """One schedule from its seed."""
    loop = VirtualLoop(MOST_TURNS)
    show = Show(seed, loop)
    outcome = Outcome(seed)
    try:
        run(show.play(), loop)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.fault = _line(error)
        if log.isEnabledFor(logging.INFO):
            traceback.print_exception(error)
            print(show.describe())
            print("tasks at the end:", *show.left, sep="\n  ")
    outcome.frames = sum(show.viewer.received.values())
    outcome.trace, outcome.turns = show.world.trace, loop.turns
    outcome.struck, outcome.excused = show.world.struck, show.excuse
    return outcome


def _line(error: BaseException) -> str:
    kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
    return f"{kind}{error}"


log = logging.getLogger(__name__)


def main(first: int, last: int) -> int:
    if first == last:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    else:
        logging.disable(logging.CRITICAL)
    bad, struck, excused = 0, Counter[str](), Counter[str]()
    for seed in range(first, last + 1):
        outcome = play(seed)
        struck += outcome.struck
        excused[outcome.excused[:60]] += 1
        if outcome.fault:
            bad += 1
            print(f"seed {seed}: {outcome.fault[:300]}", flush=True)
        if first == last:
            print(outcome)
    print(f"{last - first + 1} schedules, {bad} violations; {dict(struck.most_common())}; ended by {dict(excused)}")
    return bad


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[-1]))))
