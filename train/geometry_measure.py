"""Errors on unseen clips beside those of answers that need no network. B clips, H x W pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.models.geometry.metrics import depth_errors
from riverrun.models.geometry.poses import rotation_matrix
from riverrun.models.geometry.vggt import VGGT
from riverrun.train.geometry_clip import watch
from riverrun.train.geometry_frames import Batch


@dataclass(frozen=True)
class Score:
    """Relative pose of the last frame: mean errors, and those of "no motion"; rotation in degrees, translation in
    the scene's unit. depth: AbsRel after one scale a frame; constant, mean_map: of the best answers without a
    picture."""

    rotation: float
    rotation_still: float
    translation: float
    translation_still: float
    depth: float | None = None
    constant: float | None = None
    mean_map: float | None = None

    def figures(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        moved = f"t {self.translation / self.translation_still:.3f} " if self.translation_still > 1e-6 else ""
        deep = "" if self.depth is None else f"depth {self.depth:.3f} ({self.mean_map:.3f} {self.constant:.3f})"
        return f"R {self.rotation / self.rotation_still:.3f} {moved}{deep}"


@torch.no_grad()
def score(model: VGGT, batch: Batch, part: int = 24) -> Score:
    """Of clips of S >= 2 frames: from the first to the last, and the last one's depth."""
    model.eval()
    poses, depths = [], []
    for images in batch.images.split(part):
        seen = watch(model, images)
        poses.append(seen.poses[-1])
        if batch.depth is not None:
            tokens, side = [layer[:, -1] for layer in seen.patches], images.shape[-1]
            depths.append(model.depth_head.dense(tokens, side, side, model.config.patch)[0][..., 0])
    turned, moved = relative(torch.cat(poses))
    truth = batch.extrinsics[:, -1]
    still = torch.eye(3).expand_as(turned)
    found = Score(
        rotation=float(degrees_between(turned, truth[..., :3]).mean()),
        rotation_still=float(degrees_between(still, truth[..., :3]).mean()),
        translation=float((moved - truth[..., 3]).norm(dim=-1).mean()),
        translation_still=float(truth[..., 3].norm(dim=-1).mean()),
    )
    if batch.depth is None:
        return found
    return Score(**{**vars(found), **_depths(torch.cat(depths), batch.depth[:, -1])})


def relative(poses: Tensor) -> tuple[Tensor, Tensor]:
    """(rotation [B, 3, 3], translation [B, 3]) from the first frame's camera to the last one's, of poses [B, S, 9]."""
    first, last = rotation_matrix(poses[:, 0, 3:7]), rotation_matrix(poses[:, -1, 3:7])
    turned = last @ first.transpose(1, 2)
    return turned, poses[:, -1, :3] - (turned @ poses[:, 0, :3, None])[..., 0]


def degrees_between(a: Tensor, b: Tensor) -> Tensor:
    """Angles between rotations [..., 3, 3]."""
    cosine = ((a * b).sum((-1, -2)) - 1) / 2
    return cosine.clamp(-1, 1).acos().rad2deg()


def _depths(guess: Tensor, truth: Tensor) -> dict[str, float]:
    log = torch.where(truth > 0, truth.clamp(min=1e-3).log(), torch.nan)
    mean = log.nanmean(0).nan_to_num(float(log.nanmean())).exp()
    answers = {"depth": guess, "constant": torch.ones_like(truth), "mean_map": mean.expand_as(truth)}
    return {
        name: sum(depth_errors(g, t).abs_rel for g, t in zip(answer, truth, strict=True)) / len(truth)
        for name, answer in answers.items()
    }
