"""Depth, camera and points on unseen tiny-world sequences, each beside answers that need no network."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from riverrun.bench.geometry_paths import CAPTIONS, Piece, whole
from riverrun.bench.geometry_watch import Watched, stream_of, watch
from riverrun.models.base import BadRequest
from riverrun.models.geometry.clouds import compare
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.metrics import depth_errors, relative_errors, trajectory_errors
from riverrun.train.geometry_frames import caption_clip
from riverrun.train.geometry_start import FIELD_OF_VIEW

QUALITY_PATHS = (*CAPTIONS, "revisits", "walks on")
GAP = 8  # frames of a relative pose: a motion of more than a cell of the network's picture
MEMORY_FRAMES = 24
CAMERA_HEIGHT, CAMERA_DISTANCE, CAMERA_TARGET = 1.72, 4.3, 0.85  # of the captions' mean camera


def quality(model: InfiniteVGGT, scenes: int, frames: int) -> list[dict[str, Any]]:
    """A row for each path: means over `scenes` sequences."""
    rows = []
    for path in QUALITY_PATHS:
        found = [_sequence(model, whole(path, seed, frames, model.config.image)) for seed in range(scenes)]
        rows.append({"path": path, **_mean(found)})
    rows.append({"path": "all", **_mean(rows)})
    return rows


def _sequence(model: InfiniteVGGT, truth: Piece) -> dict[str, float | None]:
    said = watch(model, [truth], stream_of(model, "diverse_keys", MEMORY_FRAMES))
    true = torch.where(truth.depth.isfinite(), truth.depth, 0.0)
    scale = depth_scale(said.depth, true)
    depth = depth_errors(said.depth, true)
    answers = {
        "constant": torch.ones_like(true),
        "floor_plane": floor_plane(true.shape[-1]).expand_as(true),
        "mean_map": mean_map(true.shape[-1]).expand_as(true),
    }
    motion = relative_errors(said.poses, truth.poses, GAP, scale)
    return {
        "abs_rel": depth.abs_rel,
        "within": depth.within[1],
        **{name: depth_errors(answer, true).abs_rel for name, answer in answers.items()},
        "rotation": motion.rotation, "rotation_still": motion.rotation_still,
        "translation": motion.translation, "translation_still": motion.translation_still,
        "ate": _ate(said.poses, truth.poses),
        "ate_still": float((truth.poses[:, :3, 3] - truth.poses[:, :3, 3].mean(0)).norm(dim=1).square().mean().sqrt()),
        **reconstruction(said, truth, scale),
    }  # fmt: skip


def depth_scale(depth: Tensor, true: Tensor) -> float:
    """What a unit of the reconstruction is in the truth's: the median ratio of depths."""
    is_valid = true > 0
    return float((true[is_valid] / depth[is_valid].clamp(min=1e-6)).median())


def _ate(poses: Tensor, truth: Tensor) -> float | None:
    """None where the path is a straight line: it can't be aligned."""
    try:
        return trajectory_errors(poses, truth).ate
    except BadRequest:
        return None


def reconstruction(said: Watched, truth: Piece, scale: float, voxel: float = 0.06) -> dict[str, float]:
    """Accuracy, completion and normals of the accumulated points, in the truth's unit, and of the same for a camera
    that stands still before the mean depth map."""
    every = max(1, len(said.kept) // 12)
    chosen = torch.arange(0, len(said.kept), every)
    frames = said.kept[chosen]
    true_local = unprojected(torch.where(truth.depth.isfinite(), truth.depth, 0.0)[frames])
    home = torch.linalg.inv(truth.poses[0])
    true = moved(true_local, home @ truth.poses[frames])
    is_valid = truth.depth[frames].isfinite()
    found = compare(scale * said.points[chosen][is_valid], true[is_valid], voxel, is_aligned=True)
    chance_depth = mean_map(truth.depth.shape[-1]).expand(len(frames), -1, -1)
    chance = compare(unprojected(chance_depth)[is_valid], true[is_valid], voxel, is_aligned=True)
    return {
        "accuracy": found.accuracy.mean, "completion": found.completion.mean, "normals": found.normals,
        "accuracy_chance": chance.accuracy.mean, "completion_chance": chance.completion.mean,
        "normals_chance": chance.normals,
    }  # fmt: skip


def unprojected(depth: Tensor) -> Tensor:
    """depth [T, H, W] of the tiny world's lens -> points in the camera's axes [T, H, W, 3]."""
    return depth[..., None] * _rays(depth.shape[-1])


def moved(points: Tensor, poses: Tensor) -> Tensor:
    """points [T, H, W, 3] by poses [T, 4, 4]."""
    return torch.einsum("tij,thwj->thwi", poses[:, :3, :3], points) + poses[:, None, None, :3, 3]


def _rays(side: int) -> Tensor:
    at = ((torch.arange(side) + 0.5) / side * 2 - 1) * torch.tan(torch.tensor(FIELD_OF_VIEW / 2))
    v, u = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], dim=-1)


def floor_plane(side: int) -> Tensor:
    """[H, W]: the bare floor as the captions' mean camera sees it; at the horizon and above, its farthest."""
    down = torch.atan2(torch.tensor(CAMERA_HEIGHT - CAMERA_TARGET), torch.tensor(CAMERA_DISTANCE))
    rays = _rays(side)
    fall = rays[..., 1] * torch.cos(down) + torch.sin(down)  # downwards, for each unit of depth
    return (CAMERA_HEIGHT / fall.clamp(min=CAMERA_HEIGHT / 20)).clamp(max=20)


@lru_cache(maxsize=2)
def mean_map(side: int, scenes: int = 120) -> Tensor:
    """[H, W]: geometric mean of depth over training scenes; the mean of all where none has any."""
    depth = torch.stack([caption_clip(n, 1, side).depth[0] for n in range(scenes)])
    log = torch.where(depth.isfinite(), depth.log(), torch.nan)
    return log.nanmean(0).nan_to_num(float(log.nanmean())).exp()


def _mean(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Ratios are those of the means: a sequence with next to no motion has none of its own."""
    names = [name for name in rows[0] if name not in ("path", "rotation_ratio", "translation_ratio")]
    found: dict[str, float | None] = {}
    for name in names:
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = sum(values) / len(values) if values else None
    for kind in ("rotation", "translation"):
        error, still = found[kind], found[f"{kind}_still"]
        found[f"{kind}_ratio"] = error / still if error is not None and still else None
    return found
