"""Point clouds brought together before they are compared, as Long3D's protocol does it (infinitevggt.md §12).

All in float64 on the host, exact and without an index structure: for clouds of some ten thousand points. N and M
points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.models.geometry.metrics import CloudErrors, Similarity, cloud_errors, nearest


def voxels(points: Tensor, size: float) -> Tensor:
    """points [N, 3] -> one for each cube of that side that holds any: their mean, [M, 3]."""
    cells, index = torch.unique((points.double() / size).floor().long(), dim=0, return_inverse=True)
    sums = torch.zeros(len(cells), 3, dtype=torch.float64).index_add_(0, index, points.double())
    return sums / torch.bincount(index, minlength=len(cells))[:, None]


def neighbours(points: Tensor, count: int, block: int = 2**24) -> tuple[Tensor, Tensor]:
    """(distances [N, count], indices [N, count]) of each point's nearest others, the nearest first."""
    points = points.double()
    rows = max(1, block // len(points))
    found = [torch.cdist(part, points).topk(min(count + 1, len(points)), largest=False) for part in points.split(rows)]
    return torch.cat([f.values for f in found])[:, 1:], torch.cat([f.indices for f in found])[:, 1:]


def without_outliers(points: Tensor, count: int = 100, deviations: float = 1.0) -> Tensor:
    """Leaves out points whose mean distance to their `count` nearest is that many deviations above the mean."""
    distance = neighbours(points, min(count, len(points) - 1))[0].mean(dim=1)
    return points[distance <= distance.mean() + deviations * distance.std()]


def normals(points: Tensor, count: int = 16) -> Tensor:
    """Unit normals [N, 3] of either sign: the direction in which each point's neighbours spread least."""
    points = points.double()
    near = points[neighbours(points, min(count, len(points) - 1))[1]]  # (N, count, 3)
    apart = near - near.mean(dim=1, keepdim=True)
    return torch.linalg.eigh(apart.transpose(1, 2) @ apart).eigenvectors[..., 0]


def icp(points: Tensor, others: Tensor, other_normals: Tensor, within: float, rounds: int = 50) -> Similarity:
    """The rigid motion that lays points [N, 3] on the planes at others [M, 3] (point to plane, pairs nearer than
    `within`)."""
    rotation, translation = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for _ in range(rounds):
        moved = points.double() @ rotation.T + translation
        distance, index = nearest(moved, others)
        is_pair = distance < within
        if int(is_pair.sum()) < 6:
            break
        source, normal = moved[is_pair], other_normals[index[is_pair]].double()
        off = ((others.double()[index[is_pair]] - source) * normal).sum(1)
        columns = torch.cat([torch.linalg.cross(source, normal), normal], dim=1)
        gram = columns.T @ columns + 1e-9 * torch.eye(6, dtype=torch.float64)
        step = torch.linalg.solve(gram, columns.T @ off)
        turn = torch.linalg.matrix_exp(_skew(step[:3]))
        rotation, translation = turn @ rotation, turn @ translation + step[3:]
        if float(step.abs().max()) < 1e-6:
            break
    return Similarity(rotation, translation, 1.0)


def _skew(v: Tensor) -> Tensor:
    x, y, z = v.tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Reconstruction:
    """How a cloud compares with the true one. accuracy: its points to the truth; completion: the other way."""

    accuracy: CloudErrors
    completion: CloudErrors

    @property
    def normals(self) -> float:
        """NC: mean of both directions."""
        return (self.accuracy.normals_mean + self.completion.normals_mean) / 2


def compare(
    points: Tensor, truth: Tensor, voxel: float, most: int = 3000, is_aligned: bool = False, seed: int = 0
) -> Reconstruction:
    """Long3D's steps: voxels, outliers away from both, the larger thinned out to the smaller's count, centre and scale
    (left out if `is_aligned`), point-to-plane ICP within 3.3 voxels. most: points of either, so that it ends."""
    draws = torch.Generator().manual_seed(seed)
    found, true = (_thinned(without_outliers(_thinned(voxels(x, voxel), 2 * most, draws)), most, draws)
                   for x in (points, truth))  # fmt: skip
    count = min(len(found), len(true))
    found, true = _thinned(found, count, draws), _thinned(true, count, draws)
    if not is_aligned:
        spread, true_spread = (float((x - x.mean(0)).square().sum(1).mean().sqrt()) for x in (found, true))
        found = (found - found.mean(0)) * (true_spread / max(spread, 1e-12)) + true.mean(0)
    true_normals = normals(true)
    found = icp(found, true, true_normals, 3.3 * voxel).points(found)
    found_normals = normals(found)
    return Reconstruction(
        cloud_errors(found, true, found_normals, true_normals), cloud_errors(true, found, true_normals, found_normals)
    )


def _thinned(points: Tensor, most: int, draws: torch.Generator) -> Tensor:
    return points if len(points) <= most else points[torch.randperm(len(points), generator=draws)[:most]]
