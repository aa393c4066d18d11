"""What a greedy tenant does to a modest one on its actor: the share of chunks that come in time, alone and beside.

`python -m riverrun.bench.tenants [--quick] [--json FILE]`

The model is timed: a step waits so long and frees the processor. The modest session plays at 1x, with half a second of
lead; the greedy ones read as fast as they can, no two sessions share a step, and together they want several times what
the actor can do. A chunk is in time if its first frame is there when the one before has been played; a late one moves
what comes after it. Alone and beside take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from riverrun.bench.options import parsed
from riverrun.bench.report import tables, write_json
from riverrun.bench.service import serving
from riverrun.client.aio import AsyncClient
from riverrun.client.commands.tokens import new

GRAPH = "synthetic"


@dataclass(frozen=True)
class Plan:
    """rounds: turns alone and beside. frames: of the modest session, a turn. greedy: sessions of the other tenant.
    step_ms: of every step. fps, chunk_frames: a chunk lasts `chunk_frames / fps` seconds."""

    rounds: int = 3
    frames: int = 480
    greedy: int = 12
    step_ms: float = 40.0
    fps: float = 16.0
    chunk_frames: int = 4
    lead_s: float = 0.5


QUICK = Plan(rounds=1, frames=160)


def in_time(arrived: Sequence[float], chunk_s: float) -> float:
    """The share of chunks that were there when they were to be played; the first one starts the clock. arrived: by
    chunk, seconds."""
    due, good = arrived[0], 0
    for at in arrived[1:]:
        due += chunk_s
        good += at <= due
        due = max(due, at)
    return good / (len(arrived) - 1)


async def measure(address: str, tokens: Sequence[str], plan: Plan) -> list[dict[str, Any]]:
    """tokens: the modest tenant's, and the greedy one's."""
    modest, greedy = tokens
    async with AsyncClient(address, token=modest) as rr, AsyncClient(address, token=greedy) as theirs:
        await _played(rr, plan, plan.frames // 4)  # warm
        alone, beside, made = [], [], []
        for _ in range(plan.rounds):
            alone.append(await _played(rr, plan, plan.frames))
            async with asyncio.TaskGroup() as tasks:
                counts = [0] * plan.greedy
                others = [tasks.create_task(_greedy(theirs, plan, counts, n)) for n in range(plan.greedy)]
                while not all(counts):
                    await asyncio.sleep(0.05)
                before, since = sum(counts), time.perf_counter()
                beside.append(await _played(rr, plan, plan.frames))
                made.append((sum(counts) - before) / (time.perf_counter() - since))
                for other in others:
                    other.cancel()
    row = {
        "alone": statistics.median(alone),
        "beside": statistics.median(beside),
        "worst": min(beside),
        "ratio": statistics.median(beside) / statistics.median(alone),
        "greedy_fps": statistics.median(made),
    }
    return [row]


COLUMNS = {
    "CPR alone": "alone",
    "beside": "beside",
    "worst turn": "worst",
    "beside / alone": "ratio",
    "greedy frames/s": "greedy_fps",
}


async def _played(rr: AsyncClient, plan: Plan, frames: int) -> float:
    stream = await rr.stream(GRAPH, frames=frames, lead=plan.lead_s, buffer=plan.chunk_frames, **_params(plan))
    times = [time.perf_counter() async for _ in stream]
    if len(times) != frames:
        raise RuntimeError(f"the modest session got {len(times)} of {frames} frames")
    return in_time(times[:: plan.chunk_frames], plan.chunk_frames / plan.fps)


async def _greedy(rr: AsyncClient, plan: Plan, counts: list[int], own: int) -> None:
    stream = await rr.stream(GRAPH, lead=0, buffer=64, seed=own, **_params(plan))
    try:
        async for _ in stream:
            counts[own] += 1
    finally:
        with contextlib.suppress(Exception):
            await asyncio.shield(stream.close())


def _params(plan: Plan) -> dict[str, Any]:
    return {"step_ms": plan.step_ms, "fps": plan.fps, "chunk_frames": plan.chunk_frames, "batch": False}


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed("tenants", __doc__, argv)
    plan = QUICK if options.quick else Plan()
    with tempfile.TemporaryDirectory(prefix="riverrun-tenants-") as folder:
        file, tokens = Path(folder, "tokens.yaml"), []
        for tenant in ("modest", "greedy"):
            new(tenant, tenant, "controller", file, Path(folder, tenant))
            tokens.append(Path(folder, tenant).read_text().strip())
        settings = ("models=[synthetic]", f"auth.tokens_file={file}", f"jobs_dir={folder}")
        with serving(*settings) as service:
            rows = asyncio.run(measure(service.address, tokens, plan))
    print(tables({"rows": COLUMNS}, {"rows": rows}))
    if options.json:
        write_json(options.json, "tenants", asdict(plan), {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
