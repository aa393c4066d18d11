"""What does it cost that a session can be brought back?

`python -m riverrun.bench.safety [--quick] [--json FILE]`

Five gateways of one cluster, so one set of actors, which differ in how often and in which kind they take checkpoints.
The same session is run through each in turn, one alone at a time, its client taking frames as fast as they come; then
through all again, in the other order, as often as the time allows. What is told is the median of the rounds: frames a
second against those without checkpoints in the same round, and between which values the middle half of the rounds lies.
"off, again" is run as "off" is: how far it is from 1 is the machine's doing. Bytes to the store a chunk: all that the
gateway sends; a blob: how much more that is for each than without any. The hold-up of a step is the copy out of the
State, timed in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from riverrun.bench.adherence import Rig, held_out_scenes
from riverrun.bench.migration import cluster
from riverrun.bench.report import Cell, machine, table, write_json
from riverrun.bench.service import Service, serving
from riverrun.client.sync import connect
from riverrun.models.synthetic import Synthetic, SyntheticParams
from riverrun.models.wan.sizes import human

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "off": ("checkpoints.chunks=0",),
    "off, again": ("checkpoints.chunks=0",),
    "exact, every 32 chunks": ("checkpoints.chunks=32",),
    "exact, every 8": ("checkpoints.chunks=8",),
    "exact, every chunk": ("checkpoints.chunks=1",),
    "recache, every chunk": ("checkpoints.chunks=1", "checkpoints.kind=recache"),
}
STORE_BYTES = 512 << 20


@dataclass(frozen=True)
class Case:
    """kinds: of checkpoints that the model has. chunks: of a turn, so that every 32 is at least one. seconds: for all
    its rounds; one that has begun is finished."""

    name: str
    graph: str
    params: dict[str, Any]
    kinds: tuple[str, ...]
    chunks: int
    seconds: float

    @property
    def settings(self) -> list[str]:
        return [name for name in SETTINGS if name.partition(",")[0] in ("off", *self.kinds)]


@dataclass(frozen=True)
class Plan:
    """seconds: of the turns in all. least: rounds, whatever they take. copies: that are timed. state: bytes of the
    synthetic State."""

    seconds: float = 250.0
    least: int = 2
    copies: int = 20
    state: int = 6_000_000

    @property
    def cases(self) -> list[Case]:
        plain = {"step_ms": 10.0, "state_bytes": self.state}
        live = {"prompt": "a large red ball on green grass at noon"}
        return [
            Case(f"synthetic, {human(self.state)}", "synthetic", plain, ("exact",), 96, 0.25 * self.seconds),
            Case("tiny LongLive", "generate", live, ("exact", "recache"), 33, 0.75 * self.seconds),
        ]


QUICK = Plan(seconds=40.0)


@dataclass(frozen=True)
class Turn:
    """Of one session. sent: bytes to the store a chunk. blobs: checkpoints a chunk. blob, manifest: median bytes of
    their files, 0 of none."""

    fps: float
    chunk_ms: float
    sent: float
    blobs: float
    blob: float
    manifest: float


@dataclass(frozen=True)
class Figure:
    """Medians over so many rounds. ratio: to the frames a second without checkpoints in the same round; a quarter of
    the rounds is below `low`, one above `high`. more_ms: of a chunk's time. sent_blob: bytes to the store for each
    checkpoint, more than without any."""

    case: str
    setting: str
    rounds: int
    fps: float
    ratio: float
    low: float
    high: float
    more_ms: float
    sent: float
    sent_blob: float
    blob: float
    manifest: float


def compared(case: str, setting: str, turns: Sequence[Turn], off: Sequence[Turn]) -> Figure:
    pairs = list(zip(turns, off, strict=True))
    ratios = [turn.fps / base.fps for turn, base in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    more = [(turn.sent - base.sent) / turn.blobs for turn, base in pairs if turn.blobs]
    return Figure(
        case,
        setting,
        len(turns),
        statistics.median(turn.fps for turn in turns),
        ratio,
        low,
        high,
        statistics.median(turn.chunk_ms - base.chunk_ms for turn, base in pairs),
        statistics.median(turn.sent for turn in turns),
        statistics.median(more or [0.0]),
        statistics.median(turn.blob for turn in turns),
        statistics.median(turn.manifest for turn in turns),
    )


# ---- the stream ----


@contextlib.contextmanager
def gateways() -> Iterator[tuple[dict[str, Service], Path]]:
    """A service by setting, each with a store of its own, and where their checkpoints lie."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="riverrun-bench-")))
        address = stack.enter_context(cluster(STORE_BYTES))
        common = (f"ray_address={address}", f"checkpoints.uri={folder}", "drain_s=0.2")
        rare = ("checkpoints.seconds=1000000", "checkpoints.grace_s=1000000")
        models = "models=[synthetic,world-text,longlive-world]"
        services: dict[str, Service] = {}
        for name in reversed(list(SETTINGS)):  # the first to start says that checkpoints are kept at all
            twin = next((other for other in services if SETTINGS[other] == SETTINGS[name]), None)
            started = services[twin] if twin else stack.enter_context(serving(models, *common, *rare, *SETTINGS[name]))
            services[name] = started
        yield services, folder


def turn(service: Service, case: Case, chunks: int, blobs: Path) -> Turn:
    with connect(service.address) as rr, rr.stream(case.graph, seed=1, lead=0.0, **case.params) as stream:
        at = -1
        while at < 1:  # the first chunk, and what was made ahead meanwhile
            at = next(stream).chunk
        began, sent, frames, last = time.perf_counter(), service.store_bytes(), 0, at + chunks
        while at < last:
            at = next(stream).chunk
            frames += 1
        took, sent = time.perf_counter() - began, service.store_bytes() - sent
        files = {end: list((blobs / stream.session_id).glob(f"*/*.{end}")) for end in ("blob", "json")}
        blob, manifest = (_median_size(found) for found in files.values())
    written = len(files["json"]) / (last + 1)
    return Turn(frames / took, 1000 * took / chunks, sent / chunks, written, blob, manifest)


def _median_size(files: Sequence[Path]) -> float:
    """0 of none."""
    return statistics.median(path.stat().st_size for path in files) if files else 0.0


def measure_streams(plan: Plan) -> list[Figure]:
    figures = []
    with gateways() as (services, blobs):
        for case in plan.cases:
            until = time.monotonic() + case.seconds
            for name in case.settings:
                turn(services[name], case, 4, blobs)
            turns: dict[str, list[Turn]] = {name: [] for name in case.settings}
            while len(turns["off"]) < plan.least or time.monotonic() < until:
                for name in case.settings if len(turns["off"]) % 2 else reversed(case.settings):
                    turns[name].append(turn(services[name], case, case.chunks, blobs))
            figures += [compared(case.name, name, turns[name], turns["off"]) for name in case.settings]
            print(*figures[-len(case.settings) :], sep="\n", flush=True)
    return figures


# ---- the copy ----


@dataclass(frozen=True)
class Copy:
    """Milliseconds that a step is held up: median and longest."""

    case: str
    kind: str
    nbytes: int
    p50: float
    longest: float


def measure_copies(plan: Plan) -> list[Copy]:
    synthetic: Any = Synthetic().open(SyntheticParams(state_bytes=plan.state), seed=1)
    rig = Rig()
    (live,) = rig.open(held_out_scenes(1))
    for _ in range(8):
        rig.block([live])
    figures = []
    for case, state in zip(plan.cases, (synthetic, live), strict=True):
        for kind in case.kinds:
            took = []
            for _ in range(plan.copies):
                began = time.perf_counter()
                snapshot = state.snapshot(kind)
                took.append(1000 * (time.perf_counter() - began))
            figures.append(Copy(case.name, kind, snapshot.nbytes, statistics.median(took), max(took)))
    return figures


# ---- the whole ----


def show(streams: Sequence[Figure], copies: Sequence[Copy]) -> str:
    columns = (
        "session",
        "checkpoints",
        "rounds",
        "frames/s",
        "ratio",
        "middle half",
        "ms a chunk more",
        "B to store a chunk",
        "a blob",
        "blob",
        "manifest",
    )
    rows: list[list[Cell]] = [
        [
            f.case,
            f.setting,
            f.rounds,
            f.fps,
            f.ratio,
            f"{f.low:.2f}-{f.high:.2f}",
            f.more_ms,
            f.sent,
            f.sent_blob or None,
            human(int(f.blob)) if f.blob else None,
            human(int(f.manifest)) if f.blob else None,
        ]
        for f in streams
    ]
    held: list[list[Cell]] = [[c.case, c.kind, human(c.nbytes), c.p50, c.longest] for c in copies]
    return table(columns, rows) + "\n\n" + table(("session", "kind", "bytes", "copy ms", "longest"), held)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.safety", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else Plan()
    before = machine().load
    copies, streams = measure_copies(plan), measure_streams(plan)
    print(f"{show(streams, copies)}\nload before {before}, after {machine().load}")
    if options.json:
        figures = {"streams": [asdict(each) for each in streams], "copies": [asdict(each) for each in copies]}
        write_json(options.json, "safety", asdict(plan), figures)


if __name__ == "__main__":
    main()
