"""Gateways of a schedule: the real host of sessions, with what it knows of the cluster behind messages."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from schedule_controller import Controller, Placer
from schedule_disk import Disk
from schedule_loop import PROCESS
from schedule_store import Redis
from schedule_world import World

from riverrun.actors.directory import Placed
from riverrun.actors.health import Resident
from riverrun.actors.host import SessionHost
from riverrun.actors.reaper import Reaper
from riverrun.configs import ServiceConfig
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Graph
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.runner import Runner
from riverrun.models.base import Unavailable
from riverrun.store.records import ControlEntry

FIELDS = frozenset({"prompt", "height", "width", "state_bytes", "takes", "chunk_frames", "batch"})


class Directory:
    """`actors.directory.Directory` for a gateway. models: by stage."""

    def __init__(self, world: World, controller: Controller, gateway: Gateway, graph: Graph, models: Mapping[str, str]):
        self._world, self._controller, self._gateway = world, controller, gateway
        self._graph, self._models = graph, dict(models)

    def graph(self, name: str) -> Graph:
        return self._graph

    def settled(self, session: str) -> None:
        """It keeps no places for those that are coming."""

    def placer(self, graph: Graph, session: str = "") -> Placer:
        return Placer(self._world, self._controller, self._gateway, self._models)

    async def place(self, graph: Graph, session: str = "") -> Placed:
        """As far from each other as they can be, so that many a party can die."""
        placer, found, used = self.placer(graph), {}, set[str]()
        for name in graph.order():
            free = [actor for actor in self._world.actors if actor not in used]
            found[name] = await placer.place(name, actor=free[0] if free else "")
            used.add(found[name][1].actor)
        return Placed(
            stages={name: handle for name, (handle, _) in found.items()},
            encoders={},
            placement={name: at for name, (_, at) in found.items()},
            fields=dict.fromkeys(found, FIELDS),
        )

    async def encoders(self, graph: Graph) -> dict[str, Any]:
        return {}

    async def residents(self) -> list[Resident]:
        return await self._ask("residents", self._controller.residents)

    async def evict(self, resident: Resident) -> None:
        await self._ask("evict", lambda: self._controller.evict(resident))

    async def _ask(self, what: str, work: Callable[[], Any]) -> Any:
        return await self._world.ask(self._gateway, what, self._controller, work)


class Host(SessionHost):
    """runs_by: settings of its runners. keepers: of all of these, so far."""

    runs_by: RunnerConfig
    keepers: list[RecordKeeper]

    def _runner(self, *args: Any) -> Runner:
        runner = super()._runner(*args)
        runner._config = self.runs_by
        self.keepers.append(runner._keeper)
        return runner


class Gateway:
    """A process of runners. tasks: all of its. busy: set while it takes part in what a client waits for."""

    def __init__(self, name: str, world: World, session: Callable[[], str]):
        self.name, self._world, self._session = name, world, session
        self.lives, self.frozen_until = True, 0.0
        self.tasks: set[asyncio.Task] = set()
        self.host: Host

    def join(
        self, store: Redis, disk: Disk, controller: Controller, case: Any, config: ServiceConfig, runs_by: RunnerConfig
    ) -> None:
        directory: Any = Directory(self._world, controller, self, case.graph, case.models)
        self.vault: Any = disk.by(self)
        self.host = Host(directory, store.by(self), self._world.clock, config, self.name, vault=self.vault)
        self.host.runs_by, self.host.keepers = runs_by, []
        self.reaper = Reaper(self.host, self.vault, config.checkpoints)

    @property
    def runner(self) -> Runner | None:
        """Of the session, while it is known here."""
        hosted = self.host.find(self._session()) if self.lives else None
        return hosted.runner if hosted else None

    @property
    def runs(self) -> bool:
        return bool(self.runner and self.runner.state.runs)

    @property
    def untold(self) -> list[ControlEntry]:
        """Lines of the session's log that wait here, as the store is away; some that it has may be among them. Those of
        a runner that has ended may wait, too."""
        away = [keeper for keeper in self.host.keepers if self.lives and keeper._away]
        return [line for keeper in away for line in (*keeper._folded.values(), *keeper._unwritten)]

    def knows(self, line: ControlEntry) -> bool:
        """Whether the session's runner here can tell a line of its log again; one that takes over reads it first."""
        keeper = self.runner._keeper if self.runner else None
        return bool(keeper and line in (*keeper._folded.values(), *keeper._lines))

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """Runs it in this process."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        return context.run(self._world.loop.create_task, work)

    def die(self) -> None:
        self.lives = False
        for task in list(self.tasks):
            task.cancel()

    async def look(self) -> None:
        """As every few seconds: which store answers, and that this gateway lives."""
        with contextlib.suppress(Unavailable):
            await self.host.grants.look()
            await self.host.store.heartbeat(self.name, "here", 30.0)

    async def reap(self) -> None:
        """Everything once that is left behind."""
        with contextlib.suppress(Unavailable):
            await self.reaper.round()
