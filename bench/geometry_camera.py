"""What it costs to bound the camera head's memory: the official code never forgets (`full`), a stream without end must.

The same frames under the same token memory, with camera memories of other lengths beside the one that keeps all.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from riverrun.bench.geometry_drift import BUDGET
from riverrun.bench.geometry_paths import whole
from riverrun.bench.geometry_quality import GAP, depth_scale
from riverrun.bench.geometry_watch import Watched, stream_of, watch
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.metrics import relative_errors
from riverrun.train.geometry_measure import degrees_between

KEPT = (8, 64, 256)  # frames
LATE = 100  # frames at the end whose poses and times count
EVERY = 10  # maps for the scale


def camera_bounds(model: InfiniteVGGT, frames: int, kept: Sequence[int] = KEPT, seeds: int = 2) -> list[dict[str, Any]]:
    """A row for each bound and for none: errors of the last poses, how far they are from those of `full`, in degrees
    and in the truth's unit, and what the memory takes at the end."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        truth = whole("revisits", seed, frames, model.config.image)
        bounds = {**{f"{n} frames": n for n in kept}, "full": frames}
        streams = {name: stream_of(model, "diverse_keys", BUDGET, n) for name, n in bounds.items()}
        said = {name: watch(model, [truth], stream, EVERY) for name, stream in streams.items()}
        true_depth = torch.where(truth.depth.isfinite(), truth.depth, 0.0)[::EVERY]
        scale = depth_scale(said["full"].depth, true_depth)
        for name, watched in said.items():
            row = _errors(watched, said["full"], truth.poses, scale)
            held = streams[name].poses
            row |= {"rows": sum(held.lengths), "bytes": held.nbytes}
            found.setdefault(name, []).append(row)
    return [{"camera": name, **_mean(rows)} for name, rows in found.items()]


def _errors(said: Watched, full: Watched, truth: torch.Tensor, scale: float) -> dict[str, float]:
    motion = relative_errors(said.poses[-LATE:], truth[-LATE:], GAP, scale)
    off = (said.poses[-LATE:, :3, 3] - full.poses[-LATE:, :3, 3]).norm(dim=1) * scale
    return {
        "rotation": motion.rotation, "translation": motion.translation,
        "turned_off": float(degrees_between(said.poses[-LATE:, :3, :3], full.poses[-LATE:, :3, :3]).mean()),
        "moved_off": float(off.mean()), "ms": statistics.median(said.ms[-LATE:].tolist()),
    }  # fmt: skip


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
