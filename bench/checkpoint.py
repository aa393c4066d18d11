"""What does a checkpoint cost, and what does a cheaper one lose?

`python -m riverrun.bench.checkpoint [--quick] [--json FILE]`

(a) Every row of the table of models at its tiny configuration, each kind of snapshot: bytes, the copy out of the
session (all that holds a step up), writing and reading through `BlobStore` on a local disk, restoring. Median of
repeats; copy and restore in processor time of their one thread, which other work on the machine leaves as it is.
(b) Bytes at released sizes, from shapes. (c) The blob store alone, for larger tensors. (d) Drift: the shipped LongLive
goes on from a `recache` snapshot, with and without the sink's keys and values in it; PSNR of the next 100 frames
against the stream that was never interrupted. Needs a clone: the table of models lies with the tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from riverrun.bench.adherence import Rig, held_out_scenes
from riverrun.bench.checkpoint_sizes import Released, released
from riverrun.bench.report import table, write_json
from riverrun.models.base import Snapshot, StreamModel, parse_params
from riverrun.models.generation.longlive_state import LongLiveState
from riverrun.models.wan.sizes import human
from riverrun.store.blobs import BlobStore
from riverrun.store.checkpoints import Manifest, Mark
from riverrun.tests.models.table import ROWS, Row, built

T = TypeVar("T")
FRAMES = 100
"""Compared after a restore."""


@dataclass(frozen=True)
class Plan:
    """repeats: of a timing. blobs: bytes of the tensors in (c). scenes: streams in (d). blocks: of each before it."""

    repeats: int = 9
    blobs: tuple[int, ...] = (64 << 20, 256 << 20, 1 << 30)
    scenes: int = 8
    blocks: int = 20


QUICK = Plan(repeats=3, blobs=(64 << 20,), scenes=2, blocks=16)


@dataclass(frozen=True)
class Cost:
    """One kind of snapshot of one model; milliseconds (copy, restore: processor time). held: bytes of the session."""

    model: str
    kind: str
    held: int
    nbytes: int
    copy: float
    write: float
    read: float
    restore: float


@dataclass(frozen=True)
class Speed:
    """The blob store with one tensor; seconds."""

    nbytes: int
    write: float
    read: float


@dataclass(frozen=True)
class Drift:
    """PSNR in dB over the next frames: mean, of the worst frame, of the first and last block. None: no difference."""

    how: str
    nbytes: int
    mean: float | None
    worst: float | None
    first: float | None
    last: float | None
    is_counted: bool


# -- (a) every model -----------------------------------------------------------------------------------------------


def warmed(row: Row, model: StreamModel, steps: int) -> Any:
    """A session after so many steps."""
    state = model.open(parse_params(model.Params, row.params), 6)
    if row.first_prompt and row.control:
        model.control(state, dataclasses.replace(row.control(1), revision=0))
    for chunk in row.given(1):
        model.push(state, chunk)
    turn = 0
    for _ in range(steps):
        while not model.ready(state):
            for chunk in row.feed(1, turn):
                model.push(state, chunk)
            turn += 1
        model.step([state])
    return state


def cost(row: Row, model: StreamModel, state: Any, kind: str, store: BlobStore, repeats: int) -> Cost:
    copy, snapshot = timed(lambda: state.snapshot(kind), repeats, time.thread_time)
    manifest = Manifest("bench", "stage", 1, "", kind, Mark(), meta=snapshot.meta)
    write, written = timed(lambda: store.write(manifest, snapshot.tensors), repeats)
    read, tensors = timed(lambda: store.read(written), repeats)
    stored = Snapshot(json.loads(json.dumps(snapshot.meta)), tensors, kind)
    restore, _ = timed(lambda: model.restore(state.params, stored), repeats, time.thread_time)
    store.delete_session("bench")
    return Cost(row.name, kind, state.nbytes, snapshot.nbytes, copy, write, read, restore)


def costs(store: BlobStore, plan: Plan) -> list[Cost]:
    figures = []
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            model = built(row, Path(folder))
        state = warmed(row, model, row.window if row.length is None else row.length - 1)
        figures += [cost(row, model, state, kind, store, plan.repeats) for kind in model.snapshot_kinds()]
    return figures


# -- (c) the store -------------------------------------------------------------------------------------------------


def speed(store: BlobStore, nbytes: int, repeats: int) -> Speed:
    big = {"big": np.random.default_rng(0).integers(0, 255, nbytes, dtype=np.uint8)}
    manifest = Manifest("bench", "stage", 1, "", "exact", Mark())
    write, written = timed(lambda: store.write(manifest, big), repeats)
    read, _ = timed(lambda: store.read(written), repeats)
    store.delete_session("bench")
    return Speed(nbytes, write / 1000, read / 1000)


# -- (d) drift -----------------------------------------------------------------------------------------------------


def without_sink(snapshot: Snapshot) -> Snapshot:
    """Where the sink was not stored, the oldest frames known take its place."""
    cache = snapshot.meta["cache"]
    meta = {**snapshot.meta, "cache": {**cache, "lengths": [0] * len(cache["lengths"])}}
    empty = {name: a[:, :0] if name.startswith("cache/") else a for name, a in snapshot.tensors.items()}
    return dataclasses.replace(snapshot, meta=meta, tensors=empty)


def drifts(rig: Rig, plan: Plan) -> list[Drift]:
    scenes = held_out_scenes(plan.scenes + 1)
    figures = []
    ways: tuple[tuple[str, dict[str, bool], int | None, Callable[[Snapshot], Snapshot]], ...] = (
        ("sink, its keys stored", {}, None, lambda taken: taken),
        ("sink, its keys not stored", {}, None, without_sink),
        ("no sink", {"sink": False}, None, lambda taken: taken),
        ("sink stored, prompt switched 2 blocks before", {}, 2, lambda taken: taken),
        ("sink stored, switched 2 blocks before without recomputing", {"recache": False}, 2, lambda taken: taken),
    )
    for how, params, switch, change in ways:
        states = rig.open(scenes[:-1], **params)
        for block in range(plan.blocks):
            if switch is not None and block == plan.blocks - switch:
                rig.prompt(states, scenes[1:])
            rig.block(states)
        taken = [change(state.snapshot("recache")) for state in states]
        again = [rig.model.restore(state.params, each) for state, each in zip(states, taken, strict=True)]
        figures.append(_drift(how, rig, states, again, taken[0].nbytes))
    return figures


def _drift(how: str, rig: Rig, states: list[LongLiveState], again: list[LongLiveState], nbytes: int) -> Drift:
    blocks = -(-FRAMES // (rig.model.options.block * rig.model.vae.config.temporal_factor))
    pairs = [(torch.stack(rig.block(states)), torch.stack(rig.block(again))) for _ in range(blocks)]
    errors = torch.cat([_errors(a, b) for a, b in pairs], dim=1)[:, :FRAMES]  # (B, frames)
    counts = [(one.chunk, one.frames, one.revision) for one in states] == [
        (o.chunk, o.frames, o.revision) for o in again
    ]
    size = pairs[0][0].shape[1]
    first, last = errors[:, :size].mean(), errors[:, -size:].mean()
    return Drift(how, nbytes, _db(errors.mean()), _db(errors.max()), _db(first), _db(last), counts)


def _errors(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each frame, [B, T]."""
    return (a.float() - b.float()).square().mean(dim=(2, 3, 4))


def _db(error: Tensor) -> float | None:
    return float(10 * torch.log10(255**2 / error)) if error > 0 else None


# -- the whole -----------------------------------------------------------------------------------------------------


def timed(work: Callable[[], T], repeats: int, clock: Callable[[], float] = time.perf_counter) -> tuple[float, T]:
    """(median milliseconds, the last result)."""
    took = []
    for _ in range(repeats):
        began = clock()
        result = work()
        took.append(1000 * (clock() - began))
    return statistics.median(took), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and streams, smaller tensors")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(folder)
        found = costs(store, plan)
        print("\n(a) tiny configurations\n" + _costs(found))
        sizes = released()
        print("\n(b) predicted at released sizes\n" + _sizes(sizes))
        speeds = [speed(store, nbytes, plan.repeats) for nbytes in plan.blobs]
        print("\n(c) the blob store\n" + _speeds(speeds))
    drift = drifts(Rig(), plan)
    print(f"\n(d) the next {FRAMES} frames against the undisturbed stream (-: bit-equal)\n" + _drifts(drift))
    if args.json:
        parts: dict[str, list[Any]] = {"tiny": found, "released": sizes, "store": speeds, "drift": drift}
        figures = {name: [asdict(each) for each in part] for name, part in parts.items()}
        write_json(args.json, "checkpoint", {"quick": args.quick, **asdict(plan)}, figures)


def _costs(figures: list[Cost]) -> str:
    columns = ("model", "kind", "session", "blob", "copy CPU ms", "write ms", "read ms", "restore CPU ms")
    rows = [(c.model, c.kind, human(c.held), human(c.nbytes), c.copy, c.write, c.read, c.restore) for c in figures]
    return table(columns, rows)


def _sizes(figures: list[Released]) -> str:
    rows = [(s.model, s.session, human(s.exact), None if s.recache is None else human(s.recache)) for s in figures]
    return table(("model", "session", "exact", "recache"), rows)


def _speeds(figures: list[Speed]) -> str:
    return table(("blob", "write s", "read s"), [(human(s.nbytes), s.write, s.read) for s in figures])


def _drifts(figures: list[Drift]) -> str:
    columns = ("recache", "blob", "mean dB", "worst frame", "first block", "last block", "counts equal")
    rows = [(d.how, human(d.nbytes), d.mean, d.worst, d.first, d.last, d.is_counted) for d in figures]
    return table(columns, rows)


if __name__ == "__main__":
    main()
