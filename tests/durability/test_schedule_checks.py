"""Faults planted in the product, each of which the schedules must find: a check that finds nothing proves nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # test folders are no packages

from schedule import play  # noqa: E402

from riverrun.actors.session import StageSession  # noqa: E402
from riverrun.graphs.checkpoints import CheckpointBook  # noqa: E402
from riverrun.graphs.controls import ControlDesk  # noqa: E402
from riverrun.graphs.driver import StageDriver  # noqa: E402
from riverrun.graphs.edge import EdgeQueue  # noqa: E402
from riverrun.graphs.flow import Flow  # noqa: E402
from riverrun.graphs.ring import OutputRing  # noqa: E402
from riverrun.graphs.saver import Saver  # noqa: E402
from riverrun.graphs.stage import Epoch  # noqa: E402
from riverrun.graphs.steplog import StepLog  # noqa: E402
from riverrun.graphs.takeover import TakeOver  # noqa: E402
from riverrun.store.checkpoints import Mark  # noqa: E402
from riverrun.store.memory import MemoryStore  # noqa: E402
from riverrun.store.records import Conflict  # noqa: E402

SEEDS = range(1, 401)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def too_early(patch: Any) -> None:
    """All checkpoints but the newest are deleted, whether somebody still wants what comes after them or not."""
    patch.setattr(CheckpointBook, "outdated", lambda self, acked: list(self.manifests[:-1]))


def too_far(patch: Any) -> None:
    """Inputs and controls are forgotten up to the newest checkpoint, as if nobody wanted anything before it."""
    patch.setattr(CheckpointBook, "floor", lambda self, acked: self.manifests[-1].mark if self.manifests else Mark())


def no_compare(patch: Any) -> None:
    """The store takes records and lines of whoever brings them."""

    async def held(self: MemoryStore, record: Any, has: int) -> Any:
        if (stored := await self.get(record.id)) is None:
            raise Conflict("it is gone")
        return replace(stored, version=record.version)

    patch.setattr(MemoryStore, "_held", held)


def step_twice(patch: Any) -> None:
    """A repeated step is made again by a State that has gone on."""
    due = StageSession.due

    def again(self: StageSession, request: Any) -> Any:
        kept = due(self, request)
        if kept:
            self.next_seq = request.seq
        return None

    patch.setattr(StageSession, "due", again)


def frame_twice(patch: Any) -> None:
    """What is made again after a loss goes to the client again."""
    emit = Flow.emit

    def again(self: Flow, ring: OutputRing, chunk: Any, release: Callable[[], None]) -> bool:
        return emit(self, ring, replace(chunk, seq=max(chunk.seq, ring.next_chunk)), release)

    patch.setattr(Flow, "emit", again)


def chunk_twice(patch: Any) -> None:
    """What is made again after a loss goes to the next stage again."""
    put = EdgeQueue.put
    patch.setattr(
        EdgeQueue,
        "put",
        lambda self, chunk, release=None: put(self, replace(chunk, seq=max(chunk.seq, self.end)), release),
    )


def late_control(patch: Any) -> None:
    """A control that a replay must apply at a step is applied one step later."""
    carry = StepLog.carry

    def later(self: StepLog, seq: int, waiting: Any) -> Any:
        return carry(self, seq, waiting) if seq >= self.done else self.controls.get(seq - 1, ())

    patch.setattr(StepLog, "carry", later)


def unlogged_control(patch: Any) -> None:
    """Which step carried a control is not logged."""

    async def silent(*_: Any) -> None:
        return None

    patch.setattr(ControlDesk, "carried", silent)


def unlogged_decision(patch: Any) -> None:
    """What a step decided is not logged."""

    async def silent(*_: Any) -> None:
        return None

    patch.setattr(Flow, "decided", silent)


def early_ack(patch: Any) -> None:
    """Inputs are acked when they are taken, not when they are durable."""
    patch.setattr(
        EdgeQueue, "base_frame", property(lambda self: self.taken_frames, lambda self, value: None), raising=False
    )


def early_forgetting(patch: Any) -> None:
    """A stage is told that its replies are needed by nobody any more."""
    patch.setattr(StageDriver, "acked", property(lambda self: self.next_seq - 1))


def no_rewind(patch: Any) -> None:
    """The edges of a stage that begins again stay where they are."""
    patch.setattr(EdgeQueue, "rewind", lambda self, taken, frames: None)


def no_fence(patch: Any) -> None:
    """A State is stepped by a runner that another one has taken over from, and does not say that its controls were not
    in that step: else they are missed."""
    due = StageSession.due

    def newest(self: StageSession, epoch: Epoch) -> None:
        self.epoch = max(self.epoch, epoch, key=lambda each: each.number)

    def unsaid(self: StageSession, request: Any) -> Any:
        kept = due(self, request)
        return kept and replace(kept, given=tuple(control.revision for control in request.controls))

    patch.setattr(StageSession, "fence", newest)
    patch.setattr(StageSession, "due", unsaid)


def lost_wish(patch: Any) -> None:
    """A stage is not asked to make again what is lost."""
    patch.setattr(Flow, "_want_again", lambda self, driver, why: None)


def dropped_unsaid(patch: Any) -> None:
    """Who takes a session over relies on checkpoints that the runner before is about to delete."""

    async def at_once(self: Saver, manifests: Any, grace_s: float) -> None:
        await self.clock.sleep(grace_s)
        for manifest in manifests:
            await self._delete(manifest)

    patch.setattr(Saver, "_drop", at_once)
    patch.setattr(TakeOver, "_lasting", property(lambda self: self.found))


PLANTED = {
    too_early: 60,
    too_far: 3,
    no_compare: 44,
    step_twice: 3,
    frame_twice: 10,
    chunk_twice: 3,
    late_control: 240,
    unlogged_control: 42,
    unlogged_decision: 50,
    early_ack: 129,
    early_forgetting: 5,
    no_rewind: 1,
    no_fence: 397,
    lost_wish: 10,
    dropped_unsaid: 63361,
}
"""And the seed that found it when this was written: it is tried first."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (PLANTED[plant], *SEEDS):
        with monkeypatch.context() as patch:
            plant(patch)
            found = play(seed).fault
        if found and not play(seed).fault:  # by this fault alone
            print(f"{plant.__name__}: seed {seed}: {found[:200]}")
            return
    pytest.fail(f"{len(SEEDS)} schedules found nothing: {plant.__doc__}")
