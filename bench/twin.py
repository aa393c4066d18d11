"""A model that keeps an early State of its stream and, much later, steps it in turn with a late one.

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

    After `keep_at` steps, and after `compare_from`, its State is written to `folder`. Then both are restored as
    sessions of their own: a restored State lies together in memory, whatever its age. For `chunks` steps each step
    steps both, in turn first, on the same input under the same controls, and notes the milliseconds of each. The last
    one writes them to `folder`/times.json: {"late": [...], "early": [...]}.
    """

    def __init__(self, model: str, keep_at: int, compare_from: int, chunks: int, folder: str) -> None:
        self._inner: StreamModel = build(load_model(model))
        self.Params = self._inner.Params
        self._keep_at, self._compare_from, self._chunks = keep_at, compare_from, chunks
        self._folder = Path(folder)
        self._steps, self._is_done = 0, False
        self._params: Any = None
        self._twins: dict[str, Any] = {}
        self._times: dict[str, list[float]] = {"late": [], "early": []}

    def describe(self, params: Any) -> Description:
        return self._inner.describe(params)

    def open(self, params: Any, seed: int) -> Any:
        self._params, self._steps = params, 0
        return self._inner.open(params, seed)

    def restore(self, params: Any, snapshot: Snapshot) -> Any:
        return self._inner.restore(params, snapshot)

    def control(self, state: Any, control: Control) -> None:
        for each in (state, *self._twins.values()):
            self._inner.control(each, control)

    def push(self, state: Any, chunk: Chunk) -> None:
        for each in (state, *self._twins.values()):
            self._inner.push(each, chunk)

    def ready(self, state: Any) -> bool:
        return self._inner.ready(state)

    def finish(self, state: Any) -> list[Chunk]:
        return self._inner.finish(state)

    def step(self, states: Sequence[Any]) -> list[list[Chunk]]:
        made = self._inner.step(states)
        if self._twins:
            self._step_twins()
        self._steps += 1
        if self._is_done:  # a later session is only stepped
            return made
        if self._steps == self._keep_at:
            self._keep("early", states[0].snapshot())
        if self._steps == self._compare_from:  # from here on they are given what the session is
            self._keep("late", states[0].snapshot())
            self._twins = {name: self._inner.restore(self._params, self._kept(name)) for name in self._times}
        return made

    def _step_twins(self) -> None:
        turns = list(self._twins.items())
        for name, state in turns if self._steps % 2 else reversed(turns):
            began = time.perf_counter()
            self._inner.step([state])
            self._times[name].append(1000 * (time.perf_counter() - began))
        if len(self._times["late"]) == self._chunks:
            (self._folder / TIMES).write_text(json.dumps(self._times))
            self._twins, self._is_done = {}, True

    def _keep(self, name: str, snapshot: Snapshot) -> None:
        np.savez(self._folder / f"{name}.npz", allow_pickle=False, **dict(snapshot.tensors))
        (self._folder / f"{name}.json").write_text(json.dumps(snapshot.meta))

    def _kept(self, name: str) -> Snapshot:
        with np.load(self._folder / f"{name}.npz") as arrays:
            return Snapshot(json.loads((self._folder / f"{name}.json").read_text()), dict(arrays))
