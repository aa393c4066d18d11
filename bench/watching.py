"""What it costs to be watched: the service's hot path with metrics and without, and each call of an observer by itself.

`python -m riverrun.bench.watching [--quick] [--only calls,stream] [--json FILE]`

calls: microseconds of processor time for one chunk of 12 frames, all that an observer is told of it. stream: frames
from a source without step time, at a service without metrics, at one with them that is scraped in every turn, and at
the first one again, round by round. The machine may be shared: processor time a frame says more than frames a second
there, and the ratio of the first to itself shows by how much a round differs when nothing is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import numpy as np

from riverrun.actors.metrics import Metrics
from riverrun.actors.telemetry import Watch
from riverrun.bench.options import parsed
from riverrun.bench.report import tables, write_json
from riverrun.bench.service import Service, free_port, serving
from riverrun.bench.trips import OPTIONS, Case, session_line
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame
from riverrun.graphs.observer import Observer
from riverrun.graphs.stage import Epoch, StepReply, StepRequest
from riverrun.models.base import Chunk
from riverrun.protos.wire import RAW

CHUNK_FRAMES = 12
SIZES = (1, CHUNK_FRAMES)
PARTS = ("calls", "stream")
GRAPH = Graph("synthetic", (StageSpec("gen", "synthetic"),), {"frames": Endpoint("gen", "frames")})


@dataclass(frozen=True)
class Plan:
    """rounds: turns of each side. frames: taken in one. calls: chunks an observer is told of in one."""

    rounds: int = 7
    frames: int = 2400
    calls: int = 3000


QUICK = Plan(rounds=3, frames=480, calls=500)


# ---- calls ----


def observers() -> dict[str, Observer]:
    """Who may be told, by name."""
    metrics = Metrics()
    found = {"nobody": Watch(), "metrics": Watch(metrics)}
    with contextlib.suppress(ImportError):  # the extra is not needed for the rest
        from opentelemetry.sdk.trace import TracerProvider

        from riverrun.actors.tracing import Spans

        spans = Spans(TracerProvider())  # nothing is exported: that is another thread's time
        found["metrics and traces, this chunk not"] = Watch(metrics, spans)
        found["metrics and traces, this chunk too"] = Watch(metrics, spans, every=1)
    return {name: watch.observer(GRAPH, "s1") for name, watch in found.items()}


def one_chunk(observer: Observer) -> Callable[[], None]:
    """All that is told of a chunk of `CHUNK_FRAMES` frames: asked, answered, fetched, and each frame sent."""
    data = np.zeros((CHUNK_FRAMES, 2, 2, 3), np.uint8)
    request = StepRequest("s1", Epoch(1, "n"), 0)
    reply = StepReply(0, (Chunk("frames", data, 0, 5625, CHUNK_FRAMES),), compute_ms=20.0, wait_ms=1.0)

    def tell() -> None:
        answered = observer.answered("gen", observer.asks("gen", request), reply, 0.025)
        trace = observer.fetched("gen", answered.chunks[0], 0.001).trace
        for i in range(CHUNK_FRAMES):
            observer.sent(Frame("frames", i, 0, i, 0, 1, 0, data[i], trace), "raw", 12, 0.0001, 0.0001)

    return tell


def measure_calls(plan: Plan) -> list[dict[str, Any]]:
    """Microseconds a chunk, the least of the rounds: processor time, so that a neighbour counts as little as can be."""
    rows = []
    for name, observer in observers().items():
        tell, took = one_chunk(observer), []
        for _ in range(plan.rounds):
            began = time.thread_time()
            for _ in range(plan.calls):
                tell()
            took.append((time.thread_time() - began) / plan.calls * 1e6)
        rows.append({"case": name, "us": min(took)})
    return rows


# ---- stream ----


@dataclass(frozen=True)
class Turn:
    """fps: frames a second. cpu_us: processor time of the gateway's process, microseconds a frame."""

    fps: float
    cpu_us: float


def compared(off: Sequence[Turn], on: Sequence[Turn], again: Sequence[Turn]) -> dict[str, float]:
    """Medians, and medians over the rounds of with metrics to without, and of without to itself."""
    figures: dict[str, float] = {}
    for what in ("fps", "cpu_us"):
        a, b, c = ([getattr(turn, what) for turn in turns] for turns in (off, on, again))
        base = [(first + second) / 2 for first, second in zip(a, c, strict=True)]
        figures |= {
            f"{what}_off": statistics.median(base),
            f"{what}_on": statistics.median(b),
            f"{what}_ratio": statistics.median(y / x for x, y in zip(base, b, strict=True)),
            f"{what}_same": statistics.median(y / x for x, y in zip(a, c, strict=True)),
        }
    return figures


async def measure_stream(plan: Plan) -> list[dict[str, Any]]:
    """Frames a second at both services, which take turns."""
    port = free_port()
    with serving("models=[synthetic]") as off, serving("models=[synthetic]", f"metrics_port={port}") as on:
        async with (
            grpc.aio.insecure_channel(off.address, options=OPTIONS) as plain,
            grpc.aio.insecure_channel(on.address, options=OPTIONS) as watched,
        ):
            rows = []
            for size in SIZES:
                turns: list[list[Turn]] = [[], [], []]
                for _ in range(plan.rounds):
                    turns[0].append(await _turn(off, plain, size, plan))
                    turns[1].append(await _turn(on, watched, size, plan, port))
                    turns[2].append(await _turn(off, plain, size, plan))
                rows.append({"case": f"chunks of {size}", **compared(*turns)})
            return rows


async def _turn(
    service: Service, channel: grpc.aio.Channel, chunk_frames: int, plan: Plan, scraped: int | None = None
) -> Turn:
    """A session of its own. scraped: the port at which the metrics are read in the middle of it."""
    async with session_line(channel, Case(64, 64, RAW), "synthetic", chunk_frames=chunk_frames) as line:
        await line.pull(2 * CHUNK_FRAMES)
        used = service.cpu_s()
        took = await line.pull(plan.frames // 2)
        scrape = asyncio.create_task(asyncio.to_thread(_scrape, scraped)) if scraped else None
        took += await line.pull(plan.frames - plan.frames // 2)
        if scrape:
            await scrape
        return Turn(plan.frames / took, (service.cpu_s() - used) / plan.frames * 1e6)


def _scrape(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        answer.read()


# ---- the tables ----


COLUMNS = {
    "calls": {"told of a chunk": "case", "µs": "us"},
    "stream": {
        "64×64 raw": "case",
        "frames/s without": "fps_off",
        "with metrics": "fps_on",
        "ratio": "fps_ratio",
        "to itself": "fps_same",
        "µs a frame without": "cpu_us_off",
        "with ": "cpu_us_on",
        "ratio ": "cpu_us_ratio",
        "to itself ": "cpu_us_same",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed("watching", __doc__, argv, PARTS)
    plan = QUICK if options.quick else Plan()
    figures: dict[str, Any] = {}
    if "calls" in options.only:
        figures["calls"] = measure_calls(plan)
    if "stream" in options.only:
        figures["stream"] = asyncio.run(measure_stream(plan))
    print(tables(COLUMNS, figures))
    if options.json:
        write_json(options.json, "watching", {"only": options.only, **asdict(plan)}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
