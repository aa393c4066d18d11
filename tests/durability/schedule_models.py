"""Two models that the synthetic one is not: one that joins two inputs, and one that decides by chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from riverrun.models.base import Chunk, Description, Kind, Port, Snapshot, StreamModel
from riverrun.models.state import Rewindable, Waiting, frames_of


@dataclass(frozen=True)
class Size:
    """Of frames."""

    height: int = 4
    width: int = 4


@dataclass
class Held(Rewindable):
    """Frames that wait, by port; and what was decided, or is to be."""

    waiting: dict[str, tuple[Waiting, ...]]
    decided: int | None = None
    forced: int | None = None

    @property
    def nbytes(self) -> int:
        return sum(int(w.pixels.nbytes) for held in self.waiting.values() for w in held)

    def snapshot(self, kind: str = "exact") -> Snapshot:
        meta = {port: [list(w[1:]) for w in held] for port, held in self.waiting.items()}
        tensors = {f"{p}.{i}": w.pixels.copy() for p, held in self.waiting.items() for i, w in enumerate(held)}
        return Snapshot(meta, tensors)


class _Waits(StreamModel):
    """Frames in, frames out."""

    Params = Size
    ports: tuple[str, ...] = ()
    takes = 1

    def open(self, params: Size, seed: int) -> Held:
        return Held(dict.fromkeys(self.ports, ()))

    def restore(self, params: Size, snapshot: Snapshot) -> Held:
        return Held(
            {
                port: tuple(Waiting(snapshot.tensors[f"{port}.{i}"].copy(), *each) for i, each in enumerate(held))
                for port, held in snapshot.meta.items()
            }
        )

    def push(self, state: Held, chunk: Chunk) -> None:
        state.waiting = {**state.waiting, chunk.port: state.waiting[chunk.port] + tuple(frames_of(chunk))}
        state.decided = None

    def ready(self, state: Held) -> bool:
        return all(len(held) >= self.takes for held in state.waiting.values())

    def step(self, states: Sequence[Held]) -> list[list[Chunk]]:
        return [[self.one(state)] for state in states]

    def one(self, state: Held) -> Chunk:
        raise NotImplementedError


def mixed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What `Join` makes of two frames; says all of them where they are equal."""
    return left ^ (right << 1)


class Join(_Waits):
    """A frame of each of two inputs becomes one."""

    ports = ("left", "right")

    def describe(self, params: Size) -> Description:
        size = (params.height, params.width)
        inputs = tuple(Port(port, Kind.FRAMES, size) for port in self.ports)
        return Description(inputs, (Port("frames", Kind.FRAMES),), 1, 16.0, latency_frames=1, frame_shape=size)

    def one(self, state: Held) -> Chunk:
        (left, *lefts), (right, *rights) = (state.waiting[port] for port in self.ports)
        state.waiting = {"left": tuple(lefts), "right": tuple(rights)}
        pixels = mixed(left.pixels, right.pixels)[None]
        return Chunk("frames", pixels, left.pts, left.ticks, 1, revision=max(left.revision, right.revision))


@dataclass
class Chance(_Waits):
    """Of every two frames it gives one or both, as dice fall; each says in its second pixel how many and which."""

    dice: random.Random = field(default_factory=random.Random)
    ports = ("frames",)
    takes = 2

    def describe(self, params: Size) -> Description:
        size = (params.height, params.width)
        ports = ((Port("frames", Kind.FRAMES, size),), (Port("frames", Kind.FRAMES),))
        return Description(*ports, 2, 16.0, latency_frames=2, frame_shape=size)

    def one(self, state: Held) -> Chunk:
        used, state.waiting = state.waiting["frames"][:2], {"frames": state.waiting["frames"][2:]}
        count = state.forced or self.dice.choice((1, 2))
        state.decided, state.forced = count, None
        pixels = np.stack([w.pixels for w in used[:count]])
        for index in range(count):
            pixels[index, 0, 1] = (count, index, 7)
        return Chunk("frames", pixels, used[0].pts, used[0].ticks, count, revision=max(w.revision for w in used))

    def decisions(self, state: Held) -> Any:
        return state.decided

    def force(self, state: Held, decisions: Any) -> None:
        state.forced = decisions
