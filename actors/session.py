"""What a stage actor keeps for one session: its State, its place in the steps, and the replies it may repeat."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from riverrun.actors.outputs import check_outputs
from riverrun.cluster.admission import Need
from riverrun.graphs.stage import (
    BadRequest,
    Epoch,
    InputRefused,
    OpenRequest,
    StaleEpoch,
    StepReply,
    StepRequest,
    UnknownSession,
)
from riverrun.models.base import Chunk, Control, Description, StreamModel
from riverrun.store.checkpoints import Mark


@dataclass(eq=False)
class StepJob:
    """One step request on its way through the batch loop. mark: where the State stood before it, if it can say."""

    session: StageSession
    request: StepRequest
    arrived: float
    future: Future = field(default_factory=Future)
    mark: Any = None
    rejected: tuple[tuple[int, str], ...] = ()
    revision: int = 0


@dataclass(eq=False)
class StageSession:
    """One session at one stage.

    need: bytes set aside for it. life: how often its runner has put it on an actor. next_seq: the step due next.
    consumed, consumed_frames: by input port, as the runner counts. seen: newest control given, refused or not.
    kept: replies the runner has not acked, by step.
    job: the step in hand, if any. copying: held while its State is copied between two steps. touched: when somebody
    last called for it. chunks, frames: emitted so far, by port.
    gone: it was closed or has failed, and is freed as soon as no step is using its State. blank: a State to be filled,
    where one is about to be put here. alone_ms: what its step takes by itself, as measured (0: not yet).
    """

    request: OpenRequest
    epoch: Epoch
    description: Description
    state: Any
    need: Need
    next_seq: int = 0
    life: int = 0
    consumed: Mapping[str, int] = field(default_factory=dict)
    consumed_frames: Mapping[str, int] = field(default_factory=dict)
    seen: int = 0
    ready: bool = False
    kept: dict[int, StepReply] = field(default_factory=dict)
    job: StepJob | None = None
    copying: threading.Lock = field(default_factory=threading.Lock)
    touched: float = 0.0
    chunks: dict[str, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    revision: int = 0
    held: int = 0
    flushed: bool = False
    gone: bool = False
    blank: Any = None
    alone_ms: float = 0.0

    def stand(self) -> Mark:
        """Where it stands between two steps."""
        return Mark(
            self.next_seq,
            dict(self.consumed),
            dict(self.consumed_frames),
            dict(self.chunks),
            dict(self.frames),
            self.ready,
            self.revision,
            self.seen,
            self.flushed,
        )

    def begin_at(self, mark: Mark) -> None:
        """Of a State that was put here: counts as they were."""
        self.next_seq, self.ready, self.flushed = mark.seq, mark.ready, mark.flushed
        self.revision, self.seen = mark.revision, mark.seen
        self.consumed, self.consumed_frames = dict(mark.consumed), dict(mark.consumed_frames)
        self.chunks, self.frames = dict(mark.chunks), dict(mark.frames)

    @property
    def undoable(self) -> bool:
        """Whether the State can go back to before a step (it has `mark` and `rewind`); only such share steps."""
        return hasattr(self.state, "rewind")

    def fence(self, epoch: Epoch) -> None:
        """Takes `epoch` if it is the one in force or a newer one. Raises StaleEpoch."""
        if epoch.number < self.epoch.number or (epoch.number == self.epoch.number and epoch != self.epoch):
            raise StaleEpoch(f"session {self.request.session}: epoch {epoch.number} is over, {self.epoch.number} is on")
        self.epoch = epoch

    def due(self, request: StepRequest) -> StepReply | None:
        """The kept reply if `request` repeats a step, None if it is the next one. Raises UnknownSession for one that is
        forgotten (it must be brought back), BadRequest for one that is too early."""
        for seq in [seq for seq in self.kept if seq <= request.acked]:
            del self.kept[seq]
        kept = self.kept.get(request.seq)
        if kept is None and request.seq != self.next_seq:
            if request.seq < self.next_seq:  # a request to an earlier life of it came late, and has moved it on
                raise UnknownSession(f"step {request.seq} was acked and is forgotten: step {self.next_seq} is due")
            raise BadRequest(f"step {request.seq} is too early: step {self.next_seq} is due")
        return kept

    def take(self, model: StreamModel, job: StepJob) -> None:
        """Pushes the inputs of `job` and applies its controls; refused controls are noted, not raised.

        Raises InputRefused."""
        job.mark = self.state.mark() if self.undoable else None
        rejected, job.revision = [], self.revision
        if job.request.forced is not None:
            model.force(self.state, job.request.forced)
        for chunk in job.request.inputs:
            _push(model, self.state, chunk)
        for control in job.request.controls:
            refusal = _refusal(model, self.state, control)
            if refusal:
                rejected.append((control.revision, refusal))
            else:
                job.revision = max(job.revision, control.revision)
        job.rejected = tuple(rejected)

    def undo(self, job: StepJob) -> bool:
        """Back to before `job`, if the State can."""
        if self.undoable and job.mark is not None:
            self.state.rewind(job.mark)
            return True
        return False

    def commit(self, job: StepJob, chunks: Sequence[Chunk], ready: bool, **figures: Any) -> StepReply:
        """Stamps what step `job` made, counts it, keeps the reply and moves on to the next step.

        Raises Corrupt, and changes nothing, if that is not what the model said it makes.
        """
        check_outputs(chunks, self.description)
        self.revision, self.ready, job.mark = job.revision, ready, None
        self.seen = max([self.seen, *(control.revision for control in job.request.controls)])
        self.consumed, self.consumed_frames = job.request.taken, job.request.taken_frames
        self.held = int(self.state.nbytes)
        reply = StepReply(
            seq=job.request.seq,
            chunks=tuple(self._stamp(chunk) for chunk in chunks),
            ready=ready,
            given=tuple(control.revision for control in job.request.controls),
            rejected=job.rejected,
            held_bytes=self.held,
            **figures,
        )
        self.kept[reply.seq] = reply
        self.next_seq, self.job = reply.seq + 1, None
        return reply

    def _stamp(self, chunk: Chunk) -> Chunk:
        seq, first = self.chunks.get(chunk.port, 0), self.frames.get(chunk.port, 0)
        self.chunks[chunk.port], self.frames[chunk.port] = seq + 1, first + chunk.frames
        revision = max(chunk.revision, self.revision)
        return dataclasses.replace(chunk, seq=seq, first_frame=first, epoch=self.epoch.number, revision=revision)

    def check(self) -> None:
        """Raises AssertionError where the counts don't add up."""
        assert all(0 <= seq < self.next_seq for seq in self.kept), (self.kept.keys(), self.next_seq)
        assert self.job is None or self.job.request.seq == self.next_seq, (self.job, self.next_seq)
        assert set(self.chunks) == set(self.frames), (self.chunks, self.frames)
        kept = [chunk for _, reply in sorted(self.kept.items()) for chunk in reply.chunks]
        for port, count in self.chunks.items():
            seqs = [chunk.seq for chunk in kept if chunk.port == port]
            assert seqs == list(range(count - len(seqs), count)), (port, seqs, count)


def _push(model: StreamModel, state: Any, chunk: Chunk) -> None:
    try:
        model.push(state, chunk)
    except BadRequest as error:
        raise InputRefused(str(error)) from error


def _refusal(model: StreamModel, state: Any, control: Control) -> str:
    try:
        model.control(state, control)
    except BadRequest as error:
        return str(error)
    return ""
