"""Actors, gateways and a store that can die, in one event loop: the real runner, stage workers and checkpoint code
between fakes of what is outside (Ray, Redis, disk, time).

Every message between parties goes through `World.hop`, where a test (or a seeded schedule) delays it, loses it, or
kills somebody.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riverrun.actors.checkpoints import Checkpoints
from riverrun.actors.stage import StageWorker
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import ConsumerSpec, PortWish, Role
from riverrun.graphs.durability import Durability
from riverrun.graphs.gate import Gate
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Event, Frame, InputAck
from riverrun.graphs.runner import Runner
from riverrun.graphs.stage import ActorDied, InputLost
from riverrun.models.base import Unavailable
from riverrun.models.synthetic import Synthetic
from riverrun.store.checkpoints import Engine
from riverrun.store.memory import MemoryBlobs, MemoryStore
from riverrun.store.records import ANY, ControlEntry, Placement, SessionRecord

CHAIN = Graph(
    "chain",
    (StageSpec("a", "m"), StageSpec("b", "m")),
    {"frames": Endpoint("b", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")),),
)


class Encoder:
    """Knows what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def encode(self, text: str) -> np.ndarray:
        self.asked.append(text)
        return np.full(2, len(text), np.float32)


class AtOnce(Executor):
    """Does what it is given, where it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            future.set_exception(error)
        return future


@dataclass
class Ref:
    """Data that lives in the actor that made it."""

    owner: Actor
    array: np.ndarray


class Actor:
    """One process of stages. lives: it has not been killed."""

    numbers = itertools.count()

    def __init__(self, world: World, name: str, places: int):
        self.world, self.name, self.lives = world, name, True
        self.incarnation = f"i{next(Actor.numbers)}"
        model = Synthetic()
        checkpoints = Checkpoints(model, Engine(model="synthetic"), world.blobs, AtOnce())
        self.worker = StageWorker(model, self.incarnation, places, checkpoints=checkpoints, clock=world.clock.now)

    async def call(self, work: Callable[[], Any]) -> Any:
        """A message there and one back."""
        await self.world.hop(f"to {self.name}")
        self.must_live()
        result = work()
        if isinstance(result, Future):
            while not result.done():
                self.must_live()
                if self.worker.run_once() is None:
                    break
                await asyncio.sleep(0)
            result = result.result()
        await self.world.hop(f"from {self.name}")
        self.must_live()
        return result

    def must_live(self) -> None:
        if not self.lives:
            raise ActorDied(f"actor {self.name} ({self.incarnation}) died")


class Handle:
    """`StageHandle` of one stage on an actor."""

    def __init__(self, actor: Actor, stage: str):
        self.actor, self.stage = actor, stage

    def _key(self, session: str) -> str:
        return f"{session}/{self.stage}"

    def _named(self, opening: Any) -> Any:
        return replace(opening, session=self._key(opening.session))

    async def open(self, request: Any) -> Any:
        return await self.actor.call(lambda: self.actor.worker.open(self._named(request)))

    async def step(self, request: Any) -> Any:
        def work() -> Any:
            inputs = tuple(replace(chunk, data=read(chunk.data)) for chunk in request.inputs)
            return self.actor.worker.submit(replace(self._named(request), inputs=inputs))

        reply = await self.actor.call(work)
        return self._lent(reply)

    def _lent(self, reply: Any) -> Any:
        return replace(reply, chunks=tuple(replace(c, data=Ref(self.actor, c.data)) for c in reply.chunks))

    async def attach(self, session: str, epoch: Any) -> Any:
        reply = await self.actor.call(lambda: self.actor.worker.attach(self._key(session), epoch))
        return replace(reply, kept=tuple(self._lent(each) for each in reply.kept))

    async def close(self, session: str, epoch: Any, life: int | None = None) -> None:
        await self.actor.call(lambda: self.actor.worker.close(self._key(session), epoch, life))

    async def saved(self, session: str, epoch: Any, seq: int) -> Any:
        return await self.actor.call(lambda: self.actor.worker.saved(self._key(session), epoch, seq))

    async def save(self, session: str, epoch: Any, order: Any) -> Any:
        return await self.actor.call(lambda: self.actor.worker.save(self._key(session), epoch, order))

    async def export(self, session: str, epoch: Any) -> Any:
        return await self.actor.call(lambda: self.actor.worker.export(self._key(session), epoch))

    async def prepare(self, request: Any) -> None:
        named = replace(request, opening=self._named(request.opening))
        await self.actor.call(lambda: self.actor.worker.prepare(named))

    async def restore(self, request: Any) -> Any:
        named = replace(request, opening=self._named(request.opening))
        return await self.actor.call(lambda: self.actor.worker.restore(named))

    async def fetch(self, data: Any) -> np.ndarray:
        await asyncio.sleep(0)
        if isinstance(data, Ref):
            data.owner.must_live()
            return data.array
        return data


def read(data: Any) -> np.ndarray:
    """Raises InputLost where it died with its owner."""
    if isinstance(data, Ref):
        if not data.owner.lives:
            raise InputLost("an input died with the actor that made it")
        return data.array
    return data


class Logging(MemoryStore):
    """Knows every line that was ever logged."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.logged: list[ControlEntry] = []

    async def log(self, record: SessionRecord, entry: ControlEntry, has: int = ANY) -> None:
        await super().log(record, entry, has)
        self.logged.append(entry)


class World:
    """actors: by name. hop: called for every message; a schedule puts its own there."""

    def __init__(self, clock: Any, actors: int = 3, places: int = 8):
        self.clock = clock
        self.blobs = MemoryBlobs(clock.now)
        self.store = Logging(now=clock.now)
        self.actors = {f"a{n}": Actor(self, f"a{n}", places) for n in range(actors)}
        self.gate = Gate(2)
        self.places = places
        self.runners: list[Runner] = []
        self.epochs = itertools.count(2)

    async def hop(self, what: str) -> None:
        await asyncio.sleep(0)

    def kill(self, name: str) -> None:
        """The process dies; the controller starts another one under this name."""
        self.actors[name].lives = False
        self.actors[name] = Actor(self, name, self.places)

    # ---- the placer ----

    async def find(self, stage: str, placement: Placement) -> Handle | None:
        actor = self.actors.get(placement.actor)
        return Handle(actor, stage) if actor and actor.incarnation == placement.incarnation else None

    async def place(self, stage: str, avoid: str = "", actor: str = "") -> tuple[Handle, Placement]:
        free = [a for a in self.actors.values() if a.incarnation != avoid and (not actor or a.name == actor)]
        if not free:
            raise Unavailable("no actor is free")
        best = min(free, key=lambda a: (a.worker.health().sessions, a.name))
        return Handle(best, stage), Placement(best.name, "synthetic", best.incarnation)

    # ---- gateways ----

    async def open(
        self, graph: Graph, config: RunnerConfig, script: Any = (), encoders: Any = None, **options: Any
    ) -> Runner:
        record = SessionRecord("s1", graph.name, nonce="n1", gateway="g1", created=1000.0, **options)
        stored = await self.store.create(record)
        placed = {n: await self.place(n, actor=a) for n, a in zip(graph.order(), itertools.cycle(self.actors))}
        record = replace(stored, placement={name: p for name, (_, p) in placed.items()})
        handles = {name: h for name, (h, _) in placed.items()}
        outside = (encoders or {}, self.store, self.clock, config)
        runner = Runner(record, graph, handles, *outside, durability=self.durability(), script=script)
        self.runners.append(runner)
        await runner.open()
        return runner

    async def take_over(
        self,
        graph: Graph,
        config: RunnerConfig,
        received: Mapping[str, int] | None = None,
        session: str = "s1",
        encoders: Any = None,
    ) -> Runner:
        """Another gateway goes on with the session."""
        stored = await self.store.get(session)
        assert stored is not None
        epoch = max(next(self.epochs), stored.epoch + 1)
        record = await self.store.take(session, stored.version, epoch, f"n{epoch}")
        outside = (encoders or {}, self.store, self.clock, config)
        runner = Runner(record, graph, {}, *outside, durability=self.durability())
        self.runners.append(runner)
        await runner.resume(received)
        return runner

    def durability(self) -> Durability:
        return Durability(self, self.blobs, self.gate)

    async def crash(self, runner: Runner) -> None:
        """The gateway dies: nothing is closed or written any more."""
        main, flow = runner._main, runner._flow
        tasks = [t for t in (main, *(flow._tasks if flow else ())) if t]
        runner._free = _nothing  # type: ignore[method-assign,assignment]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def states(self) -> int:
        """States held by actors that live."""
        return sum(actor.worker.health().sessions for actor in self.actors.values())


async def _nothing(*_: Any) -> None:
    pass


class Client:
    """A controller that counts what it is given, whichever gateway that comes from."""

    def __init__(self, port: str = "frames", credits: int = 8):
        self.port, self.credits = port, credits
        self.frames: list[Frame] = []
        self.events: list[Event] = []
        self.acked_input = -1

    @property
    def numbers(self) -> list[int]:
        return [frame.number for frame in self.frames]

    @property
    def pixels(self) -> list[bytes]:
        return [np.ascontiguousarray(frame.array).tobytes() for frame in self.frames]

    def wish(self) -> ConsumerSpec:
        last = self.frames[-1].number if self.frames else None
        return ConsumerSpec(Role.CONTROLLER, (PortWish(self.port, self.credits, last),))

    async def read(self, runner: Runner, frames: int = 10**9, ack: bool = True) -> None:
        """Reads until it has so many frames in all, or the session ends."""
        consumer = runner.attach(self.wish())
        try:
            while len(self.frames) < frames:
                item = await consumer.next()
                if item is None:
                    return
                if isinstance(item, Frame):
                    self.frames.append(item)
                    consumer.credit(item.port, 1)
                    if ack:
                        consumer.ack(item.port, item.number)
                elif isinstance(item, InputAck):
                    self.acked_input = item.frame
                elif isinstance(item, Event):
                    self.events.append(item)
        finally:
            consumer.close()
