"""The graph `world` from prompt to camera path: does the path that comes out turn as the prompt asked?

Generation, super-resolution and geometry as the graph wires them, in one process; beside it the geometry stage alone on
the same scenes rendered, so that what the pictures get wrong and what the reconstruction does can be told apart.
T frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.actors.loading import build
from riverrun.bench.adherence import Rig, held_out_scenes
from riverrun.bench.geometry_paths import CAPTIONS, Piece
from riverrun.bench.geometry_quality import GAP, depth_scale
from riverrun.bench.geometry_watch import stream_of, watch
from riverrun.bench.vsr_quality import Ours
from riverrun.configs import load_model
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.metrics import relative_errors
from riverrun.models.geometry.preprocess import prepare
from riverrun.models.super_resolution.infvsr import InfVSR
from riverrun.train.scenes import Scene
from riverrun.train.world import render

UPSCALER = "infvsr-world"
MEMORY_FRAMES = 24
MOVES = 0.05  # of a unit: below it a camera's direction is noise


def asked(model: InfiniteVGGT, scenes: int, frames: int) -> list[dict[str, Any]]:
    """A row for each motion a prompt can ask for, and for both kinds of video; means over scenes with held-out
    captions, of the motion over GAP frames."""
    rig, upscaler = Rig(), build(load_model(UPSCALER))
    assert isinstance(upscaler, InfVSR)
    rows = []
    for motion in CAPTIONS:
        wanted = [replace(scene, camera=replace(scene.camera, motion=motion)) for scene in held_out_scenes(scenes)]
        made = [Ours(upscaler).upscale(clip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                for clip in _generated(rig, wanted, frames)]  # fmt: skip
        true = [render(scene, frames).frames for scene in wanted]
        for video, clips in (("world", made), ("rendered", true)):
            found = [_errors(model, scene, clip) for scene, clip in zip(wanted, clips, strict=True)]
            rows.append({"video": video, "asked": motion, **_mean(found)})
    return rows


def _generated(rig: Rig, scenes: Sequence[Scene], frames: int) -> list[Tensor]:
    """uint8 [T, H, W, 3] of each prompt."""
    states = rig.open(scenes)
    clips = [[block] for block in rig.block(states)]
    while sum(len(block) for block in clips[0]) < frames:
        for clip, block in zip(clips, rig.block(states), strict=True):
            clip.append(block)
    return [torch.cat(clip)[:frames] for clip in clips]


def _errors(model: InfiniteVGGT, scene: Scene, clip: Tensor) -> dict[str, float]:
    """clip uint8 [T, H, W, 3] of any size, against the path that its prompt asks for."""
    side = model.config.image
    truth = render(scene, len(clip), side, side)
    pixels = torch.stack([prepare(frame.numpy(), side, model.config.patch) for frame in clip])
    frames = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    said = watch(model, [Piece(frames, truth.depth, truth.camera_to_world)],
                 stream_of(model, "diverse_keys", MEMORY_FRAMES))  # fmt: skip
    true = torch.where(truth.depth.isfinite(), truth.depth, 0.0)
    found = relative_errors(said.poses, truth.camera_to_world, GAP, depth_scale(said.depth, true))
    return {
        "turn": found.rotation_still, "turned": _turned(said.poses, truth.camera_to_world),
        "rotation": found.rotation, "move": found.translation_still, "translation": found.translation,
        "direction": _direction(said.poses, truth.camera_to_world),
    }  # fmt: skip


def _turned(poses: Tensor, truth: Tensor) -> float:
    """Mean degrees of the found turn about the axis of the one asked for: negative if it goes the other way."""
    found, true = (_vector(torch.linalg.inv(p[:-GAP, :3, :3]) @ p[GAP:, :3, :3]) for p in (poses, truth))
    return float((found * F.normalize(true, dim=1)).sum(1).rad2deg().mean())


def _vector(rotation: Tensor) -> Tensor:
    """Rotations [N, 3, 3] below half a turn as axis times angle in radians, [N, 3]."""
    m = rotation.double()
    axis = torch.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], dim=1)
    sine, cosine = axis.norm(dim=1, keepdim=True) / 2, (m.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - 1) / 2
    return axis / (2 * sine).clamp(min=1e-12) * torch.atan2(sine, cosine)


def _direction(poses: Tensor, truth: Tensor) -> float:
    """Mean degrees between the found and the asked direction of the camera's moves; 90 is chance."""
    found, true = ((torch.linalg.inv(p[:-GAP]) @ p[GAP:])[:, :3, 3].double() for p in (poses, truth))
    does_move = true.norm(dim=1) > MOVES
    cosine = F.cosine_similarity(found[does_move], true[does_move], dim=1)
    return float(cosine.clamp(-1, 1).acos().rad2deg().mean())


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
