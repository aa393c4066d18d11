"""Graphs of the schedules, and what each of their frames must be: by arithmetic, without a runner."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from schedule_models import mixed

from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.models.base import TICKS_PER_SECOND, Chunk
from riverrun.models.synthetic import source_frame

SIDE = 4
TICKS = round(TICKS_PER_SECOND / 16.0)
SEED = 5


@dataclass(frozen=True)
class Line:
    """One stage's frames by arithmetic. of: which frame before it a frame is made of. pts: when it is shown.

    ticks: to the next frame.
    """

    of: Callable[[int], int]
    pts: Callable[[int], int]
    ticks: int


@dataclass(frozen=True)
class Case:
    """A graph to run. models: by stage. source: the frame a number and a prompt make. line: numbers and times of the
    output's frames; None where chance decides. turned: how the pixels of a source's frame come out.

    made: how many frames come of so many of the source, in whole steps only. chunk: frames of a source's chunk.
    frames: of the first output; 0: until the client says so. sent: frames that the client sends, where it feeds the
    graph. joined: of a graph with two branches, how a frame comes out of one of the source for either.
    """

    graph: Graph
    params: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, str]
    line: Line | None
    turned: Callable[[np.ndarray], np.ndarray]
    made: Callable[[int], int]
    chunk: int
    frames: int
    sent: int = 0
    extra: Mapping[str, Line] = field(default_factory=dict)
    joined: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def source(self, number: int, prompt: str) -> np.ndarray:
        """A frame of the source."""
        return source_frame(SEED, prompt, number // self.chunk, number, SIDE, SIDE)

    def beside(self, port: str) -> tuple[int, int]:
        """How many frames of another output there are at least and at most, where the first one is `frames` long. It
        ends where the first says that it will, by its rate; once it is known that that ends before, also there."""
        assert self.line
        said, true = self.frames * TICKS, self.line.pts(self.frames - 1) + self.line.ticks
        least, most = (math.ceil(end / self.extra[port].ticks) for end in (min(said, true), said))
        return least, most

    def input_chunk(self, number: int) -> Chunk:
        frame = self.source(number, "input")[None]
        return Chunk("in", frame, pts=number * TICKS, frame_ticks=TICKS, frames=1)


START = Line(lambda n: n, lambda n: n * TICKS, TICKS)


def through(line: Line, takes: int, makes: int) -> Line:
    """After a stage that makes so many frames of so many."""

    def before(n: int) -> int:
        return n // makes * takes + n % makes * takes // makes

    ticks = line.ticks * takes // makes
    return Line(lambda n: line.of(before(n)), lambda n: line.pts(n // makes * takes) + n % makes * ticks, ticks)


def after(before: Callable[[int], int], takes: int, makes: int) -> Callable[[int], int]:
    """How many frames such a stage makes of what one before it does."""
    return lambda n: before(n) // takes * makes


def flipped(pixels: np.ndarray) -> np.ndarray:
    return 255 - pixels


def same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _source(dice: random.Random, chunk: int) -> dict[str, Any]:
    return {"height": SIDE, "width": SIDE, "chunk_frames": chunk, "state_bytes": dice.choice((0, 16)), "batch": False}


def _transform(dice: random.Random, takes: int, makes: int) -> dict[str, Any]:
    return {**_source(dice, makes), "takes": takes}


def draw(dice: random.Random) -> Case:
    """One of the graphs, its sizes by chance."""
    return dice.choice((_alone, _chain, _chain, _diamond, _fed, _fed, _chances, _chances))(dice)


def _all(n: int) -> int:
    return n


def _total(dice: random.Random, most: int = 18) -> int:
    return dice.choice((0, dice.randint(6, most)))


def _alone(dice: random.Random) -> Case:
    chunk = dice.choice((1, 2, 3, 4))
    graph = Graph("source", _stages("a"), {"frames": Endpoint("a", "frames")})
    return Case(graph, {"a": _source(dice, chunk)}, {"a": "synthetic"}, START, same, _all, chunk, _total(dice))


def _stages(names: str, **other: str) -> tuple[StageSpec, ...]:
    return tuple(StageSpec(name, other.get(name, "synthetic")) for name in names)


def _edge(source: str, target: str, port: str = "frames") -> Edge:
    return Edge(Endpoint(source, "frames"), Endpoint(target, port))


def _chain(dice: random.Random) -> Case:
    names = dice.choice(("ab", "abc"))
    chunk, line, made = dice.choice((1, 2, 4)), START, _all
    params, turned = {"a": _source(dice, chunk)}, same
    outputs, extra = {"frames": Endpoint(names[-1], "frames")}, {}
    for name in names[1:]:
        takes, makes = dice.choice(((1, 1), (2, 2), (2, 4), (3, 2), (4, 4), (6, 3)))
        params[name], line = _transform(dice, takes, makes), through(line, takes, makes)
        made = after(made, takes, makes)
        turned = flipped if turned is same else same
    if dice.random() < 0.3:
        outputs["raw"], extra = Endpoint("a", "frames"), {"raw": START}
    graph = Graph("chain", _stages(names), outputs, tuple(map(_edge, names, names[1:])))
    return Case(graph, params, dict.fromkeys(names, "synthetic"), line, turned, made, chunk, _total(dice), extra=extra)


def _diamond(dice: random.Random) -> Case:
    chunk, left, right = dice.choice((1, 2, 4)), dice.choice((1, 2)), dice.choice((1, 3))
    params = {
        "a": _source(dice, chunk),
        "b": _transform(dice, left, left),
        "c": _transform(dice, right, right),
        "d": {"height": SIDE, "width": SIDE},
    }
    edges = (_edge("a", "b"), _edge("a", "c"), _edge("b", "d", "left"), _edge("c", "d", "right"))
    graph = Graph("diamond", _stages("abcd", d="join"), {"frames": Endpoint("d", "frames")}, edges)
    models = {**dict.fromkeys("abc", "synthetic"), "d": "join"}

    def made(n: int) -> int:
        return min(n // left * left, n // right * right)

    def joined(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return mixed(flipped(left), flipped(right))

    return Case(graph, params, models, START, lambda p: joined(p, p), made, chunk, _total(dice), joined=joined)


def _fed(dice: random.Random) -> Case:
    names = dice.choice(("a", "ab"))
    line, turned, params, made = START, same, {}, _all
    for name in names:
        takes, makes = dice.choice(((1, 1), (2, 2), (2, 4), (3, 2), (4, 4)))
        params[name], line = _transform(dice, takes, makes), through(line, takes, makes)
        made = after(made, takes, makes)
        turned = flipped if turned is same else same
    edges = tuple(map(_edge, names, names[1:]))
    inputs = {"in": Endpoint("a", "frames")}
    graph = Graph("fed", _stages(names), {"frames": Endpoint(names[-1], "frames")}, edges, inputs)
    return Case(graph, params, dict.fromkeys(names, "synthetic"), line, turned, made, 1, 0, sent=dice.randint(8, 20))


def _chances(dice: random.Random) -> Case:
    chunk = dice.choice((1, 2, 3))
    params = {"a": _source(dice, chunk), "b": {"height": SIDE, "width": SIDE}}
    graph = Graph("chance", _stages("ab", b="chance"), {"frames": Endpoint("b", "frames")}, (_edge("a", "b"),))
    return Case(graph, params, {"a": "synthetic", "b": "chance"}, None, same, _all, chunk, dice.randint(6, 18))


def prompts(count: int) -> Sequence[str]:
    """By revision; the first is the one a session begins with."""
    return ["synthetic", *(f"prompt {n}" for n in range(1, count + 1))]
