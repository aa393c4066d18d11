"""Pose encodings, camera matrices and points from depth (infinitevggt.md §9).

OpenCV axes: x right, y down, z forward. An extrinsic [R | t] takes world points to the camera; pixels are counted
from the centre of the first one. B frames, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_matrix(quaternion: Tensor) -> Tensor:
    """quaternion [..., 4] xyzw, of any length but 0 -> [..., 3, 3]."""
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / (quaternion * quaternion).sum(-1)
    rows = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_of(rotation: Tensor) -> Tensor:
    """rotation [..., 3, 3] -> [..., 4] xyzw of length 1, w not negative; by the largest of the four, so it's stable."""
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = torch.stack([1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz], dim=-1)
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    rows = [
        [squares[..., 0], xy, xz, xw],
        [xy, squares[..., 1], yz, yw],
        [xz, yz, squares[..., 2], zw],
        [xw, yw, zw, squares[..., 3]],
    ]
    candidates = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # (..., 4, 4): 4 q_i q
    best = squares.argmax(dim=-1)
    picked = candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    picked = picked / picked.norm(dim=-1, keepdim=True)
    return torch.where(picked[..., 3:] < 0, -picked, picked)


def matrices(pose: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """pose [..., 9] -> (extrinsic [..., 3, 4], intrinsic [..., 3, 3]). A field of view of 0 has an infinite focal."""
    extrinsic = torch.cat([rotation_matrix(pose[..., 3:7]), pose[..., :3, None]], dim=-1)
    intrinsic = pose.new_zeros((*pose.shape[:-1], 3, 3))
    intrinsic[..., 1, 1] = height / 2 / torch.tan(pose[..., 7] / 2)
    intrinsic[..., 0, 0] = width / 2 / torch.tan(pose[..., 8] / 2)
    intrinsic[..., 0, 2], intrinsic[..., 1, 2], intrinsic[..., 2, 2] = width / 2, height / 2, 1
    return extrinsic, intrinsic


def encoding(extrinsic: Tensor, intrinsic: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `matrices`, [..., 9], with a quaternion of length 1."""
    fov_h = 2 * torch.atan(height / 2 / intrinsic[..., 1, 1])
    fov_w = 2 * torch.atan(width / 2 / intrinsic[..., 0, 0])
    quaternion = quaternion_of(extrinsic[..., :3])
    return torch.cat([extrinsic[..., 3], quaternion, torch.stack([fov_h, fov_w], dim=-1)], dim=-1)


def camera_to_world(extrinsic: Tensor) -> Tensor:
    """extrinsic [..., 3, 4] -> its inverse as [..., 4, 4]."""
    back = extrinsic[..., :3].transpose(-1, -2)
    pose = torch.eye(4).to(extrinsic).repeat(*extrinsic.shape[:-2], 1, 1)
    pose[..., :3, :3] = back
    pose[..., :3, 3:] = -back @ extrinsic[..., 3:]
    return pose


def camera_points(depth: Tensor, intrinsic: Tensor) -> Tensor:
    """depth [B, H, W], intrinsic [B, 3, 3] -> points in the camera's axes, float64 [B, H, W, 3]."""
    depth, intrinsic = depth.double(), intrinsic.double()
    _, height, width = depth.shape
    v, u = torch.meshgrid(
        torch.arange(height).to(depth), torch.arange(width).to(depth), indexing="ij"
    )  # whole numbers: the official convention has no half pixel
    fx, fy, cx, cy = (intrinsic[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return torch.stack([(u - cx) * depth / fx, (v - cy) * depth / fy, depth], dim=-1)


def world_points(depth: Tensor, extrinsic: Tensor, intrinsic: Tensor) -> Tensor:
    """depth [B, H, W] -> points in world coordinates, float64 [B, H, W, 3]. Depths of 0 and below are taken too."""
    pose = camera_to_world(extrinsic.double())
    points = camera_points(depth, intrinsic)
    return torch.einsum("bij,bhwj->bhwi", pose[:, :3, :3], points) + pose[:, None, None, :3, 3]


def is_valid(depth: Tensor) -> Tensor:
    """bool, where a depth can be believed: above 1e-8."""
    return depth > 1e-8
