"""Room under pressure: where none is found, sessions that were left alone are suspended for those that are wanted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import TypeVar

from riverrun.actors.quota import QuotaFull
from riverrun.actors.sessions import NoRoom
from riverrun.cluster.pressure import Resting, victim
from riverrun.graphs.graph import Graph
from riverrun.graphs.runner import Runner
from riverrun.graphs.stage import Placer, StageHandle
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.records import Placement

log = logging.getLogger(__name__)
MOST = 3
"""So many sessions are suspended for one, at most."""

RETRY_S = 5.0
"""When a suspended one may come back: others may have left by then."""

T = TypeVar("T")


class Pressure:
    """runners: those of this gateway. idle_s: see `checkpoints.pressure_idle_s`."""

    def __init__(self, runners: Callable[[], Iterator[Runner]], idle_s: float) -> None:
        self._runners, self._idle_s = runners, idle_s
        self._one = asyncio.Lock()

    async def make(self, attempt: Callable[[], Awaitable[T]], models: Collection[str], wanted: str = "") -> T:
        """What `attempt` gives, tried again each time a session on one of `models` has made room. wanted: the session
        it is for. Raises as `attempt`."""
        for _ in range(MOST):
            try:
                return await attempt()
            except QuotaFull:
                raise
            except NoRoom:
                if not await self._relieve(models, wanted):
                    raise
        return await attempt()

    async def _relieve(self, models: Collection[str], wanted: str) -> bool:
        """Whether a session was suspended; one at a time, so that two who look don't take the same."""
        async with self._one:
            runners = {runner.record.id: runner for runner in self._runners() if runner.record.id != wanted}
            chosen = victim(map(_resting, runners.values()), models, self._idle_s)
            if chosen is None:
                return False
            runner = runners[chosen]
            log.warning("session %s is suspended: its place is needed", chosen, extra=runner.record.about)
            try:
                await runner.suspend("its place was needed while nobody was connected", RETRY_S)
            except (BadRequest, Unavailable, Corrupt) as error:
                log.warning("session %s was not suspended: %s", chosen, error, extra=runner.record.about)
                return False
            return True


def _resting(runner: Runner) -> Resting:
    models = frozenset(placement.model for placement in runner.record.placement.values())
    return Resting(runner.record.id, models, runner.alone_s)


class PressingPlacer:
    """A `Placer` for one session that has others make room where there is none."""

    def __init__(self, inner: Placer, pressure: Pressure, session: str, graph: Graph) -> None:
        self._inner, self._pressure, self._session, self._graph = inner, pressure, session, graph

    async def find(self, stage: str, placement: Placement) -> StageHandle | None:
        return await self._inner.find(stage, placement)

    async def place(self, stage: str, avoid: str = "", actor: str = "") -> tuple[StageHandle, Placement]:
        async def attempt() -> tuple[StageHandle, Placement]:
            return await self._inner.place(stage, avoid, actor)

        return await self._pressure.make(attempt, [self._graph.stage(stage).model], self._session)
