"""Does anything grow with the length of a stream? One session, 1,000 chunks, through the whole service.

`python -m riverrun.bench.horizon [--quick] [--chunks N] [--model synthetic|longlive-world] [--json FILE]`

The service runs as its own process tree (`bench/service.py`); this process is its client over gRPC and changes the
prompt every `--switch` chunks, so that the control log is part of what might grow. Every few chunks it notes the memory
of each process of the tree and the number of keys in the store. Printed are, for each process, the median after the
warm-up against the median at the end; the keys; and the time of a chunk then and at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from riverrun.bench.report import Cell, table, write_json
from riverrun.bench.service import Memory, Service, serving
from riverrun.client.sync import Stream, connect

CHUNKS, QUICK_CHUNKS = 1000, 150
LIMIT_PERCENT = 2.0
PROMPTS = ("a small red ball on green grass at noon", "a large blue cube on yellow sand in the evening")
GRAPHS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "synthetic": (
        "synthetic",
        {"step_ms": 10.0, "state_bytes": 16 << 20, "chunk_frames": 12, "height": 96, "width": 96},
    ),
    "longlive-world": ("generate", {}),
}


@dataclass(frozen=True)
class Plan:
    """chunks: in all. settled: the chunk from which nothing may grow. window: chunks that make a median.
    every: chunks between two samples. switch: chunks between two prompts."""

    chunks: int
    settled: int
    window: int
    every: int
    switch: int

    @staticmethod
    def of(chunks: int, switch: int) -> Plan:
        """For 1,000 chunks: settled after 300, windows of 100, a sample every 5."""
        return Plan(chunks, chunks * 3 // 10, max(1, chunks // 10), max(1, chunks // 200), switch)


@dataclass(frozen=True)
class Sample:
    """What was measured when chunk `chunk` had come. memory: by pid. keys: in the store."""

    chunk: int
    memory: Mapping[int, Memory]
    keys: int


@dataclass(frozen=True)
class Growth:
    """One process: MiB after the warm-up and at the end (medians), and the change in percent.

    own_percent: the same without shared pages (Ray's object store is mapped into every worker). ours: not one of Ray's.
    """

    process: str
    ours: bool
    settled_mib: float
    end_mib: float
    percent: float
    own_percent: float


def growths(samples: Sequence[Sample], names: Mapping[int, str], plan: Plan) -> list[Growth]:
    """For each process that was there after the warm-up and at the end; Ray's own last."""
    early = [s for s in samples if plan.settled <= s.chunk < plan.settled + plan.window]
    late = [s for s in samples if s.chunk >= plan.chunks - plan.window]
    lasting = [pid for pid in names if pid in late[-1].memory and pid in early[0].memory]
    return sorted((_growth(pid, names[pid], early, late) for pid in lasting), key=lambda growth: not growth.ours)


def _growth(pid: int, name: str, early: Sequence[Sample], late: Sequence[Sample]) -> Growth:
    def median(samples: Sequence[Sample], of: Callable[[Memory], int]) -> float:
        return statistics.median(of(s.memory[pid]) for s in samples if pid in s.memory)

    before, after = median(early, lambda m: m.rss), median(late, lambda m: m.rss)
    own_before, own_after = median(early, lambda m: m.own), median(late, lambda m: m.own)
    return Growth(
        process=name,
        ours=not name.startswith("ray "),
        settled_mib=before / 2**20,
        end_mib=after / 2**20,
        percent=100 * (after / before - 1),
        own_percent=100 * (own_after / own_before - 1) if own_before else 0.0,
    )


def follow(stream: Stream, service: Service, plan: Plan) -> tuple[list[Sample], list[float]]:
    """Takes the frames; samples and changes the prompt on the way. Also the milliseconds of each chunk."""
    samples, took, chunk, began = list[Sample](), list[float](), -1, time.perf_counter()
    for frame in stream:
        if frame.chunk == chunk:
            continue
        now = time.perf_counter()
        chunk = frame.chunk
        took.append(1000 * (now - began))
        if chunk % plan.every == 0:
            samples.append(Sample(chunk, service.memory(), service.keys()))
        if chunk and chunk % plan.switch == 0:
            stream.prompt(PROMPTS[chunk // plan.switch % len(PROMPTS)])
        if chunk == plan.chunks - 1:
            break
        began = now
    if chunk != plan.chunks - 1:
        raise RuntimeError(f"the stream ended at chunk {chunk} of {plan.chunks}: {stream.ended_reason}")
    return samples, took


def measure(model: str, plan: Plan) -> dict[str, Any]:
    """Runs the service and one session; the figures that `show` prints and `--json` writes."""
    graph, params = GRAPHS[model]
    with serving() as service, connect(service.address) as rr:
        rr.models()  # waits for models that are loading: they are not what is measured
        print(f"{plan.chunks} chunks of {graph!r} at {service.address} …", flush=True)
        with rr.stream(graph, prompt=PROMPTS[0], seed=1, **params) as stream:
            samples, took = follow(stream, service, plan)
        names = service.names(rr.status())
    found = growths(samples, names, plan)
    keys = [s.keys for s in samples if s.chunk >= plan.settled]
    early, late = took[plan.settled : plan.settled + plan.window], took[-plan.window :]
    worst = max(growth.percent for growth in found if growth.ours)
    return {
        "growth": [asdict(growth) for growth in found],
        "worst_growth_percent": worst,
        "keys_min": min(keys),
        "keys_max": max(keys),
        "chunk_ms_settled": statistics.median(early),
        "chunk_ms_end": statistics.median(late),
        "holds": worst <= LIMIT_PERCENT and min(keys) == max(keys) if plan.chunks >= CHUNKS else None,
    }


def show(figures: Mapping[str, Any], plan: Plan) -> str:
    """The table, the keys, the times and the verdict."""
    first = f"chunks {plan.settled}-{plan.settled + plan.window}"
    last = f"last {plan.window}"
    rows: list[list[Cell]] = [
        [g["process"], g["settled_mib"], g["end_mib"], f"{g['percent']:+.2f} %", f"{g['own_percent']:+.2f} %"]
        for g in figures["growth"]
    ]
    columns = ["process", f"RSS MiB, {first}", f"RSS MiB, {last}", "growth", "growth without shared pages"]
    verdict = f"too short to judge: memory settles in the first hundreds of chunks; take {CHUNKS} or more"
    if figures["holds"] is not None:
        grew = (
            f"no process of ours grew by more than {LIMIT_PERCENT:g} % (most: {figures['worst_growth_percent']:+.2f} %)"
        )
        verdict = f"{grew}, and the keys stayed the same: {'yes' if figures['holds'] else 'NO'}"
    return "\n".join(
        [
            table(columns, rows),
            "",
            f"store keys after chunk {plan.settled}: {figures['keys_min']} to {figures['keys_max']}",
            f"median chunk: {figures['chunk_ms_settled']:.1f} ms in {first}, "
            f"{figures['chunk_ms_end']:.1f} ms in the {last}",
            verdict,
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if something grew in a run that is long enough to judge."""
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.horizon", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_CHUNKS} chunks: shows that it works, judges nothing"
    )
    parser.add_argument("--chunks", type=int, help=f"length of the session (default {CHUNKS})")
    parser.add_argument("--model", choices=sorted(GRAPHS), default="synthetic")
    parser.add_argument("--switch", type=int, default=40, help="chunks between two prompts (default 40)")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    options = parser.parse_args(argv)
    chunks = options.chunks or (QUICK_CHUNKS if options.quick else CHUNKS)
    if chunks < 20 or options.switch < 1:
        parser.error("at least 20 chunks, and --switch at least 1")
    plan = Plan.of(chunks, options.switch)
    figures = measure(options.model, plan)
    print(show(figures, plan))
    if options.json:
        write_json(options.json, "horizon", {"model": options.model, **asdict(plan)}, figures)
    return 1 if figures["holds"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
