"""The parties of a schedule - actors, gateways, a store, a place for blobs - and the messages between them, every one
of which may be late, lost, or come twice.

What goes over a message is the real thing: `StageWorker` and `Checkpoints` at one end, `Runner` at the other.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from schedule_models import Chance, Join

from riverrun.actors.checkpoints import Checkpoints, wait
from riverrun.actors.stage import StageWorker
from riverrun.graphs.stage import InputLost, StageGone
from riverrun.graphs.waiting import within
from riverrun.models.base import Unavailable
from riverrun.models.synthetic import Synthetic
from riverrun.store.checkpoints import Engine, Manifest
from riverrun.store.memory import MemoryBlobs, MemoryStore
from riverrun.store.records import Placement, SessionRecord


@dataclass
class Weather:
    """lose, twice, slow: shares of messages. slow_s: how late a slow one is, at most."""

    lose: float = 0.0
    twice: float = 0.0
    slow: float = 0.0
    slow_s: float = 1.0


class World:
    """clock, loop: time. dice: for everything by chance. on_message: called with each message about to be sent.

    struck: faults by kind, as they happen.
    """

    def __init__(self, loop: Any, clock: Any, dice: random.Random, places: int):
        self.loop, self.clock, self.dice, self.places = loop, clock, dice, places
        self.weather = Weather()
        self.on_message: Callable[[str], None] = lambda what: None
        self.struck: Counter[str] = Counter()
        self.messages = 0
        self.trace = 0
        self.numbers = itertools.count(1)
        self.blobs = Disk(self)
        self.store = Redis(self)
        self.actors: dict[str, Actor] = {}
        self.lost_closes = 0

    def add(self, name: str) -> None:
        self.actors[name] = Actor(self, name)

    def kill(self, name: str, back_after: float | None) -> None:
        """The process dies. back_after: until another one is there under its name; None: never."""
        self.actors.pop(name).die()
        if back_after is not None:
            self.loop.call_later(back_after, self.add, name)

    def states(self) -> int:
        return sum(actor.sessions() for actor in self.actors.values())

    # ---- messages ----

    async def ask(self, sender: Gateway | None, what: str, receiver: Any, work: Callable[[], Any]) -> Any:
        """What `work` returns at the receiver, or raises there; a `Future` is waited for there.

        A message that is under way arrives, whatever becomes of its sender.
        """
        self.messages += 1
        self.trace = hash((self.trace, self.messages, round(self.loop.time(), 9), len(what), sum(map(ord, what))))
        self.on_message(what)
        if sender and not sender.lives:
            raise asyncio.CancelledError  # a dead process says nothing, and nothing goes on in it
        letter = Letter(self, sender, what, receiver, work, self.loop.create_future())
        letter.send()
        return await letter.answer

    def delay(self) -> float:
        if self.dice.random() < self.weather.slow:
            self.struck["slow message"] += 1
            return self.dice.random() * self.weather.slow_s
        return self.dice.choice((0.0, 0.001, 0.002, 0.01))


@dataclass
class Letter:
    """A request and its answer. receiver: has `lives` and `frozen_until`."""

    world: World
    sender: Gateway | None
    what: str
    receiver: Any
    work: Callable[[], Any]
    answer: asyncio.Future

    def send(self) -> None:
        world, weather = self.world, self.world.weather
        if world.dice.random() < weather.lose:
            self.lose("lost request")
            return
        self._later(self._arrive)
        if world.dice.random() < weather.twice:
            world.struck["request twice"] += 1
            again = replace(self, answer=world.loop.create_future())
            world.loop.call_later(world.delay() + world.dice.choice((0.0, 0.05, 3.0)), again._arrive)

    def lose(self, kind: str) -> None:
        """Nobody hears of it, or the sender hears at once that it did not get through."""
        world = self.world
        world.struck[kind] += 1
        if self.what.startswith("close"):
            world.lost_closes += 1
        if world.dice.random() < 0.5:
            world.loop.call_later(world.delay(), self._set, None, self.receiver.gone("the connection broke"))

    def _later(self, then: Callable[..., None], *args: Any) -> None:
        """When the message is through: after its own delay, and not while either end stands still."""
        world = self.world
        ends = [self.receiver.frozen_until, self.sender.frozen_until if self.sender else 0.0]
        world.loop.call_later(max(world.delay(), max(ends) - world.loop.time()), then, *args)

    def _arrive(self) -> None:
        if self.receiver.frozen_until > self.world.loop.time():
            return self._later(self._arrive)
        if not self.receiver.lives:
            if self.receiver.is_noticed:
                self._set(None, self.receiver.gone("the process died"))
            return
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001 - it is the answer
            return self._reply(None, error)
        if isinstance(result, Future):
            self.receiver.owed.append(self)
            result.add_done_callback(self._made)
        else:
            self._reply(result, None)

    def _made(self, future: Future) -> None:
        if not self.receiver.lives:
            return
        if self in self.receiver.owed:
            self.receiver.owed.remove(self)
        if error := future.exception():
            self._reply(None, error)
        else:
            self._reply(future.result(), None)

    def _reply(self, result: Any, error: BaseException | None) -> None:
        if self.world.dice.random() < self.world.weather.lose:
            self.lose("lost reply")
        else:
            self._later(self._set, result, error)

    def _set(self, result: Any, error: BaseException | None) -> None:
        if self.answer.done():
            return
        if error:
            self.answer.set_exception(error)
            self.answer.exception()  # asked for: its sender may have given up
        else:
            self.answer.set_result(result)

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(eq=False)
class Gateway:
    """A process of runners. tasks: all of its."""

    name: str
    lives: bool = True
    frozen_until: float = 0.0
    tasks: set = field(default_factory=set)
    runner: Any = None


@dataclass
class Ref:
    """Data that lives in the actor that made it."""

    owner: Actor
    array: np.ndarray


class Actor:
    """One process with a worker a model. is_noticed: that it is dead is known."""

    def __init__(self, world: World, name: str):
        self.world, self.name, self.lives, self.is_noticed = world, name, True, True
        self.frozen_until = 0.0
        self.owed: list[Letter] = []
        self.incarnation = f"i{next(world.numbers)}"
        models = {"synthetic": Synthetic(), "join": Join(), "chance": Chance(dice=world.dice)}
        self.workers = {model: self._worker(model, made) for model, made in models.items()}

    def _worker(self, name: str, model: Any) -> StageWorker:
        keeps = Checkpoints(model, Engine(model=name), self.world.blobs, Writer(self))
        return StageWorker(model, self.incarnation, self.world.places, checkpoints=keeps)

    def die(self) -> None:
        """Who waits for it learns so; or, of a node that goes with all that could tell, does not."""
        self.lives, self.is_noticed = False, self.world.dice.random() < 0.7
        for letter in self.owed if self.is_noticed else ():
            self.world.loop.call_later(self.world.delay(), letter._set, None, self.gone("the process died"))

    def gone(self, why: str) -> Exception:
        return StageGone(f"{self.name} ({self.incarnation}): {why}")

    def compute(self, worker: StageWorker) -> None:
        """A batch, some time from now."""
        self.world.loop.call_later(self.world.dice.choice((0.0, 0.001, 0.02)), self._compute, worker)

    def _compute(self, worker: StageWorker) -> None:
        if self.frozen_until > self.world.loop.time():
            self.world.loop.call_at(self.frozen_until, self._compute, worker)
        elif self.lives:
            worker.run_once()

    def sessions(self) -> int:
        return sum(worker.health().sessions for worker in self.workers.values())


class Writer(Executor):
    """Writes blobs a while after they were handed over, if its process lives then."""

    def __init__(self, actor: Actor):
        self.actor = actor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        world = self.actor.world
        world.loop.call_later(world.dice.choice((0.0, 0.005, 0.05, 0.5)), self._do, future, partial(fn, *args))
        return future

    def _do(self, future: Future, work: Callable[[], Any]) -> None:
        if not self.actor.lives:
            return
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            future.set_exception(error)


class Handle:
    """`StageHandle` of one stage on an actor, in the hands of a gateway."""

    def __init__(self, world: World, gateway: Gateway, actor: Actor, stage: str, model: str):
        self.world, self.gateway, self.actor, self.stage = world, gateway, actor, stage
        self.worker = actor.workers[model]

    async def _ask(self, what: str, work: Callable[[], Any]) -> Any:
        return await self.world.ask(self.gateway, f"{what} {self.stage}", self.actor, work)

    def _key(self, session: str) -> str:
        return f"{session}/{self.stage}"

    def _named(self, opening: Any) -> Any:
        return replace(opening, session=self._key(opening.session))

    async def open(self, request: Any) -> Any:
        return await self._ask("open", lambda: self.worker.open(self._named(request)))

    async def step(self, request: Any) -> Any:
        def work() -> Future:
            inputs = tuple(replace(chunk, data=_read(chunk.data)) for chunk in request.inputs)
            future = self.worker.submit(replace(self._named(request), inputs=inputs))
            self.actor.compute(self.worker)
            return future

        return self._lent(await self._ask("step", work))

    def _lent(self, reply: Any) -> Any:
        return replace(reply, chunks=tuple(replace(c, data=Ref(self.actor, c.data)) for c in reply.chunks))

    async def attach(self, session: str, epoch: Any) -> Any:
        key = self._key(session)

        def work() -> Any:
            job = self.worker._table.find(key, epoch).job
            if job is None:
                return self.worker.attach(key, epoch)
            return _after(job.future, lambda: self.worker.attach(key, epoch))

        reply = await self._ask("attach", work)
        return replace(reply, kept=tuple(self._lent(each) for each in reply.kept))

    async def close(self, session: str, epoch: Any, life: int | None = None) -> None:
        await self._ask("close", lambda: self.worker.close(self._key(session), epoch, life))

    async def saved(self, session: str, epoch: Any, seq: int) -> Any:
        key = self._key(session)

        def work() -> Any:
            self.worker._table.find(key, epoch)
            writing = self.worker.checkpoints._writing.get((key, seq))
            if writing is None:
                return self.worker.saved(key, epoch, seq)
            return _after(writing, lambda: wait(writing))

        return await self._ask("saved", work)

    async def save(self, session: str, epoch: Any, order: Any) -> Any:
        def work() -> Any:
            with self.worker._resting(self._key(session), epoch) as known:
                writing = self.worker.checkpoints.take(known, order)
            return _after(writing, lambda: wait(writing))

        return await self._ask("save", work)

    async def export(self, session: str, epoch: Any) -> Any:
        return await self._ask("export", lambda: self.worker.export(self._key(session), epoch))

    async def prepare(self, request: Any) -> None:
        named = replace(request, opening=self._named(request.opening))
        await self._ask("prepare", lambda: self.worker.prepare(named))

    async def restore(self, request: Any) -> Any:
        named = replace(request, opening=self._named(request.opening))
        return await self._ask("restore", lambda: self.worker.restore(named))

    async def fetch(self, data: Any) -> np.ndarray:
        if not isinstance(data, Ref):
            return data
        return await self.world.ask(self.gateway, f"fetch {self.stage}", data.owner, lambda: data.array)


def _after(first: Future, then: Callable[[], Any]) -> Future:
    """What `then` gives once `first` is done."""
    made: Future = Future()

    def go_on(_: Future) -> None:
        try:
            made.set_result(then())
        except Exception as error:  # noqa: BLE001 - it is the answer
            made.set_exception(error)

    first.add_done_callback(go_on)
    return made


def _read(data: Any) -> np.ndarray:
    if isinstance(data, Ref):
        if not data.owner.lives:
            raise InputLost("an input died with the actor that made it")
        return data.array
    return data


@dataclass
class Placer:
    """`Placer` for the runners of one gateway. models: by stage."""

    world: World
    gateway: Gateway
    models: dict[str, str]
    lives: bool = True
    frozen_until: float = 0.0
    is_noticed: bool = True
    owed: list = field(default_factory=list)

    def gone(self, why: str) -> Exception:
        return Unavailable(f"the controller does not answer: {why}")

    def handle(self, actor: Actor, stage: str) -> Handle:
        return Handle(self.world, self.gateway, actor, stage, self.models[stage])

    async def find(self, stage: str, placement: Placement) -> Handle | None:
        actor = self.world.actors.get(placement.actor)
        return self.handle(actor, stage) if actor and actor.incarnation == placement.incarnation else None

    async def place(self, stage: str, avoid: str = "", actor: str = "") -> tuple[Handle, Placement]:
        await asyncio.sleep(self.world.dice.choice((0.0, 0.001)))
        model = self.models[stage]
        free = [a for a in self.world.actors.values() if a.incarnation != avoid and (not actor or a.name == actor)]
        free = [a for a in free if a.workers[model].health().sessions < self.world.places]
        if not free:
            raise Unavailable("no actor has room")
        best = min(free, key=lambda a: (a.sessions(), a.name))
        return self.handle(best, stage), Placement(best.name, model, best.incarnation)


class Redis(MemoryStore):
    """The store behind messages; it may be away, lose its last writes, or all of them.

    kept: how it stood before each of the last writes. holders: (epoch, nonce) of each write that it knows of.
    """

    def __init__(self, world: World):
        super().__init__(now=world.clock.now)
        self.world, self.lives, self.is_noticed, self.frozen_until = world, True, True, 0.0
        self.away_until = 0.0
        self.owed: list[Letter] = []
        self.kept: deque = deque(maxlen=4)
        self.holders: list[tuple[int, str]] = []

    def gone(self, why: str) -> Exception:
        return Unavailable(f"redis: {why}")

    def fail_over(self, writes: int) -> None:
        """The last writes were not on the replica."""
        stood = None
        for _ in range(min(writes, len(self.kept))):
            stood = self.kept.pop()
        if stood:
            self._records, self._expiry, self.holders = dict(stood[0]), dict(stood[2]), list(stood[3])
            self._logs = {name: deque(lines) for name, lines in stood[1].items()}

    def empty(self) -> None:
        self._records, self._logs, self._expiry, self.holders = {}, {}, {}, []
        self.kept.clear()

    def note(self, record: SessionRecord) -> None:
        """A write was accepted. Raises AssertionError if somebody else holds the session."""
        if self.holders:
            last = self.holders[-1]
            mine = (record.epoch, record.nonce)
            assert mine == last or mine[0] > last[0], f"epoch {mine} wrote after {last} was granted"
        self.holders.append((record.epoch, record.nonce))

    def by(self, gateway: Gateway | None) -> View:
        return View(self, gateway)


WRITES = frozenset({"create", "update", "take", "log", "delete"})


class View:
    """The store as one gateway sees it."""

    def __init__(self, redis: Redis, gateway: Gateway | None):
        self._redis, self._gateway = redis, gateway

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._call, name)

    async def _call(self, name: str, *args: Any) -> Any:
        redis, world = self._redis, self._redis.world
        return await _soon(world, 4.0, world.ask(self._gateway, f"store.{name}", redis, partial(self._do, name, *args)))

    def _do(self, name: str, *args: Any) -> Any:
        redis = self._redis
        if redis.away_until > redis.world.loop.time():
            raise Unavailable("redis is away")
        stood = (dict(redis._records), {k: tuple(v) for k, v in redis._logs.items()}, dict(redis._expiry))
        stood = (*stood, tuple(redis.holders))
        result = _now(getattr(redis, name)(*args))
        if name in WRITES:
            redis.kept.append(stood)
            if name != "delete":
                redis.note(args[0] if name == "log" else result)
        return result


async def _soon(world: World, seconds: float, work: Any) -> Any:
    """Its result; Unavailable if that takes too long."""
    try:
        return await within(world.clock, seconds, work)
    except TimeoutError as error:
        raise Unavailable(f"no answer for {seconds:g} s") from error


def _now(work: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


class Disk(MemoryBlobs):
    """Where blobs lie. late: those that were written for a session after all of it was deleted."""

    def __init__(self, world: World):
        super().__init__()
        self.world, self.lives, self.is_noticed, self.frozen_until = world, True, True, 0.0
        self.owed: list[Letter] = []
        self.away_until = 0.0
        self.forgotten = False
        self.late: set[str] = set()
        self.deleted: set[str] = set()

    def gone(self, why: str) -> Exception:
        return Unavailable(f"blobs: {why}")

    def write(self, manifest: Manifest, tensors: Any) -> Manifest:
        self._must_be_here()
        placed = super().write(manifest, tensors)
        if self.forgotten:
            self.late.add(placed.path)
        return placed

    def read(self, manifest: Manifest) -> dict[str, np.ndarray]:
        self._must_be_here()
        return super().read(manifest)

    def _must_be_here(self) -> None:
        if self.away_until > self.world.loop.time():
            raise Unavailable("the blob store is away")

    def max_epoch(self, session: str) -> int:
        return max((m.epoch for m, _ in self._held.values()), default=0)

    def by(self, gateway: Gateway) -> Shelf:
        return Shelf(self, gateway)


class Shelf:
    """Blobs as one gateway sees them."""

    def __init__(self, disk: Disk, gateway: Gateway):
        self._disk, self._gateway = disk, gateway

    async def _ask(self, what: str, work: Callable[[], Any]) -> Any:
        def here() -> Any:
            self._disk._must_be_here()
            return work()

        world = self._disk.world
        return await _soon(world, 60.0, world.ask(self._gateway, f"blobs.{what}", self._disk, here))

    async def manifests(self, session: str) -> list[Manifest]:
        return await self._ask("manifests", lambda: _now(self._disk.manifests(session)))

    async def max_epoch(self, session: str) -> int:
        return await self._ask("max_epoch", lambda: self._disk.max_epoch(session))

    async def delete(self, manifest: Manifest) -> None:
        def work() -> None:
            self._disk.deleted.add(manifest.path)
            _now(MemoryBlobs.delete(self._disk, manifest))

        try:
            await self._ask("delete", work)
        except Unavailable:
            self._disk.world.struck["blobs left to the session's end"] += 1
            raise

    async def forget(self, session: str) -> None:
        def work() -> None:
            self._disk.forgotten = True
            self._disk.deleted.update(self._disk.paths)
            _now(MemoryBlobs.forget(self._disk, session))

        try:
            await self._ask("forget", work)
        except Unavailable:
            self._disk.world.struck["blobs left to the reaper"] += 1
            raise
