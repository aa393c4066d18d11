"""Losses of the tiny VGGT. B clips, S frames, H x W pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from riverrun.models.geometry.vggt import VGGT
from riverrun.train.geometry_clip import Seen
from riverrun.train.geometry_frames import Batch

EARLIER = 0.6  # an iteration of the camera head counts so much of the next one
MOTION, CONSTANTS = 4.0, 0.05
USUAL, LEAST = 0.35, 0.2  # an error counts by sqrt(USUAL / (LEAST + size of the motion)), or wide turns would be all
CONFIDENCE = 0.2
DENSE = 4  # clips of a batch whose maps are made: the two dense heads cost more than all else


def pose_loss(poses: Tensor, batch: Batch, field_of_view: float) -> Tensor:
    """poses [iterations, B, S, 9]. What moves counts in every iteration; what never does (the first frame, the lens)
    hardly and only in the last one, or it would be all that is learned at first."""
    off = _motion_error(poses[:, :, 1:], batch)  # (iterations, B, S - 1)
    weights = torch.tensor([EARLIER ** (len(poses) - 1 - i) for i in range(len(poses))])
    motion = (weights * off.mean((1, 2))).sum()
    last = poses[-1]
    start = (last[:, 0, :7] - torch.tensor([0.0, 0, 0, 0, 0, 0, 1])).abs().sum(-1).mean()
    lens = (last[..., 7:] - field_of_view).abs().sum(-1).mean()
    return MOTION * motion + CONSTANTS * MOTION * (start + lens)


def _motion_error(poses: Tensor, batch: Batch) -> Tensor:
    """Of translation and rotation, by the size of the motion. A quaternion and its negative are one rotation; its
    scalar part, which hardly changes over small turns, counts little and in the last iteration only."""
    translation = (poses[..., :3] - batch.extrinsics[:, 1:, :, 3]).abs().sum(-1)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(poses), 1)
    weight[-1, 3] = 0.25
    truth = batch.quaternions[:, 1:]
    same, turned = (((poses[..., 3:7] - sign * truth).abs() * weight[:, None, None]).sum(-1) for sign in (1, -1))
    size = batch.extrinsics[:, 1:, :, 3].abs().sum(-1) + truth[..., :3].abs().sum(-1)
    return (translation + torch.minimum(same, turned)) * (USUAL / (LEAST + size)).sqrt()


def dense_loss(model: VGGT, seen: Seen, batch: Batch, frame: int) -> tuple[Tensor, Tensor]:
    """(depth, points) of one frame of the first DENSE clips, weighted by the confidence that the heads claim."""
    assert batch.depth is not None
    assert batch.points is not None
    assert batch.is_valid is not None
    side = batch.images.shape[-1]
    tokens = [layer[:DENSE, frame] for layer in seen.patches]
    is_valid = batch.is_valid[:DENSE, frame]
    depth, confidence = model.depth_head.dense(tokens, side, side, model.config.patch)
    true = batch.depth[:DENSE, frame]
    truth = true.clamp(min=1e-3).log()
    guess = depth[..., 0].clamp(min=1e-4).log()
    in_depth = _claimed((guess - truth).abs(), confidence, is_valid)
    in_depth = in_depth + 0.5 * sum(_edges(guess - truth, is_valid, stride) for stride in (1, 4))
    points, confidence = model.point_head.dense(tokens, side, side, model.config.patch)
    distance = (points - batch.points[:DENSE, frame]).norm(dim=-1) / true.clamp(min=0.2)
    return in_depth, _claimed(distance, confidence, is_valid)


def _claimed(error: Tensor, confidence: Tensor, is_valid: Tensor) -> Tensor:
    """Mean of confidence x error - a x log confidence (VGGT's aleatoric loss)."""
    loss = confidence * error - CONFIDENCE * confidence.log()
    return loss[is_valid].mean() if is_valid.any() else loss.sum() * 0


def _edges(off: Tensor, is_valid: Tensor, stride: int) -> Tensor:
    """Mean step of the error between neighbours: edges must lie where they are."""
    off, is_valid = off[:, ::stride, ::stride], is_valid[:, ::stride, ::stride]
    steps = torch.zeros(())
    for axis in (1, 2):
        both = is_valid.narrow(axis, 1, is_valid.shape[axis] - 1) & is_valid.narrow(axis, 0, is_valid.shape[axis] - 1)
        change = off.diff(dim=axis).abs() * both
        steps = steps + change.sum() / both.sum().clamp(min=1)
    return steps
