"""How far a reconstruction is from the truth: trajectories, depth, point clouds (infinitevggt.md §12).

All in float64 on the host. T frames, N and M points. Poses are camera-to-world [T, 4, 4]; the official pose script
hands world-to-camera ones to the same formulas, so its published numbers are not comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from riverrun.models.base import BadRequest

Alignment = Literal["scale", "median", "lstsq", "metric"]


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation x + translation."""

    rotation: Tensor
    translation: Tensor
    scale: float

    def points(self, x: Tensor) -> Tensor:
        """x [N, 3] moved."""
        return self.scale * x @ self.rotation.T + self.translation

    def poses(self, poses: Tensor) -> Tensor:
        """Camera-to-world [T, 4, 4] moved; rotations stay rotations."""
        moved = poses.clone()
        moved[:, :3, :3] = self.rotation @ poses[:, :3, :3]
        moved[:, :3, 3] = self.points(poses[:, :3, 3])
        return moved


def umeyama(source: Tensor, target: Tensor) -> Similarity:
    """The similarity that brings source [N, 3] nearest to target [N, 3] (Umeyama 1991). Raises BadRequest for points
    that all lie in one place or on one line."""
    source, target = source.double(), target.double()
    source_mean, target_mean = source.mean(0), target.mean(0)
    apart = source - source_mean
    u, d, vt = torch.linalg.svd((target - target_mean).T @ apart / len(source))
    if int((d > torch.finfo(torch.float64).eps).sum()) < 2:
        raise BadRequest("points in one place or on one line can't be aligned")
    signs = torch.ones(3, dtype=torch.float64)
    if torch.linalg.det(u) * torch.linalg.det(vt) < 0:
        signs[2] = -1
    rotation = u @ torch.diag(signs) @ vt
    scale = float((d * signs).sum() / apart.square().sum(1).mean())
    return Similarity(rotation, target_mean - scale * rotation @ source_mean, scale)


@dataclass(frozen=True)
class TrajectoryErrors:
    """Root mean squares after a similarity alignment. ate, rpe_translation: in the truth's unit; rpe_rotation:
    degrees, from each frame to the next."""

    ate: float
    rpe_translation: float
    rpe_rotation: float


def trajectory_errors(estimate: Tensor, truth: Tensor) -> TrajectoryErrors:
    """Of camera-to-world poses [T, 4, 4], T at least 3.

    ATE alone flatters: alignment makes much of any path of the right shape. Compare RPE with that of no motion.
    """
    truth = truth.double()
    aligned = umeyama(estimate[:, :3, 3], truth[:, :3, 3]).poses(estimate.double())
    ate = (aligned[:, :3, 3] - truth[:, :3, 3]).norm(dim=1)
    steps = (torch.linalg.inv(poses[:-1]) @ poses[1:] for poses in (truth, aligned))
    off = torch.linalg.inv(next(steps)) @ next(steps)  # (T - 1, 4, 4)
    return TrajectoryErrors(_rms(ate), _rms(off[:, :3, 3].norm(dim=1)), _rms(_degrees(off[:, :3, :3])))


@dataclass(frozen=True)
class RelativeErrors:
    """Mean errors of the motion over a gap, and those of the answer "no motion". rotation: degrees; translation: in
    the truth's unit. A ratio near 1 says that nothing was learned, however good the ATE looks."""

    rotation: float
    rotation_still: float
    translation: float
    translation_still: float

    @property
    def rotation_ratio(self) -> float:
        return self.rotation / max(self.rotation_still, 1e-9)

    @property
    def translation_ratio(self) -> float:
        return self.translation / max(self.translation_still, 1e-9)


def relative_errors(estimate: Tensor, truth: Tensor, gap: int, scale: float) -> RelativeErrors:
    """Of camera-to-world poses [T, 4, 4], from each frame to that `gap` later. scale: of the estimate's translations,
    one for the sequence, found elsewhere (of depth): so it holds for straight paths, which can't be aligned."""
    truth, scaled = truth.double(), estimate.double().clone()
    scaled[:, :3, 3] *= scale
    true, found = (torch.linalg.inv(poses[:-gap]) @ poses[gap:] for poses in (truth, scaled))
    off = torch.linalg.inv(true[:, :3, :3]) @ found[:, :3, :3]
    return RelativeErrors(
        rotation=float(_degrees(off).mean()),
        rotation_still=float(_degrees(true[:, :3, :3]).mean()),
        translation=float((found[:, :3, 3] - true[:, :3, 3]).norm(dim=1).mean()),
        translation_still=float(true[:, :3, 3].norm(dim=1).mean()),
    )


def _degrees(rotation: Tensor) -> Tensor:
    """Angles of rotations [N, 3, 3], by sine and cosine: near 0 the arc cosine alone has no digits left."""
    m = rotation
    axis = torch.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], dim=1)
    trace = m.diagonal(dim1=1, dim2=2).sum(1)
    return torch.atan2(axis.norm(dim=1), trace - 1).rad2deg()


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@dataclass(frozen=True)
class DepthErrors:
    """Means over valid pixels. within: shares whose ratio to the truth is below 1, 1.25, 1.25^2, 1.25^3."""

    abs_rel: float
    sq_rel: float
    rmse: float
    log_rmse: float
    within: tuple[float, float, float, float]
    valid_pixels: int


def depth_errors(
    estimate: Tensor, truth: Tensor, alignment: Alignment = "scale", max_depth: float | None = 70.0
) -> DepthErrors:
    """Of one sequence's depths, any equal shapes. Pixels count whose true depth is above 0 and below `max_depth`.

    alignment, one for the sequence: "scale" (least absolute difference; the published runs), "median" (ratio of the
    medians), "lstsq" (scale and shift), "metric" (none).
    """
    is_valid = truth > 0 if max_depth is None else (truth > 0) & (truth < max_depth)
    if not is_valid.any():
        raise BadRequest("no pixel has a true depth in range")
    true, near = truth[is_valid], estimate[is_valid]
    true, near = true.double(), _aligned(near, true, alignment).double()  # aligned in their own dtype, see there
    off, positive = near - true, near.clamp(min=1e-5)
    ratio = torch.maximum(positive / true, true / positive)
    first, second, third, fourth = (float((ratio < limit).double().mean()) for limit in (1, 1.25, 1.25**2, 1.25**3))
    return DepthErrors(
        abs_rel=float((off.abs() / true).mean()),
        sq_rel=float((off.square() / true).mean()),
        rmse=_rms(off),
        log_rmse=_rms(positive.log() - true.log()),
        within=(first, second, third, fourth),
        valid_pixels=int(is_valid.sum()),
    )


def _aligned(near: Tensor, true: Tensor, alignment: Alignment) -> Tensor:
    if alignment == "metric":
        return near
    if alignment == "median":
        return near * (true.median() / near.median())
    if alignment == "lstsq":
        columns = torch.stack([near, torch.ones_like(near)], dim=1)
        scale, shift = torch.linalg.lstsq(columns, true[:, None]).solution[:, 0]
        return scale * near + shift
    scale = true.nanmean() / near.nanmean()
    for _ in range(10):  # least squares, each pixel weighted by the last round's distance: goes to the least sum
        # A pixel hit exactly weighs 1e8, so the result hangs on the rounding: float32 and this order are official.
        weight = 1 / ((scale * near - true).abs() + 1e-8)
        scale = (weight * near * true).nansum() / (weight * near**2).nansum()
    return near * scale.clamp(min=1e-3)


@dataclass(frozen=True)
class CloudErrors:
    """From each point of one cloud to the nearest of the other. normals_*: |cosine| between the two's normals."""

    mean: float
    median: float
    normals_mean: float
    normals_median: float


def cloud_errors(points: Tensor, others: Tensor, normals: Tensor, other_normals: Tensor) -> CloudErrors:
    """points, normals [N, 3]; others, other_normals [M, 3].

    Reconstruction against truth is accuracy, truth against reconstruction completion.
    """
    distance, index = nearest(points, others)
    cosine = (normals.double() * other_normals.double()[index]).sum(1).abs()
    return CloudErrors(float(distance.mean()), _middle(distance), float(cosine.mean()), _middle(cosine))


def completion_ratio(truth: Tensor, reconstruction: Tensor, within: float = 0.05) -> float:
    """Share of the true points [N, 3] that have one of reconstruction [M, 3] nearer than `within`."""
    return float((nearest(truth, reconstruction)[0] < within).double().mean())


def nearest(points: Tensor, others: Tensor, block: int = 2**24) -> tuple[Tensor, Tensor]:
    """(distance [N], index [N]) of the nearest of others [M, 3] to each of points [N, 3].

    Exact and without an index structure: N x M distances, `block` at a time.
    """
    points, others = points.double(), others.double()
    rows = max(1, block // len(others))
    found = [
        torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1) for part in points.split(rows)
    ]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _middle(x: Tensor) -> float:
    """The median, of an even count the mean of the middle two."""
    return float(x.sort().values[[(len(x) - 1) // 2, len(x) // 2]].mean())
