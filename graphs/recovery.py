"""Brings a stage of a session back after its actor died, hung, or lost its State: placed anew, restored, rewound.

The newest checkpoint that can be used is tried first; a damaged one costs a longer replay from the one before. What
comes out again is compared by number alone, so a viewer never sees it twice (see `driver`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from riverrun.graphs.driver import StageDriver
from riverrun.graphs.gate import Gate
from riverrun.graphs.graph import Graph
from riverrun.graphs.items import Event, EventType
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.opening import answer, let_go, opening
from riverrun.graphs.saver import Saver
from riverrun.graphs.stage import (
    DiedWith,
    EncoderHandle,
    Epoch,
    Lost,
    Mismatch,
    OpenRequest,
    Placer,
    RestoreReply,
    RestoreRequest,
    StageHandle,
    StepFailed,
)
from riverrun.graphs.waiting import Clock
from riverrun.models.base import Corrupt, Unavailable
from riverrun.store.checkpoints import Manifest
from riverrun.store.records import Placement

log = logging.getLogger(__name__)  # told errors as text: one kept for its line would keep the session with it


@dataclass(frozen=True)
class RecoveryConfig:
    """tries: of one step, before its session ends. patience_s: for so long a place is looked for; then the session is
    suspended. restore_s: a restore may take so long. pause_s: between two looks for a place."""

    tries: int = 2
    patience_s: float = 60.0
    restore_s: float = 120.0
    pause_s: float = 0.5


class NoPlace(Unavailable):
    """No actor could take the stage in time; the session is suspended."""


@dataclass
class Recovery:
    """tell: an event to everybody who reads. slack_s: media that the viewer still has. leave_behind: runs what frees
    something on another actor, to its end."""

    graph: Graph
    keeper: RecordKeeper
    epoch: Epoch
    placer: Placer
    encoders: Mapping[str, EncoderHandle]
    saver: Saver
    clock: Clock
    gate: Gate
    config: RecoveryConfig
    encode_s: float
    tell: Callable[[Event], None]
    slack_s: Callable[[], float]
    leave_behind: Callable[[Coroutine[Any, Any, None]], None]
    _failed: dict[tuple[str, int], int] = field(default_factory=dict)

    async def bring_back(self, driver: StageDriver, fault: Exception) -> None:
        """Returns when the stage stands again. Raises `fault` when its step was tried often enough, NoPlace, Corrupt
        (what it needs is gone)."""
        self._count(driver, fault)
        session = self.keeper.record.id
        log.warning("session %s: stage %s is brought back: %s", session, driver.name, str(fault))
        self.tell(Event(EventType.RECOVERING, f"stage {driver.name}: {fault}"))
        lost, before, left = driver.handle, driver.life, self.keeper.record.placement.get(driver.name)
        async with self.gate.enter(self.slack_s()):
            handle, reply, placement = await self._restore(driver, isinstance(fault, StepFailed))
        self.saver.begins_again(driver.name, reply.mark.seq)
        placements = {**self.keeper.record.placement, driver.name: placement}
        await self.keeper.commit(placement=placements, **self.saver.listed())
        driver.rewind(handle, reply.mark)
        if left and left.incarnation != placement.incarnation:
            self.leave(lost, before)
        log.warning("session %s: stage %s goes on at step %d on %s", session, driver.name, reply.mark.seq, placement)
        self.tell(Event(EventType.RECOVERED, f"stage {driver.name} goes on"))

    def _count(self, driver: StageDriver, fault: Exception) -> None:
        """One step is tried so often; what counts is the step that failed, not the ones made again on the way."""
        if isinstance(fault, DiedWith):
            return
        at = (driver.name, driver.next_seq)
        self._failed = {k: v for k, v in self._failed.items() if k[0] != driver.name or k == at}
        self._failed[at] = self._failed.get(at, 0) + 1
        if self._failed[at] > self.config.tries - isinstance(fault, StepFailed):
            raise fault

    async def _restore(self, driver: StageDriver, may_stay: bool) -> tuple[StageHandle, RestoreReply, Placement]:
        until = self.clock.now() + self.config.patience_s
        while True:
            try:
                return await self._try(driver, may_stay)
            except Unavailable as error:
                if self.clock.now() >= until:
                    raise NoPlace(f"stage {driver.name!r} finds no place: {error}") from error
                await self.clock.sleep(self.config.pause_s)

    async def _try(self, driver: StageDriver, may_stay: bool) -> tuple[StageHandle, RestoreReply, Placement]:
        name, old = driver.name, self.keeper.record.placement.get(driver.name)
        handle, placement = await self.placer.place(name, "" if may_stay or old is None else old.incarnation)
        opening = await self.opening(name)
        for source in self._sources(driver):
            driver.life += 1
            work = handle.restore(RestoreRequest(opening, driver.life, source))
            try:
                reply = await answer(self.clock, self.config.restore_s, work, f"stage {name!r}, to be restored,")
            except Corrupt as error:
                if source is None or isinstance(error, Mismatch):
                    raise
                log.error("session %s: checkpoint %s can't be used: %s", opening.session, source.path, str(error))
                self.saver.book(name).drop(source)
                continue
            except (Unavailable, asyncio.CancelledError):
                self.leave(handle, driver.life)  # it may have done it, or do so yet
                raise
            return handle, reply, replace(placement, incarnation=reply.incarnation)
        first = driver.next_on_first_port[1]
        raise Lost(
            f"stage {name!r} is lost: no checkpoint can be used, and what it was given is gone;"
            f" the first of its frames that was not made yet is {first}"
        )

    def _sources(self, driver: StageDriver) -> list[Manifest | None]:
        """Checkpoints to try, newest first; at last the beginning, where all that was taken in is still there."""
        known: list[Manifest | None] = [
            m
            for m in self.saver.book(driver.name).usable(driver.acked)
            if m.mark.seq >= driver.log.base
            and all(edge.base <= m.mark.consumed.get(port, 0) for port, edge in driver.inputs.items())
        ]
        is_whole = not driver.log.base and all(edge.base == 0 for edge in driver.inputs.values())
        return [*known, None] if is_whole else known

    async def opening(self, stage: str) -> OpenRequest:
        """As the stage was opened at first."""
        return await opening(
            self.keeper.record, self.epoch, self.graph, stage, self.encoders, self.clock, self.encode_s
        )

    def leave(self, handle: StageHandle, life: int | None = None) -> None:
        """As `let_go`, in the background."""
        work = let_go(self.clock, self.config.restore_s, handle, self.keeper.record.id, self.epoch, life)
        self.leave_behind(work)
