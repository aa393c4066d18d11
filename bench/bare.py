"""A model in a plain loop: `python -m riverrun.bench.bare MODEL PROMPT SEED`, without service, Ray or sockets.

For each line on standard input, a number of chunks, it steps its one session so many times and prints as JSON the
milliseconds of each, the frames made, and the milliseconds of processor time for all. The line "new" begins another
session, and prints the milliseconds until its first chunk was there, prompt encoding included.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from riverrun.actors.loading import build, set_threads
from riverrun.configs import load_model
from riverrun.models.base import Control, StreamModel, parse_params


class Bare:
    """One model and its encoder, loaded as the service's actor loads them: same weights, same thread count."""

    def __init__(self, name: str, prompt: str, seed: int) -> None:
        config = load_model(name)
        set_threads(config.actor.threads)
        self._model: StreamModel = build(config)
        set_threads(config.actor.threads)  # building imported torch
        self._encoder = build(load_model(config.encoder)) if config.encoder else None
        self._prompt, self._seed = prompt, seed
        self._state: Any = self._open()

    def new(self) -> float:
        """Milliseconds from nothing to the first chunk of another session."""
        began = time.perf_counter()
        self._state = self._open()
        self._model.step([self._state])
        return 1000 * (time.perf_counter() - began)

    def chunks(self, count: int) -> dict[str, Any]:
        """Milliseconds of each chunk, and frames and processor time of all."""
        took, frames, cpu = [], 0, time.process_time()
        for _ in range(count):
            began = time.perf_counter()
            (chunks,) = self._model.step([self._state])
            took.append(1000 * (time.perf_counter() - began))
            frames += sum(chunk.frames for chunk in chunks)
        return {"ms": took, "frames": frames, "cpu_ms": 1000 * (time.process_time() - cpu)}

    def _open(self) -> Any:
        state = self._model.open(parse_params(self._model.Params, {"prompt": self._prompt}), self._seed)
        if self._encoder:
            embedding = np.asarray(self._encoder.encode([self._prompt])[0], np.float32)
            self._model.control(state, Control(0, "prompt", self._prompt, embedding))
        return state


def main() -> None:
    """Answers lines until there are no more."""
    bare = Bare(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print("ready", flush=True)
    for line in sys.stdin:
        answer = bare.new() if line.strip() == "new" else bare.chunks(int(line))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
