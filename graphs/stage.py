"""What the runner and a stage say to each other: the messages, and the handle a runner is given.

A runner never sees Ray: it is handed `StageHandle`s (an actor behind Ray in production, ten lines in a test).
Rules of the contract (design §4):

* Every call carries the session's `Epoch`. A stage refuses one below the highest it has seen (`StaleEpoch`), or one
  with the same number and another nonce.
* `step` is numbered by the runner, from 0, without gaps, per (session, stage). A repeated number returns the kept
  reply without running the model; a number further on than the next is an error.
* A stage keeps its replies until `StepRequest.acked` passes them.
* An unknown session is its own error (`UnknownSession`), never a fresh state.
* A step may carry a `SaveOrder`: when it is made the State is copied, and written while the next steps go on; `saved`
  tells when that is durable. `restore` puts such a checkpoint (or a `Packet` from a living stage) on an actor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Description, Snapshot, Unavailable
from riverrun.store.checkpoints import Engine, Manifest, Mark
from riverrun.store.records import Placement


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


class Lost(Corrupt):
    """A stage can't be brought back: no checkpoint can be used, and what its steps were given is gone."""


class ActorDied(StageGone):
    """The stage's actor is dead for certain, and with it all that lived there."""


class DiedWith(StageGone):
    """The actor of a stage was found dead by another stage of the session: no step of this one has failed."""


class InputLost(Unavailable):
    """An input chunk's data died with the actor that made it; nothing was stepped, the same step is due again."""


class InputRefused(BadRequest):
    """The model does not take an input chunk; its State is as it was, and the same step is due again."""


class StepFailed(Corrupt):
    """The model failed on this session's input; its State is gone. The runner restores it and tries once more."""


class Mismatch(Corrupt):
    """A checkpoint was made by another engine than the one that should go on with it (weights, dtype, schema)."""


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
class SaveOrder:
    """Take a checkpoint. kind: "exact" or "recache". record: the session's, as JSON, for the manifest."""

    kind: str
    record: str = ""


@dataclass(frozen=True)
class StepRequest:
    """One numbered step: push `inputs`, apply `controls`, then step the model once if it is ready.

    acked: step replies up to this number need not be kept any more. finish: the input has ended, flush.
    save: take a checkpoint when it is made. forced: what this step decided when it was made before (`decisions`).
    taken, taken_frames: chunks and frames that have gone into each input port, these inputs included.
    trace: the W3C traceparent under which the stage notes its spans, if it is traced. lead_s: media that is made and
    not played yet, seconds; None while nobody plays. tenant: whose session it is.
    """

    session: str
    epoch: Epoch
    seq: int
    inputs: tuple[Chunk, ...] = ()
    controls: tuple[Control, ...] = ()
    acked: int = -1
    finish: bool = False
    save: SaveOrder | None = None
    forced: Any = None
    taken: Mapping[str, int] = field(default_factory=dict)
    taken_frames: Mapping[str, int] = field(default_factory=dict)
    trace: str = ""
    lead_s: float | None = None
    tenant: str = ""


@dataclass(frozen=True)
class StepReply:
    """What step `seq` made.

    chunks: in order, seq and epoch stamped. ready: the model could step again without input.
    rejected: controls the model refused, as (revision, why). held_bytes: of the State after the step.
    compute_ms: time in the model. wait_ms: time between arrival of the request and its start.
    batched: how many sessions shared the step. decisions: what it decided by value and a replay must decide alike.
    given: revisions of the controls it carried, refused ones too.
    """

    seq: int
    chunks: tuple[Chunk, ...] = ()
    ready: bool = False
    rejected: tuple[tuple[int, str], ...] = ()
    held_bytes: int = 0
    compute_ms: float = 0.0
    wait_ms: float = 0.0
    batched: int = 1
    decisions: Any = None
    given: tuple[int, ...] = ()


@dataclass(frozen=True)
class AttachReply:
    """Where a live State stands, for a runner that takes over, and the replies that nobody has acked. life: as in
    `RestoreRequest`."""

    mark: Mark
    description: Description
    incarnation: str
    life: int = 0
    kept: tuple[StepReply, ...] = field(default=())


@dataclass(frozen=True)
class Packet:
    """A State on its way from one actor to another. snapshot: or a reference to one. kept: replies nobody has acked."""

    mark: Mark
    engine: Engine
    snapshot: Snapshot | Any
    kept: tuple[StepReply, ...] = ()


@dataclass(frozen=True)
class RestoreRequest:
    """Puts a session's State at one stage on an actor.

    opening: as `open` had it. life: rises with each restore of this stage by its runner; a State of an earlier life on
    the same actor is replaced, a request of an earlier one refused. source: a checkpoint, the State itself, or None to
    begin again at step 0.
    """

    opening: OpenRequest
    life: int
    source: Manifest | Packet | None = None


@dataclass(frozen=True)
class RestoreReply:
    """mark: where it stands now."""

    description: Description
    incarnation: str
    mark: Mark


class StageHandle(Protocol):
    """One stage actor, as the runner sees it. Each method may raise StageGone, StaleEpoch or UnknownSession."""

    async def open(self, request: OpenRequest) -> OpenReply:
        """Raises BadRequest (a parameter), Unavailable (no room)."""

    async def step(self, request: StepRequest) -> StepReply:
        """Raises StepFailed when the model failed on it, InputRefused when it does not take an input."""

    async def attach(self, session: str, epoch: Epoch) -> AttachReply:
        """Raises the epoch; older runners are refused from now on."""

    async def saved(self, session: str, epoch: Epoch, seq: int) -> Manifest:
        """The checkpoint ordered with step `seq`, once it is durable. Raises Unavailable if it can't be written."""

    async def save(self, session: str, epoch: Epoch, order: SaveOrder) -> Manifest:
        """Takes a checkpoint between two steps and returns when it is durable."""

    async def export(self, session: str, epoch: Epoch) -> Packet:
        """The State between two steps, for another actor. It stays in charge here."""

    async def prepare(self, request: RestoreRequest) -> None:
        """Sets room aside for a State that `restore` will bring. Raises Unavailable (no room)."""

    async def restore(self, request: RestoreRequest) -> RestoreReply:
        """Raises Corrupt (the checkpoint is damaged, or another engine's), Unavailable (no room, blobs away)."""

    async def close(self, session: str, epoch: Epoch, life: int | None = None) -> None:
        """Frees the State. Closing an unknown session is no error.

        life: only one up to this, and none up to it is taken any more, as what would bring it may still be on its way.
        """

    async def fetch(self, data: Any) -> np.ndarray:
        """The array behind `Chunk.data` (itself, or what the reference points to)."""


class Placer(Protocol):
    """Finds actors for the stages of one session, as the runner sees it."""

    async def find(self, stage: str, placement: Placement) -> StageHandle | None:
        """The very actor that a placement names, if it lives."""

    async def place(self, stage: str, avoid: str = "", actor: str = "") -> tuple[StageHandle, Placement]:
        """An actor with room for the stage's model: `actor` if named, and on another incarnation than `avoid`.

        Raises Unavailable, BadRequest (no such actor, or it runs another model).
        """


class EncoderHandle(Protocol):
    """The shared prompt encoder, as the runner sees it."""

    async def encode(self, text: str) -> np.ndarray:
        """float32 [text_len, dim]. Raises BadRequest for an empty text."""


__all__ = [
    "AttachReply",
    "BadRequest",
    "EncoderHandle",
    "Epoch",
    "InputLost",
    "InputRefused",
    "Mismatch",
    "OpenReply",
    "OpenRequest",
    "Packet",
    "Placer",
    "RestoreReply",
    "RestoreRequest",
    "SaveOrder",
    "StageGone",
    "StageHandle",
    "StaleEpoch",
    "StepFailed",
    "StepReply",
    "StepRequest",
    "UnknownSession",
]
