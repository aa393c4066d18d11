"""What does a viewer notice when a session moves to another actor?

`python -m riverrun.bench.migration [--quick] [--json FILE]`

One service with two actors of each model, one session at a time, its client taking frames as fast as they come. It is
moved back and forth; the pause is the longest gap between two chunks while it moves, less the median gap. Where it
goes is read off the gateway's log: memory taken in at the target while the stage steps on, then, while it stands still,
the wait for the step in hand, the copy out (into Ray's object store), the copy in, the record.

To compare with: the raw way of as many bytes as the State has, from `ray.put` in one actor until `ray.get` returns in
another, one uint8 tensor, in the same Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray

from riverrun.actors.controller import NAMESPACE
from riverrun.bench.chunks import firsts
from riverrun.bench.report import Cell, machine, table, write_json
from riverrun.bench.service import Service, serving
from riverrun.client.sync import Client, Stream, connect
from riverrun.client.types import Frame
from riverrun.configs import FOLDER
from riverrun.models.wan.sizes import human

PAIR = "name: pair\nclass: riverrun.models.synthetic:Synthetic\nstage: generation\nactor: {count: 2}\n"
MOVED = "name: moved\nstages: {a: {model: pair}}\noutputs: {frames: a.frames}\n"
LIVE = "actor: {count: 2}\n"
CHUNK_MS = 250.0
"""Of the synthetic model with a large State: its 4 frames, played at 16 a second."""
WAIT_S = 120.0


@dataclass(frozen=True)
class Case:
    """nbytes: of the State; 0: whatever the model has."""

    name: str
    graph: str
    params: dict[str, Any] = field(default_factory=dict)
    nbytes: int = 0


def synthetic(nbytes: int, step_ms: float) -> Case:
    return Case(f"synthetic, {human(nbytes)}", "moved", {"step_ms": step_ms, "state_bytes": nbytes}, nbytes)


@dataclass(frozen=True)
class Plan:
    """moves: of each session. still: chunks before each. raws: transfers that are timed. big: bytes of large States."""

    moves: int = 20
    still: int = 8
    raws: int = 5
    big: tuple[int, ...] = (256_000_000, 1_000_000_000)

    @property
    def cases(self) -> list[Case]:
        live = Case("tiny LongLive", "generate", {"prompt": "a large red ball on green grass at noon"})
        large = [synthetic(size, CHUNK_MS) for size in self.big]
        return [live, synthetic(1_000_000, CHUNK_MS / 5), *large]


QUICK = Plan(moves=6, still=5, big=(256_000_000,))


@dataclass(frozen=True)
class Figure:
    """Milliseconds. gap: median between two chunks. pause_p50, pause_max: longer than that while it moved. raw: see
    above (0: not asked). asked: from the request to its answer. spans: median of each part of a move.
    goal: 2 chunks, or 2 times raw and a chunk."""

    case: str
    moves: int
    gap: float
    pause_p50: float
    pause_max: float
    raw: float
    asked: float
    spans: dict[str, float] = field(default_factory=dict)

    @property
    def goal(self) -> float:
        return 2 * self.raw + self.gap if self.raw else 2 * self.gap


def pauses(arrivals: Sequence[float], moves: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    """(the median gap, how much longer the longest gap of each move was). arrivals: of chunks. moves: beginning and
    end; every chunk that was late by then came after at least one more."""
    gaps = list(pairwise(arrivals))

    def touched(gap: tuple[float, float]) -> bool:
        return any(gap[1] > began and gap[0] < ended for began, ended in moves)

    median = statistics.median(after - before for before, after in gaps if not touched((before, after)))
    longest = [max(b - a for a, b in gaps if b > began and a < ended) for began, ended in moves]
    return median, [long - median for long in longest]


class Watcher:
    """Takes a stream's frames on a thread of its own and notes when each chunk begins."""

    def __init__(self, stream: Stream) -> None:
        self.arrivals: list[float] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._watch, args=(stream,), daemon=True)
        self._thread.start()

    def until(self, count: int) -> None:
        """Returns when so many chunks have begun. Raises TimeoutError."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.arrivals) >= count, timeout=WAIT_S):
                raise TimeoutError(f"{len(self.arrivals)} chunks came, {count} were waited for")

    def more(self, count: int) -> None:
        self.until(len(self.arrivals) + count)

    def end(self) -> None:
        self._thread.join(WAIT_S)

    def _watch(self, stream: Stream) -> None:
        for _ in firsts(_in_order(stream)):
            with self._news:
                self.arrivals.append(time.monotonic())
                self._news.notify()


def _in_order(stream: Stream) -> Iterator[Frame]:
    for due, frame in enumerate(stream):
        if frame.number != due:
            raise AssertionError(f"frame {frame.number} came where {due} was due")
        yield frame


def spans_of(log: str) -> dict[str, float]:
    """Median milliseconds of each part of the moves that a gateway tells of; the first move is left out, as it brings
    each actor's memory about."""
    moves = [re.findall(r"([a-z ]+) ([\d.]+) ms", line) for line in re.findall(r" moved to \S+: (.*)", log)]
    parts: dict[str, list[float]] = {}
    for name, ms in (part for move in moves[1:] for part in move):
        parts.setdefault(name.strip(), []).append(float(ms))
    return {name: statistics.median(times) for name, times in parts.items()}


def moved(rr: Client, log: Path, case: Case, plan: Plan, raw_ms: float) -> Figure:
    """One session, moved so often."""
    told = log.stat().st_size
    stream = rr.stream(case.graph, seed=1, lead=0.0, **case.params)
    watcher = Watcher(stream)
    watcher.more(plan.still)
    moves = []
    for _ in range(plan.moves + 1):
        watcher.more(plan.still)
        began = time.monotonic()
        rr.migrate_session(stream.session_id)
        moves.append((began, time.monotonic()))
    watcher.more(plan.still)
    stream.close()
    watcher.end()
    gap, longer = pauses(watcher.arrivals, moves[1:])  # the first brings each actor's memory about
    asked = statistics.median(ended - began for began, ended in moves[1:])
    with log.open() as lines:
        lines.seek(told)
        spans = spans_of(lines.read())
    pause, longest = statistics.median(longer), max(longer)
    return Figure(case.name, plan.moves, 1000 * gap, 1000 * pause, 1000 * longest, raw_ms, 1000 * asked, spans)


# ---- the raw way ----


class Source:
    def __init__(self, nbytes: int) -> None:
        self._data = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)

    def send(self, target: ray.actor.ActorHandle) -> float:
        """Seconds until the tensor is in the target's hands."""
        began = time.monotonic()
        got = ray.get(target.take.remote([ray.put(self._data)]))
        return float(got - began)


class Target:
    def take(self, refs: list[ray.ObjectRef]) -> float:
        """When it was there; the machine has one monotonic clock."""
        data = ray.get(refs[0])
        at = time.monotonic()
        assert data.dtype == np.uint8
        return at


def raw_ms(nbytes: int, repeats: int) -> float:
    """Median, after one that brings the memory about."""
    source, target = ray.remote(num_cpus=0)(Source).remote(nbytes), ray.remote(num_cpus=0)(Target).remote()
    took = [ray.get(source.send.remote(target)) for _ in range(repeats + 1)]
    ray.kill(source)
    ray.kill(target)
    return 1000 * statistics.median(took[1:])


# ---- the whole ----


@contextlib.contextmanager
def cluster(store_bytes: int) -> Iterator[str]:
    """The address of a Ray of the bench's own, with room for what moves. As `actors.serve.ray_of` else."""
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=0,
        object_store_memory=store_bytes,
        namespace=NAMESPACE,
        logging_level="error",
        _system_config={"task_events_report_interval_ms": 0},
    )
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@contextlib.contextmanager
def pair_service(store_bytes: int, *overrides: str) -> Iterator[Service]:
    """A service with two actors of each model."""
    with tempfile.TemporaryDirectory(prefix="riverrun-bench-") as name, cluster(store_bytes) as ray_address:
        folder = Path(name)
        (folder / "pair.yaml").write_text(PAIR)
        (folder / "moved.yaml").write_text(MOVED)
        live = (FOLDER / "models" / "longlive-world.yaml").read_text()
        (folder / "live.yaml").write_text(live + LIVE)
        models = f"models=[{folder}/pair.yaml,world-text,{folder}/live.yaml]"
        kept = [f"checkpoints.uri={folder}/checkpoints", f"ray_address={ray_address}", "drain_s=0.2", *overrides]
        with serving(models, f"graphs=[{folder}/moved.yaml]", *kept) as service:
            yield service


def measure(plan: Plan) -> list[Figure]:
    figures = []
    store_bytes = max(512 << 20, int(2.5 * max(plan.big)))
    no_others = ("checkpoints.chunks=1000000", "checkpoints.seconds=1000000")
    with pair_service(store_bytes, *no_others) as service, connect(service.address) as rr:
        while not all(actor.up for actor in rr.status().actors):
            time.sleep(0.2)
        for case in plan.cases:
            raw = raw_ms(case.nbytes, plan.raws) if case.nbytes > 100_000_000 else 0.0
            figures.append(moved(rr, service.log, case, plan, raw))
            print(figures[-1], flush=True)
    return figures


def show(figures: Sequence[Figure]) -> str:
    columns = ("session", "moves", "ms a chunk", "pause ms", "longest", "in chunks", "raw ms", "goal ms", "asked ms")
    rows: list[list[Cell]] = [
        [f.case, f.moves, f.gap, f.pause_p50, f.pause_max, f.pause_p50 / f.gap, f.raw or None, f.goal, f.asked]
        for f in figures
    ]
    parts = list(dict.fromkeys(name for f in figures for name in f.spans))
    spent: list[list[Cell]] = [[f.case, *(f.spans.get(name) for name in parts)] for f in figures]
    return f"{table(columns, rows)}\n\n{table(('session', *parts), spent)}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.migration", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer moves, no State of 1 GB")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else Plan()
    before, figures = machine().load, measure(plan)
    print(f"{show(figures)}\nload before {before}, after {machine().load}")
    if options.json:
        rows = [{**asdict(figure), "goal": figure.goal} for figure in figures]
        write_json(options.json, "migration", asdict(plan), {"moves": rows})


if __name__ == "__main__":
    main()
