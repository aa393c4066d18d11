"""The controller of a schedule: who knows the actors, finds places on them, and can free what lies there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from schedule_actors import Actor, Handle
from schedule_world import Party, World

from riverrun.actors.health import Resident
from riverrun.actors.sessions import NoRoom
from riverrun.models.base import BadRequest
from riverrun.store.records import Placement


class Controller(Party):
    """Who knows the actors. vault: where they keep checkpoints. A call to it that is lost is known to be."""

    tells = True

    def __init__(self, world: World, vault: Any):
        super().__init__("the controller")
        self.world, self._vault = world, vault

    def add(self, name: str) -> None:
        self.world.actors[name] = Actor(self.world, name, self._vault)

    def kill(self, name: str, back_after: float) -> None:
        """The process dies; another one is there under its name after so many seconds."""
        self.world.actors.pop(name).die()
        self.world.loop.call_later(back_after, self.add, name)

    def residents(self) -> list[Resident]:
        """Whose States lie on the actors."""
        return [
            replace(each, model=model, actor=actor.name, incarnation=actor.incarnation)
            for actor in self.world.actors.values()
            for model, worker in actor.workers.items()
            for each in worker.residents()
        ]

    def evict(self, resident: Resident) -> None:
        actor = self.world.actors.get(resident.actor)
        if actor and actor.incarnation == resident.incarnation:
            actor.worker(resident.model).close(f"{resident.session}/{resident.stage}", resident.epoch)

    def find(self, placement: Placement) -> Actor | None:
        actor = self.world.actors.get(placement.actor)
        return actor if actor and actor.incarnation == placement.incarnation else None

    def place(self, model: str, avoid: str, name: str) -> Actor:
        if name and name not in self.world.actors:
            raise BadRequest(f"there is no actor {name}")
        free = [a for a in self.world.actors.values() if a.incarnation != avoid and name in ("", a.name)]
        free = [a for a in free if a.worker(model)._table.totals().sessions < self.world.places]
        if not free:
            raise NoRoom("no actor has room")
        return min(free, key=lambda a: (a.sessions(), a.name))


@dataclass
class Placer:
    """`Placer` for the runners of one gateway. models: by stage."""

    world: World
    controller: Controller
    gateway: Any
    models: dict[str, str]

    async def find(self, stage: str, placement: Placement) -> Handle | None:
        actor = await self._ask("find", lambda: self.controller.find(placement))
        return self._handle(actor, stage) if actor else None

    async def place(self, stage: str, avoid: str = "", actor: str = "") -> tuple[Handle, Placement]:
        model = self.models[stage]
        found = await self._ask("place", lambda: self.controller.place(model, avoid, actor))
        return self._handle(found, stage), Placement(found.name, model, found.incarnation)

    def _handle(self, actor: Actor, stage: str) -> Handle:
        return Handle(self.world, self.gateway, actor, stage, self.models[stage])

    async def _ask(self, what: str, work: Callable[[], Any]) -> Any:
        return await self.world.ask(self.gateway, what, self.controller, work)
