"""Checkpoints of one session: ordered with steps, noted in the record when durable, deleted when nobody needs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from riverrun.graphs.checkpoints import COPIES, Cadence, CheckpointBook
from riverrun.graphs.driver import StageDriver
from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.opening import answer
from riverrun.graphs.stage import Epoch, SaveOrder, StageGone, StageHandle, StaleEpoch, UnknownSession
from riverrun.graphs.waiting import Clock
from riverrun.models.base import Corrupt, Unavailable
from riverrun.store.checkpoints import Manifest

log = logging.getLogger(__name__)
SAVED_S = 300.0
"""A checkpoint that takes longer is given up."""
RETRY_S = 1.0
"""Between two tries to write a checkpoint that a client waits for."""
MAX_UNSAVED = 256
"""Chunks an edge keeps at most for a stage whose checkpoints can't be written; older ones are given up."""


class Blobs(Protocol):
    """Where checkpoints lie, as the runner sees it. Each method may raise Unavailable."""

    async def manifests(self, session: str) -> Sequence[Manifest]:
        """All of a session that can be read, oldest first."""

    async def max_epoch(self, session: str) -> int:
        """The highest of the epochs that a session's checkpoints were ordered in; 0 of none."""

    async def delete(self, manifest: Manifest) -> None:
        """Deleting what is not there is no error."""

    async def forget(self, session: str) -> None:
        """Deletes all there is of a session."""


@dataclass
class _Stage:
    """Of one stage. seq, at: step and time of the last order. is_writing: it is not durable yet."""

    book: CheckpointBook
    at: float
    seq: int = -1
    is_writing: bool = False
    is_failing: bool = False


@dataclass
class Saver:
    """spawn: runs a coroutine as long as the session. on_input_durable: the client need not keep what it sent before
    `edge.base_frame`. grace_s: blobs outlive their replacement by so long, for a store that loses its last writes."""

    keeper: RecordKeeper
    epoch: Epoch
    blobs: Blobs
    clock: Clock
    cadence: Cadence
    grace_s: float
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    on_input_durable: Callable[[EdgeQueue], None]
    drivers: Mapping[str, StageDriver] = field(default_factory=dict)
    stages: dict[str, _Stage] = field(default_factory=dict)
    dropped: dict[str, Manifest] = field(default_factory=dict)  # by path, what `drop` has yet to delete

    def follow(self, drivers: Mapping[str, StageDriver], found: Sequence[Manifest] = ()) -> None:
        """Takes charge. found: checkpoints from before, of a session that others have run."""
        self.drivers = drivers
        for name, driver in drivers.items():
            book = CheckpointBook(m for m in found if m.stage == name)
            self.stages[name] = _Stage(book, self.clock.now(), driver.next_seq - 1)

    def book(self, stage: str) -> CheckpointBook:
        return self.stages[stage].book

    def due(self, driver: StageDriver) -> SaveOrder | None:
        """The checkpoint to take with the step about to be made; one at a time."""
        mine = self.stages[driver.name]
        inputs = sum(edge.waiting_frames for edge in driver.inputs.values() if edge.from_client)
        steps, seconds = driver.next_seq - mine.seq, self.clock.now() - mine.at
        if mine.is_writing or not self.cadence.is_due(steps, seconds, inputs):
            return None
        return self.order()

    def order(self, **changes: Any) -> SaveOrder:
        """changes: what the record is about to say."""
        return SaveOrder(self.cadence.kind, replace(self.keeper.record, **changes).to_json())

    def begun(self, driver: StageDriver, seq: int) -> None:
        """Step `seq` was made; its checkpoint is noted when it is durable."""
        mine = self.stages[driver.name]
        mine.seq, mine.at, mine.is_writing = seq, self.clock.now(), True
        self.spawn(self._settle(driver, partial(self._saved, driver.handle, driver.name, seq)))

    async def _saved(self, handle: StageHandle, stage: str, seq: int) -> Manifest:
        work = handle.saved(self.keeper.record.id, self.epoch, seq)
        return await answer(self.clock, SAVED_S, work, f"a checkpoint of stage {stage!r}")

    async def save_all(self, **changes: Any) -> None:
        """A checkpoint of every stage, all between two steps. changes: as in `order`. Raises what a stage raised."""
        order = self.order(**changes)
        try:
            async with asyncio.TaskGroup() as saving:
                work = [saving.create_task(self._save(driver, order)) for driver in self._unflushed()]
        except BaseExceptionGroup as errors:  # callers know what a stage raises
            raise errors.exceptions[0] from None
        for task in work:
            self.book(task.result().stage).add(task.result())
        await self.keeper.commit(**self.listed())

    async def _save(self, driver: StageDriver, order: SaveOrder) -> Manifest:
        """A checkpoint between two steps; a stage that is found lost by it is brought back."""
        handle = driver.handle
        try:
            work = handle.save(self.keeper.record.id, self.epoch, order)
            return await answer(self.clock, SAVED_S, work, f"a checkpoint of stage {driver.name!r}")
        except (StageGone, UnknownSession) as error:
            if driver.handle is handle and not driver.finished:
                driver.lose(error)
            raise

    async def relieve(self) -> None:
        """Takes checkpoints between steps where a client waits until its input is durable, and nothing else would: it
        sends no more before, and without input no step is made to take one with. Runs until cancelled."""
        signal = next(iter(self.drivers.values())).session.signal
        noted: list[int] = []
        while True:
            await signal.until(lambda: self._news(noted) or self._unsaved() is not None)  # noqa: B023
            noted = self._news(noted) or noted
            self.forget()
            if (driver := self._unsaved()) is None:
                continue
            mine = self.stages[driver.name]
            mine.at, mine.is_writing = self.clock.now(), True
            await self._settle(driver, partial(self._save, driver, self.order()))
            if mine.is_failing:
                await self.clock.sleep(RETRY_S)

    @property
    def _is_waited_for(self) -> bool:
        """Whether a client may wait for its input to be durable: all of it is taken, and much in no checkpoint."""
        inputs = [edge for driver in self.drivers.values() for edge in driver.inputs.values() if edge.from_client]
        return any(edge.waiting_frames >= self.cadence.inputs and not len(edge) for edge in inputs)

    def _news(self, noted: list[int]) -> list[int] | None:
        """What is acked of each stage while a client waits, if that is not what was noted: more can be forgotten."""
        acked = [driver.acked for driver in self.drivers.values()]
        return acked if self._is_waited_for and acked != noted else None

    def _unsaved(self) -> StageDriver | None:
        """A resting stage that keeps input from being durable: without two checkpoints of where it stands."""
        drivers = list(self.drivers.values())[::-1] if self._is_waited_for else []
        return next((driver for driver in drivers if self._is_unsaved(driver)), None)

    def _is_unsaved(self, driver: StageDriver) -> bool:
        mine = self.stages[driver.name]
        if mine.is_writing or driver.is_stepping or driver.is_held or driver.fault or driver.finished or driver.turn():
            return False
        return sum(m.mark.seq == driver.next_seq for m in mine.book.manifests) < COPIES

    def _unflushed(self) -> list[StageDriver]:
        return [driver for driver in self.drivers.values() if not driver.finished]

    def listed(self) -> dict[str, Any]:
        """What the record says of the checkpoints there are."""
        briefs = tuple(m.brief() for mine in self.stages.values() for m in mine.book.manifests)
        return {"manifests": briefs, "dropped": tuple(self.dropped)}

    async def _settle(self, driver: StageDriver, save: Callable[[], Awaitable[Manifest]]) -> None:
        """save: what gives the checkpoint; begun here, as this may be called off before it has begun."""
        mine = self.stages[driver.name]
        try:
            manifest = await save()
        except (StageGone, UnknownSession):
            return  # its driver finds out
        except StaleEpoch:
            raise  # another runner has the session, and its driver may never call there again
        except (Unavailable, Corrupt) as error:
            if not mine.is_failing:
                log.warning("session %s: no checkpoint of stage %s: %s", self.keeper.record.id, driver.name, error)
            mine.is_failing = True
            self._bound(driver)
            return
        finally:
            mine.is_writing = False
            driver.session.signal.notify()
        mine.is_failing = False
        mine.book.add(manifest)
        await self.keeper.commit(**self.listed())
        self.forget()

    def begins_again(self, stage: str, seq: int) -> None:
        """A stage stands at step `seq` once more. Later checkpoints of it were read by nobody since, and what ended it
        may have damaged them too: they are dropped, and taken again before what lies before them is forgotten."""
        mine = self.stages[stage]
        mine.seq = seq - 1
        later = [manifest for manifest in mine.book.manifests if manifest.mark.seq > seq]
        for manifest in later:
            mine.book.drop(manifest)
        self.drop(later, self.grace_s)

    def forget(self) -> None:
        """Lets go of everything that no replay needs: consumers first, as what they need decides about the others."""
        for name in reversed(list(self.drivers)):
            driver, book = self.drivers[name], self.book(name)
            if driver.fault:
                continue  # it is being put back to a checkpoint, and needs all that comes after that
            floor = book.floor(driver.acked)
            for port, edge in driver.inputs.items():
                before = edge.base
                edge.commit(floor.consumed.get(port, 0), floor.consumed_frames.get(port, 0))
                if edge.from_client and edge.base > before:
                    self.on_input_durable(edge)
            before_step = min(floor.seq, driver.next_seq)  # it may have begun again earlier, and be on its way there
            driver.log.forget(before_step)
            self.keeper.forget(name, before_step)
            for manifest in book.outdated(driver.acked):
                book.drop(manifest)
                self.spawn(self._delete(manifest, self.grace_s))

    def _bound(self, driver: StageDriver) -> None:
        for edge in driver.inputs.values():
            edge.commit(edge.taken - MAX_UNSAVED, 0)

    def drop(self, manifests: Sequence[Manifest], grace_s: float = 0.0) -> None:
        """Deletes what whoever takes the session over would rely on, as there are no two later ones: not before the
        store has taken a record that says so. Either that runner has read it then, or this one is refused."""
        self.dropped |= {manifest.path: manifest for manifest in manifests}
        if manifests:
            self.spawn(self._drop(manifests, grace_s))

    async def _drop(self, manifests: Sequence[Manifest], grace_s: float) -> None:
        await self.clock.sleep(grace_s)
        await self.keeper.confirm(**self.listed())
        for manifest in manifests:
            await self._delete(manifest)

    async def _delete(self, manifest: Manifest, grace_s: float = 0.0) -> None:
        """Once the grace is over. What is left by a gateway that dies meanwhile goes with its session."""
        if grace_s:
            await self.clock.sleep(grace_s)
        try:
            await self.blobs.delete(manifest)
        except Unavailable as error:
            log.warning("checkpoint %s was not deleted: %s", manifest.path, error)
        else:
            self.dropped.pop(manifest.path, None)
