"""A known scene: a wall of coloured squares seen by a camera that walks to the right and turns, with exact truth."""

from __future__ import annotations

import numpy as np

from riverrun.client.types import Frame

HEIGHT, WIDTH = 28, 42
FOV_H, FOV_W = 0.8, 1.1


def stands(number: int) -> np.ndarray:
    """Camera-to-world float64 [4, 4]: a step of 0.1 to the right and a turn of 2 degrees about y (to the right)."""
    turn = np.deg2rad(2.0 * number)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    pose[:3, 3] = [0.1 * number, 0, 0]
    return pose


def values(number: int) -> np.ndarray:
    """Of the port `camera`: world-to-camera."""
    turn = -np.deg2rad(2.0 * number)
    back = np.linalg.inv(stands(number))
    return np.array([*back[:3, 3], 0, np.sin(turn / 2), 0, np.cos(turn / 2), FOV_H, FOV_W], np.float32)


def frames(number: int, wall: float = 2.0) -> list[Frame]:
    """All ports' frames of one moment; the wall stands at z = `wall`."""
    pose = stands(number)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    x, y = ((at / size - 0.5) * 2 * np.tan(fov / 2) for at, size, fov in ((u, WIDTH, FOV_W), (v, HEIGHT, FOV_H)))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)  # (H, W, 3)
    world = rays @ pose[:3, :3].T
    depth = (wall - pose[2, 3]) / world[..., 2]
    points = world * depth[..., None] + pose[:3, 3]
    squares = np.floor(points[..., :2] / 0.25).astype(int)
    image = np.stack([squares[..., 0] * 40 % 256, squares[..., 1] * 60 % 256, squares.sum(-1) * 50 % 256], axis=-1)
    arrays = {
        "image": image.astype(np.uint8),
        "depth": depth.astype(np.float32),
        "points": points.astype(np.float32),
        "camera": values(number),
        "confidence": (1 + np.cos(u / WIDTH) * np.cos(v / HEIGHT)).astype(np.float32),
    }
    return [Frame(array, port, number, number / 10, number, 0) for port, array in arrays.items()]
