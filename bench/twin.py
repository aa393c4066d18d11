"""A model that keeps an early State of its stream and, much later, steps it again beside the late one.

It runs where the model runs, in the stage actor, so that both States meet the same process, allocator and threads, as
old as they are by then. The early State waits on disk: in memory it would be part of what the benchmark watches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riverrun.actors.loading import build
from riverrun.configs import load_model
from riverrun.models.base import Chunk, Control, Description, Snapshot, StreamModel

TIMES = "times.json"


class Twin(StreamModel):
    """`model` (a name in `configs/models`), one session at a time.

    After `keep_at` steps its State is written to `folder`. From step `compare_from` on, for `chunks` steps, the State
    of then is restored as a second session; each step steps both, in turn first, under the same controls, and notes
    the milliseconds of each. The last one writes them to `folder`/times.json: {"late": [...], "early": [...]}.
    """

    def __init__(self, model: str, keep_at: int, compare_from: int, chunks: int, folder: str) -> None:
        self._inner: StreamModel = build(load_model(model))
        self.Params = self._inner.Params
        self._keep_at, self._compare_from, self._chunks = keep_at, compare_from, chunks
        self._folder = Path(folder)
        self._steps, self._is_done = 0, False
        self._params: Any = None
        self._early: Any = None
        self._times: dict[str, list[float]] = {"late": [], "early": []}

    def describe(self, params: Any) -> Description:
        return self._inner.describe(params)

    def open(self, params: Any, seed: int) -> Any:
        self._params, self._steps = params, 0
        return self._inner.open(params, seed)

    def restore(self, params: Any, snapshot: Snapshot) -> Any:
        return self._inner.restore(params, snapshot)

    def control(self, state: Any, control: Control) -> None:
        self._inner.control(state, control)
        if self._early is not None:
            self._inner.control(self._early, control)

    def push(self, state: Any, chunk: Chunk) -> None:
        self._inner.push(state, chunk)
        if self._early is not None:
            self._inner.push(self._early, chunk)

    def ready(self, state: Any) -> bool:
        return self._inner.ready(state)

    def finish(self, state: Any) -> list[Chunk]:
        return self._inner.finish(state)

    def step(self, states: Sequence[Any]) -> list[list[Chunk]]:
        made = self._inner.step(states) if self._early is None else self._step_both(states)
        self._steps += 1
        if self._is_done:  # a later session is only stepped
            return made
        if self._steps == self._keep_at:
            self._keep(states[0].snapshot())
        if self._steps == self._compare_from:  # from here on it is given what the late one is
            self._early = self._inner.restore(self._params, self._kept())
        return made

    def _step_both(self, states: Sequence[Any]) -> list[list[Chunk]]:
        turns = [("late", states), ("early", [self._early])]
        made = {}
        for name, pair in turns if self._steps % 2 else reversed(turns):
            began = time.perf_counter()
            made[name] = self._inner.step(pair)
            self._times[name].append(1000 * (time.perf_counter() - began))
        if len(self._times["late"]) == self._chunks:
            (self._folder / TIMES).write_text(json.dumps(self._times))
            self._early, self._is_done = None, True
        return made["late"]

    def _keep(self, snapshot: Snapshot) -> None:
        np.savez(self._folder / "early.npz", allow_pickle=False, **dict(snapshot.tensors))
        (self._folder / "early.json").write_text(json.dumps(snapshot.meta))

    def _kept(self) -> Snapshot:
        with np.load(self._folder / "early.npz") as arrays:
            return Snapshot(json.loads((self._folder / "early.json").read_text()), dict(arrays))
