"""A user's own model: written to a folder outside the tree by a fixture."""

MODEL = """
from dataclasses import dataclass

import numpy as np
from riverrun.models.base import Chunk, Description, Kind, Port, Snapshot, StreamModel


@dataclass(frozen=True)
class Params:
    level: int


@dataclass
class State:
    level: int
    steps: int = 0
    nbytes: int = 0

    def snapshot(self):
        return Snapshot({"level": self.level, "steps": self.steps}, {})


class Grey(StreamModel):
    Params = Params

    def __init__(self, factor):
        self.factor = factor

    def describe(self, params):
        return Description((), (Port("frames", Kind.FRAMES),), chunk_frames=2, fps=10, frame_shape=(2, 2))

    def open(self, params, seed):
        return State(params.level)

    def step(self, states):
        return [[self.make(state)] for state in states]

    def make(self, state):
        state.steps += 1
        data = np.full((2, 2, 2, 3), state.level * self.factor, np.uint8)
        return Chunk("frames", data, pts=(state.steps - 1) * 18000, frame_ticks=9000, frames=2)

    def restore(self, params, snapshot):
        return State(**snapshot.meta)
"""

YAML = "name: {name}\nclass: greys.mod:Grey\nstage: generation\nargs: {{{arg}: 3}}\n"
