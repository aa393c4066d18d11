"""Gateways over the world of this folder: real hosts, runners and stage workers, found through a fake directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from riverrun.actors.directory import Placed
from riverrun.actors.errors import NotFound
from riverrun.actors.health import Resident
from riverrun.actors.host import SessionHost
from riverrun.actors.sessions import NoRoom
from riverrun.configs import ServiceConfig
from riverrun.configs.durability import CheckpointConfig
from riverrun.graphs.graph import Graph
from riverrun.store.records import Placement


class Directory:
    """`actors.directory.Directory` over a `World`: one model a stage, called as its graph says."""

    def __init__(self, world: Any, graphs: Mapping[str, Graph], fields: frozenset[str]) -> None:
        self._world, self._graphs, self._fields = world, graphs, fields

    def graph(self, name: str) -> Graph:
        if name not in self._graphs:
            raise NotFound(f"there is no graph {name!r}")
        return self._graphs[name]

    def settled(self, session: str) -> None:
        """It keeps no places for those that are coming."""

    def placer(self, graph: Graph, session: str = "") -> Directory:
        return self

    async def find(self, stage: str, placement: Placement) -> Any:
        return await self._world.find(stage, placement)

    async def place_one(self, stage: str, avoid: str = "", actor: str = "") -> tuple[Any, Placement]:
        places = self._world.places
        fit = [a for a in self._world.actors.values() if a.incarnation != avoid and actor in ("", a.name)]
        free = [a for a in fit if a.worker.health().sessions < places]
        if not free:
            raise NoRoom("all places are taken")
        best = min(free, key=lambda a: (a.worker.health().sessions, a.name))
        handle, placement = await self._world.place(stage, actor=best.name)
        return handle, replace(placement, model="m")

    async def place(self, what: Any, avoid: str = "", actor: str = "") -> Any:
        """Both the directory's, of a graph, and the placer's, of a stage."""
        if isinstance(what, str):
            return await self.place_one(what, avoid, actor)
        found = {stage.name: await self.place_one(stage.name) for stage in what.stages}
        return Placed(
            stages={n: handle for n, (handle, _) in found.items()},
            encoders={},
            placement={n: placement for n, (_, placement) in found.items()},
            fields=dict.fromkeys(found, self._fields),
        )

    async def encoders(self, graph: Graph) -> dict[str, Any]:
        return {}

    async def residents(self) -> list[Resident]:
        return [
            replace(r, model="m", actor=a.name, incarnation=a.incarnation)
            for a in self._world.actors.values()
            for r in a.worker.residents()
        ]

    async def evict(self, resident: Resident) -> None:
        actor = self._world.actors[resident.actor]
        if actor.incarnation == resident.incarnation:
            actor.worker.close(f"{resident.session}/{resident.stage}", resident.epoch)


FIELDS = frozenset({"prompt", "height", "width", "state_bytes", "takes", "chunk_frames"})


def host_on(world: Any, graphs: Mapping[str, Graph], name: str = "g1", store: Any = None, **keep: Any) -> SessionHost:
    """A gateway. keep: of its `CheckpointConfig`; `service` holds what goes to the `ServiceConfig` beside."""
    service = keep.pop("service", {})
    config = ServiceConfig(checkpoints=CheckpointConfig(**({"chunks": 3} | keep)), **service)
    directory: Any = Directory(world, graphs, FIELDS)
    return SessionHost(directory, store or world.store, world.clock, config, name, vault=world.blobs)
