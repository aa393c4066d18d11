"""Cameras as a geometry stage tells them, in numpy (infinitevggt.md §9).

OpenCV axes: x right, y down, z forward. The port carries *world-to-camera*: where a point of the world is, seen from
the camera. Where the camera *stands* is the inverse, camera-to-world. Every function here says in its name which it
gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from riverrun.models.geometry.fitting import Fitting


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole, in pixels. cx, cy count from the image's corner: the first pixel's centre is (0.5, 0.5)."""

    height: int
    width: int
    fx: float
    fy: float
    cx: float
    cy: float

    @property
    def matrix(self) -> np.ndarray:
        """float64 [3, 3]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def of_original(self, laid: Fitting) -> Intrinsics:
        """Those of the image that was laid into the network's as `laid` says."""
        (down, right), (by_row, by_column) = laid.offset, laid.scale
        return Intrinsics(
            laid.height,
            laid.width,
            self.fx * by_column,
            self.fy * by_row,
            (self.cx - right) * by_column,
            (self.cy - down) * by_row,
        )


@dataclass(frozen=True, eq=False)
class Camera:
    """values: float [9] of the port `camera`: translation, quaternion xyzw of any length, field of view by height and
    by width in radians."""

    values: np.ndarray

    @cached_property
    def world_to_camera(self) -> np.ndarray:
        """float64 [4, 4]."""
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_matrix(self.values[3:7])
        matrix[:3, 3] = self.values[:3]
        return matrix

    @cached_property
    def camera_to_world(self) -> np.ndarray:
        """float64 [4, 4]; its last column is where the camera stands."""
        back = self.world_to_camera[:3, :3].T
        matrix = np.eye(4)
        matrix[:3, :3] = back
        matrix[:3, 3] = -back @ self.world_to_camera[:3, 3]
        return matrix

    def intrinsics(self, height: int, width: int) -> Intrinsics:
        """For the network's image of that size. A field of view of 0 (an untrained network's) counts as 0.01."""
        fov_h, fov_w = np.maximum(self.values[7:9].astype(np.float64), 0.01)
        fy, fx = height / 2 / np.tan(fov_h / 2), width / 2 / np.tan(fov_w / 2)
        # The network counts pixels by their centres, from 0, and has its axis at (W/2, H/2) in that count.
        return Intrinsics(height, width, float(fx), float(fy), width / 2 + 0.5, height / 2 + 0.5)


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """quaternion [4] xyzw, of any length but 0 -> float64 [3, 3]."""
    x, y, z, w = quaternion.astype(np.float64) / max(float(np.linalg.norm(quaternion)), 1e-12)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """rotation [3, 3] -> float64 [4] xyzw of length 1, w not negative."""
    m = rotation.astype(np.float64)
    skew = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    # 4 q q^T, built from the matrix: its longest column is the most precise quaternion
    products = np.empty((4, 4))
    products[:3, :3] = m + m.T
    np.fill_diagonal(products[:3, :3], 1 + 2 * np.diagonal(m) - np.trace(m))
    products[:3, 3] = products[3, :3] = skew
    products[3, 3] = 1 + np.trace(m)
    best = products[:, np.argmax(np.diagonal(products))]
    unit = best / np.linalg.norm(best)
    return -unit if unit[3] < 0 else unit
