"""What a long stream does to camera, depth and cloud, under each policy at one budget; first, whether memory is read.

At 100, 1,000 and 10,000 frames, the errors of the frames just before; the unbounded cache goes as far as it can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from riverrun.bench.geometry_paths import Piece, pieces, whole
from riverrun.bench.geometry_quality import GAP, depth_scale, mean_map, moved, unprojected
from riverrun.bench.geometry_watch import stream_of, watch
from riverrun.models.base import BadRequest
from riverrun.models.geometry.clouds import compare
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.metrics import depth_errors, relative_errors, trajectory_errors
from riverrun.models.geometry.vggt import TokenMemory

MARKS, QUICK_MARKS = (100, 1000, 10_000), (50, 100)
DRIFT_PATHS = ("revisits", "walks on")
POLICIES: tuple[TokenMemory, ...] = ("diverse_keys", "sink_window", "full")
BUDGET, MOST_FULL = 24, 1000  # frames
LATE = 100  # frames before a mark whose depth counts
CLOUD_EVERY = 10  # Long3D's protocol takes every 10th frame


@dataclass
class _Kept:
    """What a run keeps of its frames: every pose, and maps of every 10th at a quarter of the pixels."""

    poses: list[Tensor] = field(default_factory=list)
    true_poses: list[Tensor] = field(default_factory=list)
    depth: list[Tensor] = field(default_factory=list)
    true_depth: list[Tensor] = field(default_factory=list)
    points: list[Tensor] = field(default_factory=list)
    true_points: list[Tensor] = field(default_factory=list)


def reading(model: InfiniteVGGT, scenes: int, frames: int = 60) -> list[dict[str, Any]]:
    """Does the model read its memory? The same frames under memories of 24 and 3 frames, of the first frame alone of
    another scene, each error as the mean over scenes; if nothing changes, no policy can be told from another."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    memories = (("24 frames", 24, False), ("3 frames", 3, False), ("another scene's", 24, True))
    for seed in range(scenes):
        truth, other = (whole("revisits", s, frames, model.config.image) for s in (seed, seed + 1000))
        for name, budget, is_foreign in memories:
            stream = stream_of(model, "sink_window", budget)
            sequence = _foreign(other, truth) if is_foreign else truth
            said = watch(model, [sequence], stream)
            late = slice(frames // 2, frames)
            true = torch.where(truth.depth.isfinite(), truth.depth, 0.0)[late]
            scale = depth_scale(said.depth[late], true)
            motion = relative_errors(said.poses[late], truth.poses[late], GAP, scale)
            errors = depth_errors(said.depth[late], true).abs_rel, motion.rotation, motion.translation
            found.setdefault(name, []).append(errors)
    names = ("abs_rel", "rotation", "translation")
    means = {name: torch.tensor(errors).mean(0).tolist() for name, errors in found.items()}
    return [{"memory": name, **dict(zip(names, mean, strict=True))} for name, mean in means.items()]


def _foreign(other: Piece, truth: Piece) -> Piece:
    """The second half of `truth` after the first half of another scene."""
    half = len(truth.frames) // 2
    return Piece(torch.cat([other.frames[:half], truth.frames[half:]]), truth.depth, truth.poses)


def drift(model: InfiniteVGGT, marks: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each path, policy and mark."""
    rows = []
    for path in DRIFT_PATHS:
        for policy in POLICIES:
            reach = [mark for mark in marks if policy != "full" or mark <= MOST_FULL]
            rows += [{"path": path, "policy": policy, **row} for row in _marked(model, path, policy, reach, seed)]
    return rows


def _marked(
    model: InfiniteVGGT, path: str, policy: TokenMemory, marks: Sequence[int], seed: int
) -> Iterator[dict[str, Any]]:
    kept, most = _Kept(), 0
    frames = marks[-1] if policy == "full" else BUDGET
    stream = stream_of(model, policy, frames)
    for piece in pieces(path, seed, marks[-1], model.config.image):
        said = watch(model, [piece], stream, every=CLOUD_EVERY)
        most = max(most, said.most)
        kept.poses += list(said.poses)
        kept.true_poses += list(piece.poses)
        home = torch.linalg.inv(kept.true_poses[0])
        true = torch.where(piece.depth.isfinite(), piece.depth, 0.0)[said.kept]
        true_points = moved(unprojected(true), home @ piece.poses[said.kept])
        for i in range(len(said.kept)):
            kept.depth.append(said.depth[i, ::2, ::2])
            kept.true_depth.append(true[i, ::2, ::2])
            is_valid = true[i, ::4, ::4] > 0
            kept.points.append(said.points[i, ::4, ::4][is_valid])
            kept.true_points.append(true_points[i, ::4, ::4][is_valid])
        done = len(kept.poses)
        for mark in marks:
            if done - len(piece.frames) < mark <= done:
                yield {"frames": mark, "most_rows": most, **_errors(kept, mark)}


def _errors(kept: _Kept, mark: int) -> dict[str, Any]:
    poses, truth = torch.stack(kept.poses[:mark]), torch.stack(kept.true_poses[:mark])
    maps = mark // CLOUD_EVERY
    late = slice(max(0, maps - LATE // CLOUD_EVERY), maps)
    depth, true = torch.stack(kept.depth[late]), torch.stack(kept.true_depth[late])
    early = slice(0, LATE // CLOUD_EVERY)
    scale = depth_scale(torch.stack(kept.depth[early]), torch.stack(kept.true_depth[early]))
    motion = relative_errors(poses[-LATE:], truth[-LATE:], GAP, scale)
    cloud = compare(scale * torch.cat(kept.points[:maps]), torch.cat(kept.true_points[:maps]), 0.1, is_aligned=True)
    still = truth[:, :3, 3] - truth[:, :3, 3].mean(0)
    try:
        ate: float | None = trajectory_errors(poses, truth).ate
    except BadRequest:
        ate = None
    return {
        "abs_rel": depth_errors(depth, true).abs_rel,
        "chance": depth_errors(mean_map(112)[::2, ::2].expand_as(true), true).abs_rel,
        "rotation_ratio": motion.rotation_ratio, "translation_ratio": motion.translation_ratio,
        "ate": ate, "ate_still": float(still.norm(dim=1).square().mean().sqrt()),
        "accuracy": cloud.accuracy.mean, "completion": cloud.completion.mean, "normals": cloud.normals,
    }  # fmt: skip
