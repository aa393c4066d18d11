"""What the service costs: a bare gRPC echo beside it, a bare model beside it, and the time to the first chunk.

`python -m riverrun.bench.overhead [--quick] [--only trips,calls,source,model,first] [--json FILE]`

This process is the client. The echo (`bench/echo.py`), the bare model (`bench/bare.py`) and the service
(`bench/service.py`) each run as processes of their own. Two that are compared take turns, round by round, since the
machine may be shared: a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from riverrun.bench.options import parsed
from riverrun.bench.report import tables, write_json
from riverrun.bench.service import Service, serving
from riverrun.bench.trips import OPTIONS, Case, Line, codec_ms, echo_line, session_line
from riverrun.client.aio import AsyncClient
from riverrun.graphs.driver import percentile
from riverrun.protos.wire import JPEG, RAW

GRAPH = """
name: echo
description: What a client sends comes back inverted.
stages: {synthetic: {model: synthetic}}
inputs: {frames: synthetic.frames}
outputs: {frames: synthetic.frames}
"""
CASES = tuple(Case(*size, codec) for size in ((64, 64), (480, 832)) for codec in (RAW, JPEG))
PARTS = ("trips", "calls", "source", "model", "first")
CHUNK_FRAMES = 12  # of a source: what the tiny LongLive and the released one make at a time
MODEL, MODEL_GRAPH = "longlive-world", "generate"
PROMPT, SEED = "a large red ball on green grass at noon", 7
STEP_MS = 200.0


@dataclass(frozen=True)
class Plan:
    """rounds: turns of each side. trips: frames sent one after another, for latency. frames: sent at once, for the
    rate. window: of those, on their way at a time. chunks: of the model, a turn. firsts: sessions opened."""

    rounds: int = 5
    trips: int = 60
    frames: int = 240
    window: int = 16
    chunks: int = 6
    firsts: int = 7


QUICK = Plan(rounds=3, trips=20, frames=48, chunks=3, firsts=3)


@dataclass(frozen=True)
class Turn:
    """What one side did in its turn. trips: seconds there and back, each alone. rate: frames a second."""

    trips: Sequence[float]
    rate: float


# ---- figures: pure ----


def compared(echo: Sequence[Turn], service: Sequence[Turn]) -> dict[str, float]:
    """Medians and 99th percentiles of the trips, milliseconds, and what the service adds to each; the rates."""
    a, b = ([1000 * s for turn in turns for s in turn.trips] for turns in (echo, service))
    return {
        "echo_ms": statistics.median(a),
        "service_ms": statistics.median(b),
        "added_ms": statistics.median(b) - statistics.median(a),
        "added_p99_ms": percentile(b, 0.99) - percentile(a, 0.99),
        **rates([turn.rate for turn in echo], [turn.rate for turn in service]),
    }


def rates(bare: Sequence[float], service: Sequence[float]) -> dict[str, float]:
    """Median rates, and the median of what the service reached of the bare one's in the same round."""
    return {
        "bare_fps": statistics.median(bare),
        "service_fps": statistics.median(service),
        "ratio": statistics.median(s / b for b, s in zip(bare, service, strict=True)),
    }


def costs(bare: Sequence[float], service: Sequence[float]) -> dict[str, float]:
    """Median processor time of a chunk, and the median of how much of the service's the model itself takes."""
    return {
        "bare_cpu_ms": statistics.median(bare),
        "service_cpu_ms": statistics.median(service),
        "cpu_ratio": statistics.median(b / s for b, s in zip(bare, service, strict=True)),
    }


def first_figures(took_ms: Sequence[float], chunk_ms: float) -> dict[str, float]:
    """Time to the first chunk, and its limit: 1.5 times one chunk's compute and 100 ms."""
    return {"first_ms": statistics.median(took_ms), "chunk_ms": chunk_ms, "limit_ms": 1.5 * chunk_ms + 100}


def spans(trips: Sequence[dict[str, Any]], calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a trip's time goes: gRPC (the echo's), the call of the actor, the codec, and what is left: the gateway."""
    called = {call["frame"]: call["ms"] for call in calls if call["way"] == "line"}
    found = []
    for trip in trips:
        parts = {"grpc_ms": trip["echo_ms"], "call_ms": called[trip["case"].split()[0]], "codec_ms": trip["codec_ms"]}
        rest = trip["service_ms"] - sum(parts.values())
        found.append({"case": trip["case"], **parts, "gateway_ms": rest, "service_ms": trip["service_ms"]})
    return found


# ---- measuring ----


async def measure_trips(service: grpc.aio.Channel, echo: grpc.aio.Channel, case: Case, plan: Plan) -> dict[str, Any]:
    """Frames there and back, one at a time and `plan.window` at a time."""
    async with echo_line(echo, case, False) as a, session_line(service, case, "echo", takes=1, chunk_frames=1) as b:
        for line in (a, b):
            await line.trips(plan.window, plan.window)
        turns: dict[Line, list[Turn]] = {a: [], b: []}
        for _ in range(plan.rounds):
            for line in (a, b):
                turns[line].append(await _turn(line, plan))
    codec = codec_ms(case)
    figures = compared(turns[a], turns[b])
    return {"case": case.name, **figures, "codec_ms": codec, "added_net_ms": figures["added_ms"] - codec}


async def _turn(line: Line, plan: Plan) -> Turn:
    trips = await line.trips(plan.trips, 1)
    began = time.perf_counter()
    await line.trips(plan.frames, plan.window)
    return Turn(trips, plan.frames / (time.perf_counter() - began))


async def measure_source(service: grpc.aio.Channel, echo: grpc.aio.Channel, case: Case, plan: Plan) -> dict[str, Any]:
    """A source's frames to the client. Each side runs alone: the other's credits are used up before its turn ends."""
    bare, ours = [], []
    for _ in range(plan.rounds):
        async with echo_line(echo, case, True) as line:
            bare.append(await _pulled(line, plan))
        async with session_line(service, case, "synthetic", chunk_frames=CHUNK_FRAMES) as line:
            ours.append(await _pulled(line, plan))
    return {"case": case.name, **rates(bare, ours), "codec_ms": codec_ms(case)}


async def _pulled(line: Line, plan: Plan) -> float:
    await line.pull(CHUNK_FRAMES * 2)
    return plan.frames / await line.pull(plan.frames)


async def measure_model(service: Service, bare: Bare, plan: Plan) -> dict[str, Any]:
    """Frames a second of the model in the plain loop, and of the same through the service, frames taken as they come.

    Between its turns the session stands still: its client takes nothing. The processor time of both is what a busy
    machine can't blur: of the service, that of its actor and its gateway together.
    """
    alone, ours, alone_cpu, ours_cpu = [], [], [], []
    async with AsyncClient(service.address) as rr:
        stream = await rr.stream(MODEL_GRAPH, prompt=PROMPT, seed=SEED, buffer=CHUNK_FRAMES)
        await _chunks(stream, 4)
        actor = next(actor.pid for actor in (await rr.status()).actors if actor.model == MODEL)
        answer = bare.ask(2)
        for _ in range(plan.rounds):
            await _still(rr, stream.session_id, sum(answer["ms"]) / 1000)
            answer = bare.ask(plan.chunks)
            alone.append(1000 * answer["frames"] / sum(answer["ms"]))
            alone_cpu.append(answer["cpu_ms"] / plan.chunks)
            await _chunks(stream, 4)  # what was made ahead, and the rest of what was begun
            began, cpu_s = time.perf_counter(), service.cpu_s(actor)
            await _chunks(stream, plan.chunks)
            ours.append(plan.chunks * CHUNK_FRAMES / (time.perf_counter() - began))
            ours_cpu.append(1000 * (service.cpu_s(actor) - cpu_s) / plan.chunks)
        await stream.close()
    return {"case": MODEL, **rates(alone, ours), **costs(alone_cpu, ours_cpu)}


async def _chunks(stream: Any, count: int) -> None:
    """Takes the frames of so many chunks."""
    for _ in range(count * CHUNK_FRAMES):
        await anext(stream)


async def _still(rr: AsyncClient, session: str, wait_s: float) -> None:
    """Returns when the session has made no step for `wait_s`: it has made ahead what it may."""
    steps = -1
    while steps != (steps := (await rr.session(session)).stages[0].steps):
        await asyncio.sleep(wait_s)


async def measure_first(address: str, graph: str, chunk_ms: float, plan: Plan, **params: Any) -> dict[str, Any]:
    """From `Sessions.Create` to the first frame at the client, the actor warm."""
    took = []
    async with AsyncClient(address) as rr:
        for n in range(plan.firsts + 1):
            began = time.perf_counter()
            stream = await rr.stream(graph, seed=n, **params)
            await anext(stream)
            took.append(1000 * (time.perf_counter() - began))
            await stream.close()
            await asyncio.sleep(2 * chunk_ms / 1000)  # the step in hand runs to its end, closed or not
    return {"case": graph, **first_figures(took[1:], chunk_ms)}


class Bare:
    """The other process with the model in it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: int | str) -> Any:
        """See `bench/bare.py`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@contextmanager
def child(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m` command, and the first line it prints; it ends when its standard input does.

    In a session of its own, as the service is: Linux shares the processors out by session (`sched_autogroup`), so on a
    busy machine a process that shares its session with others would get less time than the service does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdin=pipe, stdout=pipe, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with process:  # leaving closes its input and waits
        line = process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{command[0]} did not start")
        yield process, line


async def measure(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """The figures, by part."""
    figures: dict[str, Any] = {}
    async with _both() as (service, ours, echo):
        for case in CASES:
            if "trips" in parts:
                figures.setdefault("trips", []).append(await measure_trips(ours, echo, case, plan))
            if "source" in parts:
                figures.setdefault("source", []).append(await measure_source(ours, echo, case, plan))
        if "calls" in parts:
            with child("riverrun.bench.calls", "--json") as (_, answer):
                figures["calls"] = json.loads(answer)
        if "trips" in parts and "calls" in parts:
            figures["spans"] = spans(figures["trips"], figures["calls"])
        if "first" in parts:
            made = measure_first(service.address, "synthetic", STEP_MS, plan, step_ms=STEP_MS)
            figures["first"] = [await made]
        if "model" in parts or "first" in parts:
            with child("riverrun.bench.bare", MODEL, PROMPT, str(SEED)) as (process, _):
                bare = Bare(process)
                if "model" in parts:
                    figures["model"] = [await measure_model(service, bare, plan)]
                if "first" in parts:
                    chunk_ms = statistics.median(bare.ask("new") for _ in range(plan.firsts))
                    made = measure_first(service.address, MODEL_GRAPH, chunk_ms, plan, prompt=PROMPT)
                    figures["first"].append(await made)
    return figures


@asynccontextmanager
async def _both() -> AsyncIterator[tuple[Service, grpc.aio.Channel, grpc.aio.Channel]]:
    """The service, and channels to it and to the echo."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="riverrun-bench-")))
        (folder / "echo.yaml").write_text(GRAPH)
        service = stack.enter_context(serving(f"graphs=[{folder / 'echo.yaml'}]"))
        _, port = stack.enter_context(child("riverrun.bench.echo"))
        async with AsyncClient(service.address) as rr:
            await rr.models()  # waits for models that are loading: they are not what is measured
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=OPTIONS))
            for address in (service.address, f"127.0.0.1:{port}")
        ]
        yield service, channels[0], channels[1]


# ---- the tables ----


COLUMNS = {
    "trips": {
        "there and back": "case",
        "echo ms": "echo_ms",
        "service ms": "service_ms",
        "added ms": "added_ms",
        "codec ms": "codec_ms",
        "added without": "added_net_ms",
        "added p99": "added_p99_ms",
        "echo frames/s": "bare_fps",
        "service frames/s": "service_fps",
        "ratio": "ratio",
    },
    "calls": {"one call of an actor": "frame", "over": "way", "ms": "ms", "best tenth ms": "best_ms"},
    "spans": {
        "a trip's time": "case",
        "gRPC ms": "grpc_ms",
        "actor call ms": "call_ms",
        "codec ms": "codec_ms",
        "gateway ms": "gateway_ms",
        "service ms": "service_ms",
    },
    "source": {
        "from a source": "case",
        "bare frames/s": "bare_fps",
        "service frames/s": "service_fps",
        "ratio": "ratio",
    },
    "model": {
        "model": "case",
        "plain loop frames/s": "bare_fps",
        "service frames/s": "service_fps",
        "ratio": "ratio",
        "plain loop CPU ms a chunk": "bare_cpu_ms",
        "service CPU ms": "service_cpu_ms",
        "ratio by CPU time": "cpu_ratio",
    },
    "first": {"first chunk of": "case", "ms": "first_ms", "compute ms": "chunk_ms", "limit ms": "limit_ms"},
}


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed("overhead", __doc__, argv, PARTS)
    plan = QUICK if options.quick else Plan()
    figures = asyncio.run(measure(plan, options.only))
    print(tables(COLUMNS, figures))
    if options.json:
        write_json(options.json, "overhead", {"only": options.only, **asdict(plan)}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
