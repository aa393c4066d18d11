"""Actors of a schedule: real stage workers behind messages, in processes that die and stand still."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from schedule_models import Chance, Join
from schedule_world import Party, World

from riverrun.actors.checkpoints import Checkpoints, wait
from riverrun.actors.stage import StageWorker
from riverrun.graphs.stage import Packet, StageGone
from riverrun.models.synthetic import Synthetic
from riverrun.store.checkpoints import Engine
from riverrun.tests.durability.world import Ref, read


class Actor(Party):
    """One process with a worker a model, made when it is asked for."""

    def __init__(self, world: World, name: str, vault: Any):
        super().__init__(name)
        self.world, self.name, self._vault = world, name, vault
        self.incarnation = f"i{next(world.numbers)}"
        self.workers: dict[str, StageWorker] = {}

    def worker(self, model: str) -> StageWorker:
        if model not in self.workers:
            made = {"synthetic": Synthetic, "join": Join, "chance": partial(Chance, dice=self.world.dice)}[model]()
            keeps = Checkpoints(made, Engine(model=model), self._vault, Writer(self))
            self.workers[model] = StageWorker(
                made, self.incarnation, self.world.places, clock=self.world.clock.now, checkpoints=keeps
            )
        return self.workers[model]

    def die(self) -> None:
        """Who waits for it learns so; or, of a node that goes with all that could tell, does not."""
        self.lives, self.is_noticed = False, self.world.dice.random() < 0.7
        for letter in self.owed if self.is_noticed else ():
            self.world.loop.call_later(self.world.delay(), letter.set, None, self.gone("the process died"))

    def gone(self, why: str) -> Exception:
        return StageGone(f"{self.name} ({self.incarnation}): {why}")

    def compute(self, worker: StageWorker) -> None:
        """A batch, some time from now."""
        self.world.loop.call_later(self.world.dice.choice((0.0, 0.001, 0.02)), self._compute, worker)

    def _compute(self, worker: StageWorker) -> None:
        if self.frozen_until > self.world.loop._now:
            self.world.loop.call_at(self.frozen_until, self._compute, worker)
        elif self.lives:
            worker.run_once()

    def sessions(self) -> int:
        return sum(worker._table.totals().sessions for worker in self.workers.values())


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

    def __init__(self, world: World, gateway: Any, actor: Actor, stage: str, model: str):
        self.world, self.gateway, self.actor, self.stage = world, gateway, actor, stage
        self.worker = actor.worker(model)

    def _ask(self, what: str, work: Callable[[], Any]) -> Any:
        return self.world.ask(self.gateway, f"{what} {self.stage}", self.actor, work)

    def _key(self, session: str) -> str:
        return f"{session}/{self.stage}"

    def _named(self, opening: Any) -> Any:
        return replace(opening, session=self._key(opening.session))

    def _placed(self, request: Any) -> Any:
        return replace(request, opening=self._named(request.opening))

    async def open(self, request: Any) -> Any:
        return await self._ask("open", lambda: self.worker.open(self._named(request)))

    async def step(self, request: Any) -> Any:
        if request.seq < self.world.furthest[self.stage]:
            self.world.struck["step made again"] += 1
        self.world.furthest[self.stage] = max(self.world.furthest[self.stage], request.seq + 1)

        def work() -> Future:
            inputs = tuple(replace(chunk, data=read(chunk.data)) for chunk in request.inputs)
            future = self.worker.submit(replace(self._named(request), inputs=inputs))
            if future.done():
                self.world.struck["answered from what was kept"] += 1
            else:
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
        self.world.struck["attached to a State that lives"] += 1
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

        manifest = await self._ask("saved", work)
        self.world.struck["checkpoint with a step"] += 1
        return manifest

    async def save(self, session: str, epoch: Any, order: Any) -> Any:
        def work() -> Any:
            with self.worker._resting(self._key(session), epoch) as known:
                writing = self.worker.checkpoints.take(known, order)
            return _after(writing, lambda: wait(writing))

        manifest = await self._ask("save", work)
        self.world.struck["checkpoint between steps"] += 1
        return manifest

    async def export(self, session: str, epoch: Any) -> Any:
        return await self._ask("export", lambda: self.worker.export(self._key(session), epoch))

    async def prepare(self, request: Any) -> None:
        named = self._placed(request)
        await self._ask("prepare", lambda: self.worker.prepare(named))

    async def restore(self, request: Any) -> Any:
        named, source = self._placed(request), request.source
        reply = await self._ask("restore", lambda: self.worker.restore(named))
        kind = "another actor" if isinstance(source, Packet) else "a checkpoint" if source else "the beginning"
        self.world.struck[f"State from {kind}"] += 1
        return reply

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
