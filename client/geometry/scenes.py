"""Clouds and camera paths as files that viewers of 3D scenes read: PLY and GLB, by trimesh (extra `geometry`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riverrun.client.export import ExportError
from riverrun.client.geometry.cameras import Camera, Intrinsics
from riverrun.client.geometry.cloud import Points

FRUSTUM = 0.05
"""A camera's depth in a GLB, as a share of the scene's size."""

MOST_CAMERAS = 200

_FACES = np.array([(0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 1)])

TO_GL = np.diag([1.0, -1.0, -1.0, 1.0])
"""From OpenCV's axes (y down, z forward) to glTF's (y up, z back)."""


def write_ply(path: Path, points: Points) -> None:
    """Binary little-endian, with colours. Raises ExportError where there is no point."""
    trimesh = _trimesh()
    _check(points)
    path.write_bytes(trimesh.PointCloud(points.xyz, colors=points.rgb).export(file_type="ply"))


def write_glb(path: Path, points: Points, cameras: Sequence[tuple[Camera, Intrinsics]]) -> None:
    """The cloud, a small pyramid for each camera (an even choice of `MOST_CAMERAS`) and their path, in glTF's axes."""
    trimesh = _trimesh()
    _check(points)
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.PointCloud(points.xyz, colors=points.rgb), geom_name="points")
    size = FRUSTUM * float(np.linalg.norm(np.ptp(points.xyz, axis=0)))
    if cameras:
        shown = [cameras[i] for i in np.unique(np.linspace(0, len(cameras) - 1, MOST_CAMERAS).astype(int))]
        pyramids = np.concatenate([_pyramid(camera, intrinsics, size) for camera, intrinsics in shown])  # (5 N, 3)
        faces = np.concatenate([_FACES + 5 * i for i in range(len(shown))])
        colours = np.tile(np.array([217, 72, 15, 255], np.uint8), (len(pyramids), 1))
        mesh = trimesh.Trimesh(pyramids, faces, vertex_colors=colours, process=False)
        scene.add_geometry(mesh, geom_name="cameras")
    if len(cameras) > 1:
        stands = np.array([camera.camera_to_world[:3, 3] for camera, _ in cameras])
        line = trimesh.path.entities.Line(np.arange(len(stands)))
        scene.add_geometry(trimesh.path.Path3D([line], stands, process=False), geom_name="path")
    scene.apply_transform(TO_GL)
    path.write_bytes(scene.export(file_type="glb"))


def _pyramid(camera: Camera, intrinsics: Intrinsics, depth: float) -> np.ndarray:
    """Where the camera stands and the corners of its picture at that depth, in the world: float64 [5, 3]."""
    right, down = np.array([0, intrinsics.width]), np.array([0, intrinsics.height])
    x, y = (right - intrinsics.cx) / intrinsics.fx, (down - intrinsics.cy) / intrinsics.fy
    corners = depth * np.array([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]])
    seen = np.concatenate([np.zeros((1, 3)), corners])
    return seen @ camera.camera_to_world[:3, :3].T + camera.camera_to_world[:3, 3]


def _check(points: Points) -> None:
    if not len(points):
        raise ExportError("there is no point to write: no frame came, or none had a point that could be believed")


def _trimesh() -> Any:
    try:
        import trimesh
        import trimesh.path
    except ImportError:
        raise ExportError("PLY and GLB need the extra geometry: pip install 'riverrun[geometry]'") from None
    return trimesh
