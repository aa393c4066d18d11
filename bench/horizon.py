"""Does anything grow with the length of a stream? One session, 3,000 chunks, through the whole service.

`python -m riverrun.bench.horizon [--quick] [--chunks N] [--model NAME | --graph GRAPH] [--json FILE] [--plot FILE]`

The service runs as its own process tree (`bench/service.py`); this process is its client over gRPC and changes the
prompt every `--switch` chunks, so that the control log is part of what might grow; `upscale` and `reconstruct` are fed
a real clip in a loop (carphone, made small), and `upscale` is told every `--switch` chunks that a scene begins. Every
few chunks it notes the memory of each process of the tree and the number of keys in the store. Printed are, for each
process, the median after the warm-up, the median at the end, and how far any window in between is from the first; the
keys; the time of a chunk then and at the end. Then, in the stage actor, the State of chunk 450 is stepped beside the
late one (`bench/twin.py`). Last, where a model can keep everything (`reconstruct`), a session that does runs until it
is no longer to be borne.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from riverrun.bench.chunks import firsts
from riverrun.bench.growth import JUDGED_CHUNKS, SETTLED, Growth, Plan, Sample, growths
from riverrun.bench.report import Cell, table, write_json
from riverrun.bench.service import Memory, Service, serving
from riverrun.bench.twin import TIMES
from riverrun.client.errors import Error
from riverrun.client.sync import Client, Stream, connect
from riverrun.configs import FOLDER

CHUNKS, QUICK_CHUNKS = 3000, 150
LIMIT_PERCENT, LIMIT_RATIO = 2.0, 1.05
UNBEARABLE, KEPT_FRAMES = 10.0, 2000
"""A session that keeps everything ends when a chunk takes so many times what a bounded one's takes, or is so long."""
PROMPTS = ("a small red ball on green grass at noon", "a large blue cube on yellow sand in the evening")
MODELS = ("synthetic", "world-text", "longlive-world")


@dataclass(frozen=True)
class Subject:
    """What is run. chunks: its length if nobody asks for another. is_fed: with frames of the parameters' height and
    width; there is no prompt then. change: what a fed session is told on the way. unbounded: parameters of one that
    keeps everything. settled: the chunk after which nothing may grow."""

    graph: str
    params: Mapping[str, Any] = field(default_factory=dict)
    chunks: int = CHUNKS
    is_fed: bool = False
    change: Mapping[str, Any] | None = None
    unbounded: Mapping[str, Any] | None = None
    settled: int = SETTLED

    @property
    def start(self) -> Mapping[str, Any]:
        return self.params if self.is_fed else {"prompt": PROMPTS[0], **self.params}


EVERYTHING = {"memory": "full", "memory_frames": KEPT_FRAMES, "camera_memory": "full", "camera_frames": KEPT_FRAMES}
SUBJECTS: Mapping[str, Subject] = {
    "synthetic": Subject(
        "synthetic", {"step_ms": 10.0, "state_bytes": 16 << 20, "chunk_frames": 12, "height": 96, "width": 96}
    ),
    "longlive-world": Subject("generate"),
    "infvsr-world": Subject(
        "upscale",
        {"height": 48, "width": 64, "find_scenes": False},
        chunks=1000,  # of 12 frames each
        is_fed=True,
        change={"new_scene": True},
    ),
    "infinitevggt-world": Subject(
        "reconstruct",
        {"height": 112, "width": 112, "camera_frames": 256},
        chunks=10_000,  # of one frame each
        settled=1000,
        is_fed=True,
        unbounded=EVERYTHING,
    ),
}


def feed(stream: Stream, height: int, width: int) -> None:
    """Sends a clip again and again, as fast as it is taken, until the stream ends. Raises `train.clips.Absent`."""
    from riverrun.train.clips import clip

    size = (width, height)
    frames = [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in clip("carphone")]

    def run() -> None:
        number = 0
        try:
            while True:
                stream.send(frames[number % len(frames)], number / 25)
                number += 1
        except Error:
            return  # it has ended

    threading.Thread(target=run, name="feed", daemon=True).start()


def steer(stream: Stream, turn: int, subject: Subject) -> None:
    """The `turn`-th change on the way."""
    if subject.change:
        stream.set(subject.change)
    elif not subject.is_fed:
        stream.prompt(PROMPTS[turn % len(PROMPTS)])


def follow(stream: Stream, service: Service, plan: Plan, subject: Subject) -> tuple[list[Sample], list[float]]:
    """Takes the frames; samples and changes course on the way. Also the milliseconds of each chunk."""
    samples, took, chunk, began = list[Sample](), list[float](), -1, time.perf_counter()
    for frame in firsts(stream):
        now, chunk = time.perf_counter(), frame.chunk
        if chunk < plan.chunks:
            took.append(1000 * (now - began))
            if chunk % plan.every == 0 or chunk == plan.chunks - 1:
                samples.append(Sample(chunk, service.memory(), service.keys()))
        if chunk and chunk % plan.switch == 0:
            steer(stream, chunk // plan.switch, subject)
        if chunk == plan.chunks + plan.twin:  # one more, as that before may still be in the making
            break
        began = now
    if chunk != plan.chunks + plan.twin:
        raise RuntimeError(f"the stream ended at chunk {chunk} of {plan.chunks + plan.twin}: {stream.ended_reason}")
    return samples, took


@contextlib.contextmanager
def opened(rr: Client, subject: Subject, **params: Any) -> Iterator[Stream]:
    """A session of the subject that is fed, if it has to be."""
    with rr.stream(subject.graph, seed=1, **{**subject.start, **params}) as stream:
        if subject.is_fed:
            feed(stream, subject.params["height"], subject.params["width"])
        yield stream


def keeping(stream: Stream, memory: Callable[[], Memory], bearable_ms: float, every: int) -> dict[str, list[Any]]:
    """Takes the frames of a session that keeps everything, until chunks take longer (the median of `every`), or it
    refuses. By sample: chunk, milliseconds of a chunk since the one before, resident MiB of its actor."""
    found: dict[str, list[Any]] = {"chunk": [], "chunk_ms": [], "mib": []}
    took, began = list[float](), time.perf_counter()
    with contextlib.suppress(Error):  # its bound is reached
        for frame in firsts(stream):
            took.append(1000 * (time.perf_counter() - began))
            if len(took) == every:
                found["chunk"].append(frame.chunk)
                found["chunk_ms"].append(statistics.median(took))
                found["mib"].append(memory().rss / 2**20)
                if found["chunk_ms"][-1] > bearable_ms:
                    break
                took = []
            began = time.perf_counter()
    return found


def twin_model(model: str, plan: Plan, folder: Path) -> Path:
    """The YAML of a model that is `model` under its own name, and steps the State of chunk `plan.kept` at the end."""
    path = folder / f"{model}.yaml"
    values = yaml.safe_load((FOLDER / "models" / f"{model}.yaml").read_text())
    args = {"keep_at": plan.kept, "compare_from": plan.chunks, "chunks": plan.twin, "folder": str(folder)}
    values |= {"class": "riverrun.bench.twin:Twin", "args": {"model": model, **args}}
    path.write_text(yaml.safe_dump(values))
    return path


def measure(model: str, plan: Plan) -> dict[str, Any]:
    """Runs the service and one session; the figures that `show` prints and `--json` writes."""
    subject, everything = SUBJECTS[model], None
    with tempfile.TemporaryDirectory(prefix="riverrun-horizon-") as folder:
        models = [name for name in MODELS if name != model]
        models.append(str(twin_model(model, plan, Path(folder))))
        with serving(f"models=[{','.join(models)}]") as service, connect(service.address) as rr:
            rr.models(start=[model])  # waits for models that are loading: they are not what is measured
            print(f"{plan.chunks} chunks of {subject.graph!r} at {service.address} …", flush=True)
            with opened(rr, subject) as stream:
                samples, took = follow(stream, service, plan, subject)
            names = service.names(rr.status())
            if subject.unbounded:
                print("one that keeps everything …", flush=True)
                bearable_ms = UNBEARABLE * statistics.median(took)
                actor = next(pid for pid, name in names.items() if name == f"actor {model}-0")
                with opened(rr, subject, **subject.unbounded) as stream:
                    everything = keeping(stream, lambda: service.memory()[actor], bearable_ms, max(20, plan.every))
                everything["bounded_mib"] = [samples[-1].memory[actor].rss / 2**20]
        twin = json.loads(Path(folder, TIMES).read_text())
    return figures_of(growths(samples, names, plan), samples, took, twin, plan) | {"everything": everything}


def figures_of(
    found: Sequence[Growth],
    samples: Sequence[Sample],
    took: Sequence[float],
    twin: Mapping[str, Sequence[float]],
    plan: Plan,
) -> dict[str, Any]:
    """What was measured, and whether it holds (None: too short to judge)."""
    keys = [s.keys for s in samples]
    kept = [s.keys for s in samples if s.chunk >= plan.settled]
    worst = max((growth.widest_percent for growth in found if growth.ours), key=abs)
    late, early = statistics.median(twin["late"]), statistics.median(twin["early"])
    holds = abs(worst) <= LIMIT_PERCENT and min(kept) == max(kept) and late <= LIMIT_RATIO * early
    return {
        "growth": [asdict(growth) for growth in found],
        "worst_growth_percent": worst,
        "keys_min": min(kept),
        "keys_max": max(kept),
        "chunk_ms_settled": statistics.median(took[plan.settled : plan.settled + plan.window]),
        "chunk_ms_end": statistics.median(took[-plan.window :]),
        "step_ms_late": late,
        "step_ms_early": early,
        "step_ratio": late / early,
        "holds": holds if plan.is_judged else None,
        "series": {"chunk": [s.chunk for s in samples], "keys": keys, "chunk_ms": [round(ms, 2) for ms in took]},
        "twin_ms": {name: [round(ms, 3) for ms in times] for name, times in twin.items()},
    }


def show(figures: Mapping[str, Any], plan: Plan) -> str:
    """The table, the keys, the times and the verdict."""
    first = f"chunks {plan.settled}-{plan.settled + plan.window}"
    last = f"last {plan.window}"
    rows: list[list[Cell]] = [
        [
            g["process"],
            g["settled_mib"],
            g["end_mib"],
            *(f"{g[name]:+.2f} %" for name in ("percent", "widest_percent", "own_percent")),
        ]
        for g in figures["growth"]
    ]
    columns = [
        "process",
        f"RSS MiB, {first}",
        f"RSS MiB, {last}",
        "change",
        "widest on the way",
        "without shared pages",
    ]
    return "\n".join(
        [
            table(columns, rows),
            "",
            f"store keys after chunk {plan.settled}: {figures['keys_min']} to {figures['keys_max']}",
            f"median chunk at the client: {figures['chunk_ms_settled']:.1f} ms in {first}, "
            f"{figures['chunk_ms_end']:.1f} ms in the {last}",
            f"median step in the stage, {plan.twin} in turn: State of chunk {plan.chunks} "
            f"{figures['step_ms_late']:.2f} ms, of chunk {plan.kept} {figures['step_ms_early']:.2f} ms, "
            f"ratio {figures['step_ratio']:.3f}",
            *_kept(figures.get("everything"), figures["chunk_ms_end"]),
            _verdict(figures),
        ]
    )


def _kept(everything: Mapping[str, Sequence[float]] | None, bounded_ms: float) -> list[str]:
    """A line of the session that kept everything, if there was one."""
    if not everything or not everything["chunk"]:
        return []
    last, ms = everything["chunk"][-1], everything["chunk_ms"][-1]
    more = everything["mib"][-1] - everything["bounded_mib"][0]
    return [f"keeping everything: at chunk {last} one takes {ms:.0f} ms ({ms / bounded_ms:.1f} times as long), and the "
            f"actor holds {more:.0f} MiB more than at the end of the bounded session"]  # fmt: skip


def _verdict(figures: Mapping[str, Any]) -> str:
    if figures["holds"] is None:
        return f"too short to judge: memory settles in the first hundreds of chunks; take {JUDGED_CHUNKS} or more"
    stayed = (
        f"every process of ours stayed within {LIMIT_PERCENT:g} % (widest: {figures['worst_growth_percent']:+.2f} %)"
    )
    answer = "yes" if figures["holds"] else "NO"
    return f"{stayed}, the keys stayed the same, a late step costs at most {LIMIT_RATIO} early ones: {answer}"


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if something grew in a run that is long enough to judge."""
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.horizon", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_CHUNKS} chunks: shows that it works, judges nothing"
    )
    lengths = ", ".join(f"{subject.chunks} of {subject.graph}" for subject in SUBJECTS.values())
    parser.add_argument("--chunks", type=int, help=f"length of the session (default: {lengths})")
    models = {subject.graph: model for model, subject in SUBJECTS.items()}
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", choices=sorted(SUBJECTS), default="synthetic")
    which.add_argument("--graph", choices=sorted(models), help="the same by the name of its graph")
    parser.add_argument("--switch", type=int, default=40, help="chunks between two prompts (default 40)")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    parser.add_argument("--plot", metavar="FILE", help="draw memory and time there (needs the extra `viz`)")
    options = parser.parse_args(argv)
    model = models[options.graph] if options.graph else options.model
    chunks = options.chunks or (QUICK_CHUNKS if options.quick else SUBJECTS[model].chunks)
    if chunks < 20 or options.switch < 1:
        parser.error("at least 20 chunks, and --switch at least 1")
    plan = Plan.of(chunks, options.switch, SUBJECTS[model].settled)
    figures = measure(model, plan)
    print(show(figures, plan), flush=True)
    settings = {"model": model, **asdict(plan)}
    if options.json:
        write_json(options.json, "horizon", settings, figures)
    if options.plot:
        from riverrun.bench.horizon_plot import plot  # its library is an extra

        plot([{"settings": settings, "figures": figures}], Path(options.plot))
    return 1 if figures["holds"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
