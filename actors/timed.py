"""Controls at given frames, exact whatever the timing: put into the step that makes the chunk they are meant for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riverrun.graphs.controls import PROMPT
from riverrun.graphs.stage import (
    AttachReply,
    BadRequest,
    EncoderHandle,
    Epoch,
    OpenReply,
    OpenRequest,
    StageHandle,
    StepReply,
    StepRequest,
)
from riverrun.models.base import Control


@dataclass(frozen=True)
class TimedControl:
    """`control` comes into force with the first chunk that begins at or after frame `at_frame`. stage "": all."""

    at_frame: int
    control: Control
    stage: str = ""


class TimedStage:
    """A `StageHandle` around another one, for one session that is driven from its first step on.

    Counts the frames of the stage's first output port; a control is due with the step after which that count would
    start at or after its frame. Raises BadRequest for a control the stage takes but refuses. A stage that does not
    take the control's kind is left alone, unless the control names it. revisions: of those it takes, once it is open.
    """

    def __init__(
        self, name: str, inner: StageHandle, controls: Sequence[TimedControl], encoder: EncoderHandle | None
    ) -> None:
        self._name, self._inner, self._encoder = name, inner, encoder
        self._waiting = sorted((c for c in controls if c.stage in ("", name)), key=lambda c: c.at_frame)
        self.revisions: frozenset[int] = frozenset()
        self._embeddings: dict[int, np.ndarray] = {}
        self._port, self._frames, self._next_seq = "", 0, 0
        self._sent: dict[int, tuple[Control, ...]] = {}  # by step, so that a repeat is the same

    async def open(self, request: OpenRequest) -> OpenReply:
        """Opens the stage; prompts to come are encoded now, so that none is refused half-way."""
        reply = await self._inner.open(request)
        about = reply.description
        for timed in self._waiting:
            if timed.stage and timed.control.kind not in about.controls:
                raise BadRequest(f"stage {self._name!r} takes no {timed.control.kind!r}; it takes {about.controls}")
        self._waiting = [c for c in self._waiting if c.control.kind in about.controls]
        self.revisions = frozenset(c.control.revision for c in self._waiting)
        for timed in self._waiting:
            if timed.control.kind == PROMPT and self._encoder:
                self._embeddings[timed.control.revision] = await self._encoder.encode(timed.control.value)
        self._port = about.outputs[0].name
        return reply

    async def step(self, request: StepRequest) -> StepReply:
        if request.seq not in self._sent:
            self._sent = {request.seq: self._due()}
        ours = self._sent[request.seq]
        reply = await self._inner.step(dataclasses.replace(request, controls=(*request.controls, *ours)))
        for revision, why in reply.rejected:
            if revision in {control.revision for control in ours}:
                raise BadRequest(f"control {revision}: {why}")
        if request.seq == self._next_seq:
            self._next_seq += 1
            self._frames += sum(chunk.frames for chunk in reply.chunks if chunk.port == self._port)
        return reply

    def _due(self) -> tuple[Control, ...]:
        due = [c.control for c in self._waiting if c.at_frame <= self._frames]
        self._waiting = self._waiting[len(due) :]
        return tuple(dataclasses.replace(c, embedding=self._embeddings.pop(c.revision, None)) for c in due)

    async def attach(self, session: str, epoch: Epoch) -> AttachReply:
        return await self._inner.attach(session, epoch)

    async def close(self, session: str, epoch: Epoch) -> None:
        await self._inner.close(session, epoch)

    async def fetch(self, data: object) -> np.ndarray:
        return await self._inner.fetch(data)
