"""What the runner and a stage say to each other: the messages, and the handle a runner is given.

A runner never sees Ray: it is handed `StageHandle`s (an actor behind Ray in production, ten lines in a test).
Rules of the contract (design §4):

* Every call carries the session's `Epoch`. A stage refuses one below the highest it has seen (`StaleEpoch`), or one
  with the same number and another nonce.
* `step` is numbered by the runner, from 0, without gaps, per (session, stage). A repeated number returns the kept
  reply without running the model; a number further on than the next is an error.
* A stage keeps its replies until `StepRequest.acked` passes them.
* An unknown session is its own error (`UnknownSession`), never a fresh state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Description, Unavailable


@dataclass(frozen=True, order=True)
class Epoch:
    """A fencing token. Equality needs both parts: a failed-over store can grant one number twice."""

    number: int
    nonce: str


class UnknownSession(Unavailable):
    """The stage holds no state of this session (it was closed, or the actor is a new one)."""


class StaleEpoch(Unavailable):
    """Another runner has taken the session over."""


class StageGone(Unavailable):
    """The actor or its process died; its states are lost."""


class InputRefused(BadRequest):
    """The model does not take an input chunk; its State is as it was, and the same step is due again."""


class StepFailed(Corrupt):
    """The model failed on this session's input, twice; the session can't go on."""


@dataclass(frozen=True)
class OpenRequest:
    """Opens a session's State at one stage.

    embedding: the first prompt's [text_len, dim], where the model has an encoder; the stage gives it to the model
    as `Control(0, "prompt", params["prompt"], embedding)` right after `open`.
    """

    session: str
    epoch: Epoch
    params: Mapping[str, Any]
    seed: int
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class OpenReply:
    """What was opened, and on whom."""

    description: Description
    incarnation: str


@dataclass(frozen=True)
class StepRequest:
    """One numbered step: push `inputs`, apply `controls`, then step the model once if it is ready.

    acked: step replies up to this number need not be kept any more. finish: the input has ended, flush. trace: the W3C
    traceparent under which the stage notes its spans, if it is traced.
    """

    session: str
    epoch: Epoch
    seq: int
    inputs: tuple[Chunk, ...] = ()
    controls: tuple[Control, ...] = ()
    acked: int = -1
    finish: bool = False
    trace: str = ""


@dataclass(frozen=True)
class StepReply:
    """What step `seq` made.

    chunks: in order, seq and epoch stamped. ready: the model could step again without input.
    rejected: controls the model refused, as (revision, why). held_bytes: of the State after the step.
    compute_ms: time in the model. wait_ms: time between arrival of the request and its start.
    batched: how many sessions shared the step.
    """

    seq: int
    chunks: tuple[Chunk, ...] = ()
    ready: bool = False
    rejected: tuple[tuple[int, str], ...] = ()
    held_bytes: int = 0
    compute_ms: float = 0.0
    wait_ms: float = 0.0
    batched: int = 1


@dataclass(frozen=True)
class AttachReply:
    """Where a live State stands, for a runner that takes over: the next step number and the kept replies."""

    next_seq: int
    kept: tuple[StepReply, ...] = field(default=())


class StageHandle(Protocol):
    """One stage actor, as the runner sees it. Each method may raise StageGone, StaleEpoch or UnknownSession."""

    async def open(self, request: OpenRequest) -> OpenReply:
        """Raises BadRequest (a parameter), Unavailable (no room)."""

    async def step(self, request: StepRequest) -> StepReply:
        """Raises StepFailed when the model failed on it, InputRefused when it does not take an input."""

    async def attach(self, session: str, epoch: Epoch) -> AttachReply:
        """Raises the epoch; older runners are refused from now on."""

    async def close(self, session: str, epoch: Epoch) -> None:
        """Frees the State. Closing an unknown session is no error."""

    async def fetch(self, data: Any) -> np.ndarray:
        """The array behind `Chunk.data` (itself, or what the reference points to)."""


class EncoderHandle(Protocol):
    """The shared prompt encoder, as the runner sees it."""

    async def encode(self, text: str) -> np.ndarray:
        """float32 [text_len, dim]. Raises BadRequest for an empty text."""


__all__ = [
    "AttachReply",
    "BadRequest",
    "EncoderHandle",
    "Epoch",
    "InputRefused",
    "OpenReply",
    "OpenRequest",
    "StageGone",
    "StageHandle",
    "StaleEpoch",
    "StepFailed",
    "StepReply",
    "StepRequest",
    "UnknownSession",
]
