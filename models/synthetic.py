"""A model without weights for measuring, testing and breaking the service around it. Pure numpy.

Every frame says where it came from: its colour is a function of (seed, prompt, chunk), and its first pixel is its own
number, so whoever receives a stream can tell a lost, repeated or wrongly switched frame from its pixels alone.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from riverrun.models.base import (
    TICKS_PER_SECOND,
    BadRequest,
    Chunk,
    Control,
    Corrupt,
    Description,
    Kind,
    Port,
    Snapshot,
    StreamModel,
)
from riverrun.models.state import Waiting, check_kind, frames_of, reading

SNAPSHOT_VERSION = 1
_SIDE = range(1, 4097)
_FRAMES = range(1, 1025)
MAX_CHUNK_BYTES = 256_000_000


@dataclass(frozen=True)
class SyntheticParams:
    """What a session may ask for.

    prompt: colours the frames. step_ms: how long a step takes. state_bytes: size of the State's buffer.
    takes: input frames a step uses up; 0 makes it a source. chunk_frames: frames a step emits, so `takes` to
    `chunk_frames` is the ratio. height, width, fps: of its frames. batch: may share a step with its like.
    fail_at, hang_at, exit_at: the step at which it raises, never returns, or ends its process; -1: never.
    """

    prompt: str = "synthetic"
    step_ms: float = 0.0
    state_bytes: int = 0
    takes: int = 0
    chunk_frames: int = 4
    height: int = 32
    width: int = 32
    fps: float = 16.0
    batch: bool = True
    fail_at: int = -1
    hang_at: int = -1
    exit_at: int = -1

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        for name in ("height", "width"):
            _check_range(name, getattr(self, name), _SIDE)
        _check_range("chunk_frames", self.chunk_frames, _FRAMES)
        _check_range("takes", self.takes, range(1025))
        if self.chunk_bytes > MAX_CHUNK_BYTES:
            raise BadRequest(f"a chunk would have {self.chunk_bytes / 1e6:.0f} MB, at most {MAX_CHUNK_BYTES / 1e6:.0f}")
        if not 0 <= self.step_ms <= 600_000:
            raise BadRequest(f"step_ms must be 0..600000, got {self.step_ms}")
        if not 0 < self.fps <= 240:
            raise BadRequest(f"fps must be above 0 and at most 240, got {self.fps}")
        if self.state_bytes < 0:
            raise BadRequest(f"state_bytes must not be negative, got {self.state_bytes}")

    @property
    def chunk_bytes(self) -> int:
        """Of the frames one step emits."""
        return self.chunk_frames * self.height * self.width * 3


class Mark(NamedTuple):
    """Where a State stood: all that a push, a control or a step changes."""

    steps: int
    prompt: str
    step_ms: float
    waiting: tuple[Waiting, ...]
    buffer_byte: int


@dataclass
class SyntheticState:
    """One session. steps: made so far. waiting: input frames not used yet. buffer: uint8 [state_bytes]."""

    params: SyntheticParams
    seed: int
    prompt: str
    step_ms: float
    buffer: np.ndarray
    steps: int = 0
    waiting: tuple[Waiting, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes) + sum(int(w.pixels.nbytes) for w in self.waiting)

    def snapshot(self, kind: str = "exact") -> Snapshot:
        check_kind(kind)
        lent = self.lend()
        return Snapshot(lent.meta, {name: array.copy() for name, array in lent.tensors.items()})

    def lend(self) -> Snapshot:
        """As `snapshot`, of the State's own memory."""
        meta = {
            "version": SNAPSHOT_VERSION,
            "seed": self.seed,
            "prompt": self.prompt,
            "step_ms": self.step_ms,
            "steps": self.steps,
            "waiting": [[w.pts, w.ticks, w.revision] for w in self.waiting],
        }
        tensors = {f"waiting.{i}": w.pixels for i, w in enumerate(self.waiting)}
        return Snapshot(meta, {"buffer": self.buffer, **tensors})

    def mark(self) -> Mark:
        """Where it stands now, for `rewind`. Costs nothing."""
        return Mark(self.steps, self.prompt, self.step_ms, self.waiting, self._touched())

    def rewind(self, mark: Mark) -> None:
        """Takes back everything since `mark`, one step at most."""
        self.steps, self.prompt, self.step_ms, self.waiting = mark[:4]
        self.touch(mark.buffer_byte)

    def touch(self, value: int) -> None:
        """Writes the byte of the buffer that belongs to the step due now."""
        if self.buffer.size:
            self.buffer[self.steps % self.buffer.size] = value

    def _touched(self) -> int:
        return int(self.buffer[self.steps % self.buffer.size]) if self.buffer.size else 0


class Synthetic(StreamModel):
    """Frames from arithmetic: a source, or (with `takes` > 0) a transform that inverts what it is given."""

    Params = SyntheticParams

    def describe(self, params: SyntheticParams) -> Description:
        return Description(
            inputs=(Port("frames", Kind.FRAMES, (params.height, params.width)),) if params.takes else (),
            outputs=(Port("frames", Kind.FRAMES),),
            controls=("prompt", "parameters"),
            chunk_frames=params.chunk_frames,
            latency_frames=params.takes,
            fps=params.fps,
            frame_shape=(params.height, params.width),
            retained_bytes=params.state_bytes,
            peak_bytes=params.state_bytes + params.chunk_bytes,
        )

    def open(self, params: SyntheticParams, seed: int) -> SyntheticState:
        buffer = np.full(params.state_bytes, 0, np.uint8)  # zeros() would take the memory in only when it is written to
        return SyntheticState(params, seed, params.prompt, params.step_ms, buffer)

    def restore(self, params: SyntheticParams, snapshot: Snapshot) -> SyntheticState:
        return self.refill(self.open(params, seed=0), snapshot)

    def refill(self, state: SyntheticState, snapshot: Snapshot) -> SyntheticState:
        tensors = snapshot.tensors
        with reading(snapshot, SNAPSHOT_VERSION) as meta:
            if tensors["buffer"].shape != state.buffer.shape:
                wanted = state.buffer.size
                raise Corrupt(f"snapshot has {tensors['buffer'].size} state bytes, parameters say {wanted}")
            np.copyto(state.buffer, tensors["buffer"])
            state.seed, state.prompt, state.steps = meta["seed"], meta["prompt"], meta["steps"]
            state.step_ms = meta["step_ms"]
            times = enumerate(meta["waiting"])
            state.waiting = tuple(Waiting(tensors[f"waiting.{i}"].copy(), *time) for i, time in times)
        return state

    def push(self, state: SyntheticState, chunk: Chunk) -> None:
        params = state.params
        if not params.takes:
            super().push(state, chunk)
        data, wanted = chunk.data, (chunk.frames, params.height, params.width, 3)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != wanted:
            got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
            raise BadRequest(f"port 'frames' takes uint8 {list(wanted)}, got {got}")
        state.waiting += tuple(frames_of(chunk))

    def control(self, state: SyntheticState, control: Control) -> None:
        if control.kind == "prompt":
            state.prompt = _check_prompt(control.value)
        elif control.kind == "parameters":
            state.step_ms = _step_ms_of(control.value)
        else:
            super().control(state, control)

    def ready(self, state: SyntheticState) -> bool:
        return len(state.waiting) >= state.params.takes

    def batch_key(self, state: SyntheticState) -> Any:
        params = state.params
        return (params.takes, params.chunk_frames, params.height, params.width) if params.batch else None

    def step(self, states: Sequence[SyntheticState]) -> list[list[Chunk]]:
        for state in states:
            _misbehave(state)
        if wait_ms := max(state.step_ms for state in states):
            time.sleep(wait_ms / 1000)
        return [[_emit(state)] for state in states]


def colour(seed: int, prompt: str, chunk: int) -> np.ndarray:
    """The colour of the frames of chunk number `chunk`: uint8 [3]."""
    digest = hashlib.blake2s(f"{seed}:{chunk}:{prompt}".encode(), digest_size=3).digest()
    return np.frombuffer(digest, np.uint8)


def source_frame(seed: int, prompt: str, chunk: int, frame: int, height: int, width: int) -> np.ndarray:
    """Frame number `frame` of a source, uint8 [H, W, 3]; its first pixel is `frame`, lowest byte first."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour(seed, prompt, chunk)
    pixels[0, 0] = [frame & 255, frame >> 8 & 255, frame >> 16 & 255]
    return pixels


def frame_number(pixels: np.ndarray) -> int:
    """The number that a source wrote into a frame."""
    low, middle, high = (int(v) for v in pixels[0, 0])
    return low | middle << 8 | high << 16


def _emit(state: SyntheticState) -> Chunk:
    chunk = _transform(state) if state.params.takes else _source(state)
    state.touch(state.steps % 251 + 1)
    state.steps += 1
    return chunk


def _source(state: SyntheticState) -> Chunk:
    p, first = state.params, state.steps * state.params.chunk_frames
    ticks = round(TICKS_PER_SECOND / p.fps)
    frames = [
        source_frame(state.seed, state.prompt, state.steps, first + i, p.height, p.width) for i in range(p.chunk_frames)
    ]
    return Chunk("frames", np.stack(frames), pts=first * ticks, frame_ticks=ticks, frames=len(frames))


def _transform(state: SyntheticState) -> Chunk:
    takes, makes = state.params.takes, state.params.chunk_frames
    used, state.waiting = state.waiting[:takes], state.waiting[takes:]
    pixels = 255 - np.stack([used[i * takes // makes].pixels for i in range(makes)])
    ticks = used[0].ticks * takes // makes
    revision = max(w.revision for w in used)
    return Chunk("frames", pixels, pts=used[0].pts, frame_ticks=ticks, frames=makes, revision=revision)


def _misbehave(state: SyntheticState) -> None:
    if state.steps == state.params.fail_at:
        raise RuntimeError(f"told to fail at step {state.steps}")
    if state.steps == state.params.exit_at:
        os._exit(13)
    if state.steps == state.params.hang_at:
        threading.Event().wait()


def _check_prompt(prompt: Any) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRequest("prompt must be a text of at least one character")
    return prompt


def _check_range(name: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise BadRequest(f"{name} must be {allowed[0]}..{allowed[-1]}, got {value}")


def _step_ms_of(value: Any) -> float:
    if not isinstance(value, Mapping) or set(value) != {"step_ms"}:
        raise BadRequest("parameters that can change while it runs: step_ms")
    step_ms = value["step_ms"]
    if isinstance(step_ms, bool) or not isinstance(step_ms, int | float) or not 0 <= step_ms <= 600_000:
        raise BadRequest(f"step_ms must be 0..600000, got {step_ms!r}")
    return float(step_ms)
