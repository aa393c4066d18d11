"""What a gateway knows of the cluster: graphs and models by name, and the controller that finds places on actors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import ray

from riverrun.actors.controller import Catalogue
from riverrun.actors.decisions import Decision
from riverrun.actors.errors import NotFound
from riverrun.actors.handles import RayEncoderHandle, RayStageHandle, ask
from riverrun.actors.health import Resident
from riverrun.actors.member import MemberHealth, Place, PlaceWish
from riverrun.actors.orders import Orders
from riverrun.actors.sessions import Growing
from riverrun.graphs.graph import Graph
from riverrun.graphs.stage import EncoderHandle, Placer, StageHandle
from riverrun.models.base import ModelInfo
from riverrun.store.records import Placement

CONTROLLER = "the controller"
LOOK_S = 0.2
GROWING_S = 30.0
"""A new session waits so long for an actor that is being started for it."""


@dataclass(frozen=True)
class Placed:
    """Where a session of a graph may be opened, by stage. fields: names of each stage's parameters."""

    stages: Mapping[str, StageHandle]
    encoders: Mapping[str, EncoderHandle]
    placement: Mapping[str, Placement]
    fields: Mapping[str, frozenset[str]]


class Directory:
    """Graphs and models of this service. Every method may raise Unavailable when the controller is gone."""

    def __init__(self, controller: ray.actor.ActorHandle, catalogue: Catalogue) -> None:
        self._controller = controller
        self.graphs, self.models = catalogue.graphs, catalogue.models

    def graph(self, name: str) -> Graph:
        """Raises NotFound listing those there are."""
        if name not in self.graphs:
            raise NotFound(f"there is no graph {name!r}; there are {', '.join(sorted(self.graphs)) or 'none'}")
        return self.graphs[name]

    async def place(self, graph: Graph, session: str) -> Placed:
        """An actor with room for each stage. Where more actors are being started, it waits for one a while. Raises
        NoRoom, Unavailable, BadRequest (a model that is not there)."""
        names = [stage.name for stage in graph.stages]
        models, until = [stage.model for stage in graph.stages], time.monotonic() + GROWING_S
        while True:
            try:
                found = await ask(self._controller.place.remote(models, session, names), CONTROLLER)
                break
            except Growing:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(LOOK_S)
        places = dict(zip(names, found, strict=True))
        return Placed(
            stages={n: RayStageHandle(p.handle, _who(p), n, _fed_on(graph, n)) for n, p in places.items()},
            encoders=await self.encoders(graph),
            placement={name: Placement(p.actor, p.model, p.incarnation) for name, p in places.items()},
            fields={name: frozenset(param.name for param in p.info.params) for name, p in places.items()},
        )

    def settled(self, session: str) -> None:
        """A new session has opened where it was placed, or will not: nobody keeps its places free any longer. Does not
        wait; should it be lost, they are free again a moment later."""
        self._controller.settle.remote(session)

    def placer(self, graph: Graph, session: str = "") -> Placer:
        """Finds actors for the stages of a session after it was opened."""
        return SessionPlacer(self._controller, graph, session)

    async def cordon(self, target: str, seconds: float) -> list[str]:
        """See `Controller.cordon`."""
        return await ask(self._controller.cordon.remote(target, seconds), CONTROLLER)

    async def orders(self) -> Orders:
        """What sessions are to leave, and where they are to go."""
        return await ask(self._controller.orders.remote(), CONTROLLER)

    async def freeze(self, is_frozen: bool) -> None:
        """See `Controller.freeze`."""
        await ask(self._controller.freeze.remote(is_frozen), CONTROLLER)

    async def is_frozen(self) -> bool:
        return await ask(self._controller.is_frozen.remote(), CONTROLLER)

    async def why(self, session: str) -> list[Decision]:
        """The last decisions about a session."""
        return await ask(self._controller.why.remote(session), CONTROLLER)

    async def renew(self, actor: str, seconds: float) -> str:
        """See `Pool.renew`."""
        return await ask(self._controller.renew.remote(actor, seconds), CONTROLLER)

    async def emptied(self, actors: Collection[str], seconds: float) -> int:
        """Returns when no session is on these actors (names or incarnations), or after `seconds`; how many are left."""
        until = time.monotonic() + seconds
        while True:
            those = [each for each in await self.actors() if each.actor in actors or each.incarnation in actors]
            seen = [each.health for each in those if each.health]
            left = sum(health.sessions for health in seen)
            if not left or time.monotonic() >= until:
                return left
            await asyncio.sleep(LOOK_S)

    async def infos(self, timeout_s: float, start: Sequence[str] = ()) -> dict[str, ModelInfo | None]:
        """By model name; None for models that are not running."""
        return await ask(self._controller.infos.remote(timeout_s, list(start)), CONTROLLER)

    async def actors(self) -> list[MemberHealth]:
        """Every actor there is."""
        return await ask(self._controller.actors.remote(), CONTROLLER)

    async def wanted(self) -> dict[str, int]:
        """By model: for how many actors Ray's autoscaler is asked to have nodes."""
        return await ask(self._controller.wanted.remote(), CONTROLLER)

    async def residents(self) -> list[Resident]:
        """Whose States lie on the actors."""
        return await ask(self._controller.residents.remote(), CONTROLLER)

    async def evict(self, resident: Resident) -> None:
        """Frees a State. Raises StaleEpoch if somebody has taken it over since."""
        await ask(self._controller.evict.remote(resident), CONTROLLER)

    async def check(self) -> None:
        """Raises Corrupt if the books of an actor do not add up. For tests."""
        await ask(self._controller.check.remote(), CONTROLLER)

    async def encoders(self, graph: Graph) -> dict[str, EncoderHandle]:
        """The prompt encoder of each stage whose model wants one."""
        found: dict[str, EncoderHandle] = {}
        for stage in graph.stages:
            if stage.model in self.models and self.models[stage.model].encoder:
                place = await self._encoder(stage.model)
                found[stage.name] = RayEncoderHandle(place.handle, _who(place), partial(self._handle, stage.model))
        return found

    async def _encoder(self, model: str) -> Place:
        return await ask(self._controller.encoder.remote(model), CONTROLLER)

    async def _handle(self, model: str) -> ray.actor.ActorHandle:
        return (await self._encoder(model)).handle


class SessionPlacer:
    """`Placer` over the controller."""

    def __init__(self, controller: ray.actor.ActorHandle, graph: Graph, session: str) -> None:
        self._controller, self._graph, self._session = controller, graph, session

    async def find(self, stage: str, placement: Placement) -> StageHandle | None:
        model = self._graph.stage(stage).model
        call = self._controller.find.remote(model, placement.actor, placement.incarnation)
        place = await ask(call, CONTROLLER)
        return self._handle(place, stage) if place else None

    async def place(self, stage: str, avoid: str = "", actor: str = "") -> tuple[StageHandle, Placement]:
        model = self._graph.stage(stage).model
        wish = PlaceWish(avoid, actor, session=self._session, stage=stage)
        place = await ask(self._controller.place_one.remote(model, wish), CONTROLLER)
        return self._handle(place, stage), Placement(place.actor, place.model, place.incarnation)

    def _handle(self, place: Place, stage: str) -> StageHandle:
        return RayStageHandle(place.handle, _who(place), stage, _fed_on(self._graph, stage))


def _who(place: Place) -> str:
    return f"actor {place.actor} ({place.incarnation})"


def _fed_on(graph: Graph, stage: str) -> frozenset[str]:
    """The output ports of a stage that feed another one."""
    return frozenset(edge.source.port for edge in graph.edges if edge.source.stage == stage)
