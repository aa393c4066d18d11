"""How many chunks a second one actor makes of several sessions that are ready together, as one batch and one by one.

    python -m riverrun.bench.batching [--quick] [--json FILE]

The actor's core runs here, without Ray: requests queue, the batch loop is turned by hand, so that both ways of stepping
do just the same to the same weights. They take turns, batched and alone, session for session at the same places of
their streams, and each turn is timed: on the clock, and by what the computing thread had of a processor, which other
programs of a busy machine can't lengthen as much. Sessions have prompts, positions and cache fills of their own. From
equal States, one batched step is then compared with the same steps alone: latents and what the States keep.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from riverrun.actors.loading import build, set_threads
from riverrun.actors.stage import StageWorker
from riverrun.bench.report import machine, table, write_json
from riverrun.configs import load_model
from riverrun.graphs.stage import Epoch, OpenRequest, StepRequest
from riverrun.models.base import StreamModel

COUNTS = (1, 2, 4, 8)
EPOCH = Epoch(1, "bench")


@dataclass(frozen=True)
class Case:
    """A model as it is measured. params: of session number n. embeds: it is sent its prompt as an embedding."""

    name: str
    model: Callable[[], StreamModel]
    params: Callable[[int], dict[str, Any]]
    embeds: bool


@dataclass(frozen=True)
class Rate:
    """sessions: ready together. batched, alone: chunks/s by the clock. batched_cpu_ms, alone_cpu_ms: processor time a
    chunk. All are medians over the turns. gain: of batched over alone, by processor time or, for a model that only
    waits, by the clock."""

    model: str
    sessions: int
    batched: float
    alone: float
    batched_cpu_ms: float
    alone_cpu_ms: float
    gain: float


@dataclass(frozen=True)
class Difference:
    """The largest difference between a batched step and the same alone, relative to the largest value (at least 1)."""

    name: str
    largest: float


class Actor:
    """A worker with its sessions, turned by hand."""

    def __init__(self, case: Case, model: StreamModel, sessions: int, max_batch: int | None) -> None:
        self._worker = StageWorker(model, "bench", sessions, max_batch=max_batch)
        self._threads = ThreadPoolExecutor(sessions)
        self._due = dict.fromkeys(range(sessions), 0)
        for n in self._due:
            text = embedding(model, n) if case.embeds else None
            self._worker.open(OpenRequest(str(n), EPOCH, case.params(n), n, text))
            for _ in range(1 + 2 * n):  # no two at the same place; from the third on the cache is full
                self.step([n])

    def step(self, sessions: Sequence[int]) -> tuple[float, float]:
        """One step of each; the seconds it took, and those of the processor."""
        requests = [StepRequest(str(n), EPOCH, self._due[n], acked=self._due[n] - 1) for n in sessions]
        futures = [self._threads.submit(self._worker.step, request) for request in requests]
        while self._worker._arrivals.qsize() < len(requests):
            time.sleep(0)
        began, worked = time.perf_counter(), time.thread_time()
        while self._worker.run_once():
            pass
        took = time.perf_counter() - began, time.thread_time() - worked
        for n, future in zip(sessions, futures, strict=True):
            future.result()
            self._due[n] += 1
        return took

    def close(self) -> None:
        self._threads.shutdown()
        for n in self._due:
            self._worker.close(str(n), EPOCH)


def embedding(model: Any, number: int) -> np.ndarray:
    """A prompt's, float32 [text_len, text_dim]; random, for what a prompt says costs nothing."""
    shape = model.model.config.text_len, model.model.config.text_dim
    return np.random.default_rng(number).standard_normal(shape, dtype=np.float32)


def rate(case: Case, model: StreamModel, sessions: int, turns: int) -> Rate:
    """Batched and alone by turns, which of them first by turns too, so that a busy machine is unfair to neither."""
    together, apart = (Actor(case, model, sessions, batch) for batch in (None, 1))
    times: dict[Actor, list[tuple[float, float]]] = {together: [], apart: []}
    try:
        for turn in range(turns):
            for actor in (together, apart) if turn % 2 else (apart, together):
                times[actor].append(actor.step(range(sessions)))
    finally:
        together.close()
        apart.close()
    (batched, batched_cpu), (alone, alone_cpu) = (_medians(times[actor]) for actor in (together, apart))
    gain = alone_cpu / batched_cpu if case.embeds else alone / batched
    per_chunk = 1000 / sessions
    return Rate(
        case.name, sessions, sessions / batched, sessions / alone, batched_cpu * per_chunk, alone_cpu * per_chunk, gain
    )


def _medians(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of the clock's seconds, and of the processor's."""
    return statistics.median(clock for clock, _ in times), statistics.median(cpu for _, cpu in times)


def differences(model: Any, sessions: int) -> list[Difference]:
    """One block of LongLive from equal States, batched and alone: clean latents, then what the whole step leaves."""
    largest: dict[str, float] = {}
    for part, run in {"latents": _latents, "State": _kept}.items():
        states = [_ahead(model, n) for n in range(sessions)]
        twins = [model.restore(state.params, state.snapshot()) for state in states]
        alone = [run(model, [state])[0] for state in states]
        for one, other in zip(alone, run(model, twins), strict=True):
            for name, array in one.items():
                size = max(1.0, float(np.abs(array).max(initial=0)))
                apart = float(np.abs(array - other[name]).max(initial=0)) / size
                key = f"{part}: {name.partition('/')[0]}"
                largest[key] = max(largest.get(key, 0.0), apart)
    return [Difference(name, apart) for name, apart in sorted(largest.items())]


def _ahead(model: Any, number: int) -> Any:
    state = model.open(model.Params(prompt="x"), number)
    state.embedding = torch.from_numpy(embedding(model, number))
    state.stream.text = model._text(state.embedding)
    for _ in range(1 + 2 * number):
        model.step([state])
    return state


@torch.no_grad()
def _latents(model: Any, states: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    made = model.sampler.block([state.stream for state in states], lambda draw: model._noise(states, draw))
    return [{"clean": latents.numpy()} for latents in made]


def _kept(model: Any, states: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    model.step(states)
    floats = [{n: a for n, a in state.snapshot().tensors.items() if a.dtype == np.float32} for state in states]
    return [dict(kept) for kept in floats]


def cases() -> list[Case]:
    synthetic = {"height": 64, "width": 64}
    return [
        Case("longlive-world", lambda: build(load_model("longlive-world")), lambda n: {"prompt": f"prompt {n}"}, True),
        Case("synthetic, 0 ms", lambda: build(load_model("synthetic")), lambda n: synthetic, False),
        Case("synthetic, 5 ms", lambda: build(load_model("synthetic")), lambda n: {**synthetic, "step_ms": 5.0}, False),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="of torch, as an actor has by default")
    parser.add_argument("--json", help="also write the figures to this file")
    asked = parser.parse_args()
    set_threads(asked.threads)
    turns, counts = (2, COUNTS[::2]) if asked.quick else (12, COUNTS)
    print(f"{machine().processor}, {asked.threads} torch thread(s), medians of {turns} turns", flush=True)
    rates: list[Rate] = []
    apart: list[Difference] = []
    for case in cases():
        model = case.model()
        rates += [rate(case, model, count, turns) for count in counts]
        if case.embeds:
            apart = differences(model, 2 if asked.quick else 4)
    clock, processor = ("batched chunks/s", "one by one"), ("batched CPU ms/chunk", "one by one")
    print(table(["model", "sessions", *clock, *processor, "gain"], [list(asdict(r).values()) for r in rates]))
    print("\none batched step of several sessions against the same alone, from equal States:")
    print(table(["what", "largest difference"], [[d.name, f"{d.largest:.1e}"] for d in apart]))
    worst = max(d.largest for d in apart)
    print(f"largest: {worst:.1e}, bound 1e-5: {'kept' if worst <= 1e-5 else 'BROKEN'}")
    if asked.json:
        figures = {"rates": [asdict(r) for r in rates], "differences": [asdict(d) for d in apart]}
        write_json(asked.json, "batching", vars(asked), figures)


if __name__ == "__main__":
    main()
