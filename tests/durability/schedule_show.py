"""One schedule: a session with everything around it, drawn from a seed, from its opening to its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from schedule_client import Viewer
from schedule_controller import Controller
from schedule_disk import Disk
from schedule_faults import draw_faults, draw_rivals, strike
from schedule_gateways import Gateway
from schedule_graphs import SEED, draw
from schedule_ledger import Violation, demand
from schedule_loop import LoopClock, VirtualLoop
from schedule_store import Redis
from schedule_world import World

from riverrun.actors.errors import NotFound
from riverrun.actors.host import SessionWish
from riverrun.configs import ServiceConfig
from riverrun.configs.durability import CheckpointConfig
from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.recovery import RecoveryConfig
from riverrun.graphs.runner import SessionEnded
from riverrun.models.base import Unavailable
from riverrun.store.records import SessionRecord, SessionState

CLEAR_S, END_S = 3_500.0, 5_000.0
"""By the schedule's clock: from the first on no message is lost any more, and by the second all must be over. Where 3 %
are lost for good, a stage that has fifty steps to make again begins them many times."""
GATEWAYS = 3
REAP_S = 100.0
LOOK_S = 1.0
"""After so long every gateway has seen that the store is another one."""
ASKED = 40
"""So often a client asks for a session that nobody knows, before it believes that."""


class Show:
    """session: its id, once it is created. current: the gateway that its client is at. excuses: what happened that no
    one is to blame for, each once. is_lost: the session ended by one of these, before its time. is_old: records are
    gone by now, as so much time has passed since its end."""

    def __init__(self, seed: int, loop: VirtualLoop, many_faults: int = 6):
        self.dice = dice = random.Random(seed)
        self.case = draw(dice)
        self.loop, self.clock = loop, LoopClock(loop)
        self.world = World(loop, self.clock, random.Random(seed + 1), places=dice.choice((2, 3, 8)))
        self.store, self.disk = Redis(self.world), Disk(self.world)
        self.controller = Controller(self.world, self.disk)
        self.config = RunnerConfig(
            edge_chunks=dice.choice((1, 2, 4)),
            ring_frames=dice.choice((4, 16)),
            idle_timeout_s=0.0,
            cadence=Cadence(dice.choice((1, 2, 3, 5, 9)), dice.choice((0.02, 10.0)), dice.choice((2, 6))),
            recovery=RecoveryConfig(tries=1000, pause_s=3.0),
            grace_s=dice.choice((15.0, 30.0)),
        )
        self.service = ServiceConfig(checkpoints=CheckpointConfig(grace_s=self.config.grace_s, orphan_s=90.0))
        self.session = self.token = ""
        self.gateways = [self._gateway(f"g{number}") for number in range(GATEWAYS)]
        self.current: Gateway = self.gateways[0]
        self.excuses: dict[str, None] = {}
        self.is_lost = self.is_old = False
        self.store.untold = lambda: [line for gateway in self.gateways for line in gateway.untold]
        self.viewer = Viewer(self, self.case, dice)
        self.faults = draw_faults(dice, many_faults)
        self.faults.add(draw_rivals(random.Random(seed + 2)))
        self.asked = 0
        self.broken: BaseException | None = None
        self.playing: asyncio.Task[None]

    async def play(self) -> None:
        """The whole life of the session. Raises Violation, Excused."""
        self.playing = asyncio.create_task(self._play())
        await asyncio.wait({self.playing})
        if self.broken:
            raise self.broken
        self.playing.result()

    async def _play(self) -> None:
        for number in range(self.dice.randint(2, 4)):
            self.controller.add(f"a{number}")
        await self._open()
        self.world.weather = self.faults.weather
        self.world.on_message = self._message
        reaping = asyncio.create_task(self._reap_often())
        clearing = self.loop.call_later(CLEAR_S, self._clear_up)
        try:
            async with asyncio.timeout(END_S):
                await self.viewer.live()
        except TimeoutError:
            raise Violation(f"not over after {END_S:g} s") from None
        reaping.cancel()
        clearing.cancel()
        self._calm()
        if self.viewer.over == "closed":
            self.viewer.check_whole()
        await self._settle()
        self._check_end()

    # ---- gateways ----

    def _gateway(self, name: str) -> Gateway:
        gateway = Gateway(name, self.world, lambda: self.session)
        gateway.join(self.store, self.disk, self.controller, self.case, self.service, self.config)
        return gateway

    def kill(self, gateway: Gateway) -> None:
        """Its process dies; another one will be there."""
        self.store.never_told(gateway.untold)
        gateway.die()
        self.gateways.append(self._gateway(f"g{len(self.gateways)}"))
        if gateway is self.current:
            self.viewer.cut(self.dice.choice((0.0, 0.01, 4.0)))

    def leave(self, gateway: Gateway) -> None:
        """The client goes to another gateway."""
        self.current = self.dice.choice([g for g in self.gateways if g.lives and g is not gateway])
        self.viewer.cut(0.0)

    def look_soon(self) -> None:
        """Something happened to the store: gateways see it."""
        for gateway in self.gateways:
            if gateway.lives:
                self.loop.call_later(LOOK_S, lambda g=gateway: g.lives and g.start(g.look()))

    async def _open(self) -> None:
        params = {f"{stage}.{name}": v for stage, each in self.case.params.items() for name, v in each.items()}
        wish = SessionWish(self.case.graph.name, params, SEED, "c1", 0.0, self.case.frames)
        for gateway in self.gateways:
            await gateway.start(gateway.look())
        hosted = await self.current.start(self.current.host.create(wish))
        self.session, self.token = hosted.runner.record.id, hosted.token

    async def reach(self, received: Mapping[str, int]) -> Gateway | None:
        """A gateway where the session runs: the one it was at, or another that takes it over. None: not now."""
        if not self.current.lives:
            self.current = self.dice.choice([g for g in self.gateways if g.lives])
        at, was = self.current, self.current.runner
        reaching = at.start(at.host.reach(self.session, self.token, received))
        await asyncio.wait({reaching})
        if reaching.cancelled():
            self.world.struck["take-over cut off"] += 1
            return None
        error = reaching.exception()
        if error is None:
            self.world.struck["taken over"] += at.runner is not was
            self.asked = 0
            return at
        if isinstance(error, NotFound) and self.store.record(self.session):
            self.viewer.away_s = 2.0  # its runner has told the store of it again meanwhile
        elif isinstance(error, SessionEnded | NotFound):
            self._over(self.store.record(self.session))
        elif isinstance(error, Unavailable):
            self.world.struck[f"not reached: {type(error).__name__}"] += 1
            self.viewer.away_s = self.dice.choice((0.3, 2.0, 5.0))
            if self.dice.random() < 0.3:
                self.leave(at)
        else:
            raise error
        return None

    def _over(self, record: SessionRecord | None) -> None:
        if record is None:
            is_lost = self.world.struck["redis emptied"] or self.world.struck["redis failed over"]
            demand(is_lost, "the record is gone, and the store has lost nothing")
            self.asked, self.viewer.away_s = self.asked + 1, 10.0
            if self.asked >= ASKED:  # whoever has it would have told the store
                demand(not self.disk.paths, "the record is gone, and could be read off the checkpoints")
                self.viewer.over, self.is_lost = "lost", True
                self.excused("the store lost its record before there was a checkpoint")
        elif record.state is SessionState.CLOSED:
            self.viewer.over = "closed"
        else:
            self.failed(record.reason)

    def failed(self, reason: str) -> None:
        """A gateway says that the session has failed."""
        if "taken over" not in reason and "another gateway" not in reason:
            raise Violation(f"the session failed: {reason}")

    # ---- while it runs ----

    def _message(self, what: str) -> None:
        """Faults strike, and books are looked into, when the task that sends it waits."""
        if self.world.messages % 16 == 0:
            self.loop.call_soon(self.guarded, self.check)
        while self.faults.due and self.faults.due[0].at <= self.world.messages:
            self.loop.call_soon(self.guarded, partial(strike, self, self.faults.due.pop(0)))

    def guarded(self, work: Callable[[], None]) -> None:
        """What it raises ends the schedule, and is nobody's in the session."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by `play`
            self.fail(error)

    def excused(self, why: str) -> None:
        self.excuses[why] = None

    def fail(self, error: BaseException) -> None:
        """Ends the schedule."""
        self.broken = self.broken or error
        self.playing.cancel()

    def check(self) -> None:
        """Raises where the books of somebody who lives do not add up."""
        for gateway in self.gateways:
            if gateway.lives:
                gateway.host.check()
        for actor in self.world.actors.values():
            for worker in actor.workers.values():
                worker.check()

    # ---- its end ----

    def _clear_up(self) -> None:
        self.world.weather = replace(self.world.weather, lose=0.0, twice=0.0, slow=0.0)

    def _calm(self) -> None:
        self._clear_up()
        self.faults.due.clear()
        self.world.on_message = lambda what: None

    async def _settle(self) -> None:
        """Whoever still runs - a gateway that lost the session and does not know it - has to find out; then what is
        left behind is reaped, as it would be after some minutes."""
        async with asyncio.timeout(3000):
            while any(gateway.runs for gateway in self.gateways):
                await asyncio.sleep(1.0)
                await self._leave_idle()
        await asyncio.sleep(300)
        self.check()
        for _ in range(2):  # the first time it may find that the store is another one, and wait
            await self._reap_after(100)
        record = self.store.record(self.session)
        if record and not record.state.ended:  # of its end the store was never told: that is forgotten in time
            self.is_old = True
            for _ in range(2):
                await self._reap_after(self.service.checkpoints.retention_s + 1.0)

    async def _leave_idle(self) -> None:
        """Ends the one runner that may still run for good: while the store was away, its client had the rest from the
        one before it, which did not know. Nobody comes to it any more; what ends it is its idle timeout, and that is
        not set here, since it would end those, too, that have to find out."""
        record = self.store.record(self.session)
        for gateway in self.gateways:
            runner = gateway.runner if gateway.runs else None
            mine = (runner.record.epoch, runner.record.nonce) if runner else None
            if runner and record and mine == (record.epoch, record.nonce) and self.world.struck["redis away"]:
                self.excused("its client had the rest from the runner before it, while the store was away")
                await asyncio.wait({gateway.start(runner.close("idle"))})

    async def _reap_after(self, seconds: float) -> None:
        """As some gateway does every now and then; those that live have said so meanwhile, every few seconds."""
        await asyncio.sleep(seconds)
        self.store.hear([g.name for g in self.gateways if g.lives and g.frozen_until <= self.loop._now], REAP_S)
        gateway = next(g for g in self.gateways if g.lives)
        await asyncio.wait({gateway.start(gateway.reap())})

    async def _reap_often(self) -> None:
        while True:
            await self._reap_after(REAP_S)

    def _check_end(self) -> None:
        left = {task.get_coro().__qualname__ for g in self.gateways for task in g.tasks if not task.done()}
        demand(not left, f"tasks are left: {sorted(left)}")
        gates = [gateway.host._gate for gateway in self.gateways if gateway.lives]
        demand(all(gate._free == gate._limit for gate in gates), "places of the gate are left taken")
        demand(not self.world.states(), f"{self.world.states()} states are left")
        if self.is_lost:
            return
        record = self.store.record(self.session)
        is_closed = record.state is SessionState.CLOSED if record else self.is_old
        demand(is_closed, f"the record says {record.state.value}" if record else "the record is gone")
        demand(not self.disk.paths, f"blobs are left: {sorted(self.disk.paths)}")
