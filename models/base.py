"""What flows between stages and what a model promises. Plain data: numpy and the standard library only.

Everything that crosses a process is one of the frozen dataclasses here or in `graphs/stage.py`. The gateway imports
this module, so it must not import torch.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

TICKS_PER_SECOND = 90_000
"""The media clock: `pts` counts ticks of 1/90000 s, so that 16, 24, 25 and 30 fps are whole numbers."""


class BadRequest(ValueError):
    """The caller asked for something that can't be done; the message says what would be right."""


class Unavailable(RuntimeError):
    """It can't be done now (no room, a worker is gone); trying again may help."""


class Corrupt(RuntimeError):
    """Stored or computed state can't be trusted; the session that owns it ends."""


MAX_LINE = 400


def one_line(text: str) -> str:
    """An error as users read it: one line; of one that quotes something long, the middle is left out."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 150]} … {line[-147:]}"


class Kind(StrEnum):
    """What a port carries. The shape is that of `Chunk.data` for T frames."""

    FRAMES = "frames"  # uint8 [T, H, W, 3], RGB
    DEPTH = "depth"  # float32 [T, H, W]
    POINTS = "points"  # float32 [T, H, W, 3], world coordinates
    CAMERA = "camera"  # float32 [T, 9]: translation 3, quaternion xyzw 4, fov h and w
    CONFIDENCE = "confidence"  # float32 [T, H, W]
    TEXT = "text"  # int64 [T], token ids
    CONDITION = "condition"  # model-defined


@dataclass(frozen=True)
class Port:
    """A named, typed end of an edge. size: (H, W) that its frames must have; None: any, or the model looks itself.
    once: an input that takes one chunk of a stream, at its beginning; nothing waits for a second."""

    name: str
    kind: Kind
    size: tuple[int, int] | None = None
    once: bool = False


@dataclass(frozen=True)
class Chunk:
    """What flows on an edge: T consecutive frames (or values) of one port.

    data: array as its port's `Kind` says, or an opaque reference to one (the runner passes references on unread).
    seq: number of this chunk on its port, from 0, without gaps; stamped by the stage.
    pts: media time of the first frame, ticks of 1/90000 s. frame_ticks: ticks from one frame to the next.
    times: media time of each frame, where they are not `frame_ticks` apart; that is then what the last one lasts.
    first_frame: number of the first frame on this port since the stream began. frames: T.
    epoch: the session's epoch when it was made. revision: the newest control in force for it (0: none).
    trace: a W3C traceparent, where this chunk is traced; the runner's, models leave it alone.
    """

    port: str
    data: Any
    pts: int
    frame_ticks: int
    frames: int
    first_frame: int = 0
    seq: int = -1
    epoch: int = 0
    revision: int = 0
    trace: str = ""
    times: tuple[int, ...] = ()

    def time_of(self, index: int) -> int:
        """Media time of frame `index`; of `frames`: where the chunk ends."""
        if not self.times:
            return self.pts + index * self.frame_ticks
        return self.times[index] if index < len(self.times) else self.times[-1] + self.frame_ticks


@dataclass(frozen=True)
class Control:
    """A change of course, applied at a chunk boundary.

    revision: the client's number, rising. kind: one of the model's `Description.controls` ("prompt", "pause", ...).
    value: the text, number or mapping the kind asks for. embedding: the prompt's, float32 [text_len, dim], put in by
    the service for models that name a prompt encoder.
    """

    revision: int
    kind: str
    value: Any = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class Description:
    """What a model says of itself before any session is opened, for given parameters.

    inputs, outputs: typed ports; a model without inputs is a source. controls: kinds of `Control` it takes.
    chunk_frames: frames it emits a step in steady state. first_frames: in the first step. max_chunks: the most chunks
    one step may emit on a port (room is reserved for them). latency_frames: inputs needed before the first output.
    fps: frames a second of media time. frame_shape: (H, W) of its frames, if it makes any.
    sizes_vary: that is what its default input leads to; frames of other sizes come out where such go in.
    retained_bytes: what one session keeps between steps. peak_bytes: the most it needs during one.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    chunk_frames: int
    fps: float
    controls: tuple[str, ...] = ()
    first_frames: int | None = None
    max_chunks: int = 1
    latency_frames: int = 0
    frame_shape: tuple[int, int] | None = None
    sizes_vary: bool = False
    retained_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A State on its way to another place. meta: small, JSON-able. tensors: CPU arrays by name, raw bytes kept.

    kind: "exact" (restore is bit-equal) or "recache" (restored from sources; counts exact, pixels not).
    """

    meta: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    kind: str = "exact"

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.tensors.values())


class State(Protocol):
    """Everything one session owns at one stage. An argument of the model, never an attribute of it."""

    @property
    def nbytes(self) -> int:
        """Bytes held between steps (caches, histories, pending inputs)."""

    def snapshot(self, kind: str = "exact") -> Snapshot:
        """A copy that `StreamModel.restore` turns into an equal State, physical slot order included.

        kind: one of the model's `snapshot_kinds`; "recache" holds what the State can be computed from again. Taken
        between steps; inputs and controls that wait for the next one are in it. Raises Corrupt for a State that a
        failed step has left half-written, BadRequest for another kind.

        A State of large arrays may also have `lend()`: an exact snapshot of its own memory, to be read before the next
        step. A session that moves is held up by one copy less.
        """


class StreamModel(ABC):
    """Weights shared by every session of an actor, and pure functions over their States.

    A class from outside the tree is a stage if it subclasses this (see docs/your_model.md). `Params` is a frozen
    dataclass whose fields are the parameters a session may give; `parse_params` checks them.

    dtype, device: torch's, of a model with weights: a State goes on only where they are the same.
    """

    Params: type
    dtype: Any = None
    device: Any = None

    @abstractmethod
    def describe(self, params: Any) -> Description:
        """Ports, sizes and bytes for these `Params`."""

    @abstractmethod
    def open(self, params: Any, seed: int) -> Any:
        """A fresh State. Raises BadRequest for values that can't work together.

        Where the service encodes prompts for this model, the first prompt follows at once as a `Control` of
        revision 0 and kind "prompt", with its embedding.
        """

    @abstractmethod
    def step(self, states: Sequence[Any]) -> list[list[Chunk]]:
        """One step for each of several sessions at once; 0..max_chunks chunks a port for each."""

    @abstractmethod
    def restore(self, params: Any, snapshot: Snapshot) -> Any:
        """The State that `snapshot` was taken of. Raises Corrupt if it does not fit.

        A model may also have `refill(blank, snapshot)`: the same, into a State just opened with these params. A session
        that moves to it finds its memory taken in, which else is most of what moving a large State costs.
        """

    def push(self, state: Any, chunk: Chunk) -> None:
        """Takes an input chunk into the State. Sources take none. Raises BadRequest for one it does not take, with the
        State as it was: the chunk is left out, and the stream goes on."""
        raise BadRequest(f"{type(self).__name__} takes no input, got a chunk on port {chunk.port!r}")

    def control(self, state: Any, control: Control) -> None:
        """Applies a control before the next step. Raises BadRequest for a kind or value it does not take."""
        raise BadRequest(f"{type(self).__name__} takes no control, got {control.kind!r}")

    def ready(self, state: Any) -> bool:
        """Whether `step` can run now. Depends only on what was pushed, never on when it arrived."""
        return True

    def snapshot_kinds(self) -> tuple[str, ...]:
        """Of snapshots its States can give; see `Snapshot`."""
        return ("exact",)

    def decisions(self, state: Any) -> Any:
        """What the last step decided by value, and that changes how many outputs there are (token ids, scene cuts).

        A small JSON-able value; None: nothing. Rounding in another batch could flip it, so a replay is told. Read after
        each numbered step, one that only took input included.
        """
        return None

    def force(self, state: Any, decisions: Any) -> None:
        """The next step decides as one that `decisions` was read after. Told before that step is given its input."""
        return None

    def example(self, params: Any, turn: int) -> Sequence[Chunk | Control]:
        """What a session may be given before its step number `turn`, from 0, for the warm-up in which an actor measures
        what one needs. Without it a model that waits for input or a prompt is admitted by its description alone."""
        return ()

    def batch_key(self, state: Any) -> Any:
        """States with equal keys may share a step; None means this state is stepped alone.

        They do so in the service only if they have `mark` and `rewind` (models/state.py:Rewindable).
        """
        return None

    def finish(self, state: Any) -> list[Chunk]:
        """What is left when the input has ended (an upscaler's flush). Sources have nothing left."""
        return []


class PromptEncoder(Protocol):
    """Turns prompts into the embeddings a model attends to. Stateless, shared by all sessions."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [B, text_len, dim]. Raises BadRequest for an empty text."""


_CASTS: Mapping[type, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}


def parse_params(cls: type, values: Mapping[str, Any]) -> Any:
    """`cls(**values)` with each name and type checked against the dataclass's fields.

    Raises BadRequest naming the unknown, missing or mistyped field and the ones there are. Integral floats are taken
    for int fields, since JSON and protobuf carry one number type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise BadRequest(f"unknown parameter {unknown[0]!r}; there are {', '.join(sorted(fields)) or 'none'}")
    parsed = {name: _coerce(name, hints[name], value) for name, value in values.items()}
    missing = [n for n, f in fields.items() if n not in parsed and _required(f)]
    if missing:
        raise BadRequest(f"parameter {missing[0]!r} is missing")
    return cls(**parsed)


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _coerce(name: str, hint: Any, value: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    options = tuple(o for o in options if o is not type(None))
    for option in options:
        if option not in _CASTS:
            return value  # containers are checked by the dataclass's own __post_init__
        if option is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, _CASTS[option]) and (option is bool or not isinstance(value, bool)):
            return option(value)
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise BadRequest(f"parameter {name!r} must be {wanted}, got {value!r}")


@dataclass(frozen=True)
class ParamInfo:
    """One parameter of a model, for `ListModels`."""

    name: str
    type: str
    default: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """One model of the service, for `ListModels`."""

    name: str
    stage: str
    description: Description
    params: tuple[ParamInfo, ...] = field(default=())


def param_infos(cls: type) -> tuple[ParamInfo, ...]:
    """The fields of a Params class as a user sees them."""
    hints = typing.get_type_hints(cls)
    return tuple(
        ParamInfo(
            f.name,
            getattr(hints[f.name], "__name__", str(hints[f.name])),
            None if _required(f) else repr(f.default),
        )
        for f in dataclasses.fields(cls)
    )
