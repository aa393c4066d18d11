"""A stream of geometry into a folder, in the formats a user asked for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TextIO, get_args

import numpy as np
from PIL import Image

from riverrun.client.export import ExportError
from riverrun.client.geometry.cameras import Camera, Intrinsics, quaternion_of
from riverrun.client.geometry.cloud import VoxelCloud
from riverrun.client.geometry.colmap import ColmapModel
from riverrun.client.geometry.recording import Recording
from riverrun.client.geometry.scenes import write_glb, write_ply
from riverrun.client.geometry.views import PORTS, View, Views
from riverrun.client.types import Frame
from riverrun.models.geometry.fitting import Fit, fitting

FORMATS = ("ply", "glb", "colmap", "tum", "npz", "rrd")

MOST_PATH = 4096
"""Cameras kept for a GLB's path: of a longer one every second, fourth … is."""


class GeometryFolder:
    """Takes the frames of all ports (a `Writer`), and writes what is complete.

    points.ply, scene.glb: the cloud; written by `close`. colmap/: `sparse/0` and `images/`. trajectory.txt: TUM lines
    `seconds x y z qx qy qz qw`, where the camera stands (camera-to-world). frames/000000.npz: image, depth, points,
    confidence, world_to_camera, camera_to_world, intrinsics. recording.rrd. `frames` counts complete ones, `written`
    names what lies in the folder when it is closed.

    formats: of `FORMATS`. originals: the port whose frames are the pictures as they were before the stage made them
    its own size, or None: `original` tells them, or COLMAP has the network's. fit: as the session was asked for.
    """

    def __init__(
        self,
        path: Path,
        formats: Collection[str] = ("ply", "tum"),
        *,
        cloud: VoxelCloud | None = None,
        ports: Collection[str] = PORTS,
        originals: str | None = None,
        fit: Fit = "crop",
    ) -> None:
        unknown = sorted(set(formats) - set(FORMATS))
        if unknown:
            raise ExportError(f"no format is called {unknown[0]!r}; there are {', '.join(FORMATS)}")
        if fit not in get_args(Fit):
            raise ExportError(f"fit must be one of {', '.join(get_args(Fit))}, got {fit!r}")
        self.path, self.frames, self.formats = path, 0, frozenset(formats)
        self.cloud = VoxelCloud() if cloud is None else cloud
        self._views, self._fit = Views(ports, originals if "colmap" in formats else None), fit
        self._path: list[tuple[Camera, Intrinsics]] = []
        self._stride = 1
        self._told = 1  # the recording has the cloud at frames 1, 2, 4, 8 …
        self.written: list[Path] = []
        path.mkdir(parents=True, exist_ok=True)
        self._colmap = ColmapModel(path / "colmap") if "colmap" in formats else None
        self._recording = Recording(path / "recording.rrd") if "rrd" in formats else None
        self._trajectory: TextIO | None = (path / "trajectory.txt").open("w") if "tum" in formats else None
        for folder in (("frames",) if "npz" in formats else ()) + (("colmap/images",) if self._colmap else ()):
            (path / folder).mkdir(parents=True, exist_ok=True)
        self._is_open = True

    def original(self, number: int, picture: np.ndarray) -> None:
        """The picture, uint8 [H, W, 3], that was sent as that frame; before its geometry comes."""
        if self._colmap:
            self._views.original(number, picture)

    def add(self, frame: Frame) -> None:
        """Of any port; others than the stage's and `originals` are left alone."""
        view = self._views.add(frame)
        if view is not None:
            self._take(view)

    def close(self) -> None:
        """Writes what takes the whole stream. Closing twice is no error."""
        if not self._is_open:
            return
        self._is_open = False
        points = self.cloud.points()
        if self._colmap:
            self._colmap.close(points)
        if self._recording:
            self._recording.cloud(points)
            self._recording.close()
        if self._trajectory:
            self._trajectory.close()
        if len(points) and "ply" in self.formats:
            write_ply(self.path / "points.ply", points)
        if len(points) and "glb" in self.formats:
            write_glb(self.path / "scene.glb", points, self._path)
        self.written = sorted(self.path.iterdir())

    def _take(self, view: View) -> None:
        self.cloud.add(view)
        if view.number % self._stride == 0:
            self._path.append((view.camera, view.intrinsics))
            if len(self._path) > MOST_PATH:
                self._path, self._stride = self._path[::2], 2 * self._stride
        if self._trajectory:
            self._trajectory.write(tum_line(view) + "\n")
        if "npz" in self.formats:
            write_npz(self.path / "frames" / f"{view.number:06d}.npz", view)
        if self._colmap:
            self._add_image(self._colmap, view)
        if self._recording:
            self._recording.add(view)
            if self.frames + 1 == self._told:
                self._recording.cloud(self.cloud.points())
                self._told *= 2
        self.frames += 1

    def _add_image(self, model: ColmapModel, view: View) -> None:
        name, picture, intrinsics = f"{view.number:06d}.png", view.image, view.intrinsics
        if view.original is not None:
            picture = view.original
            height, width = picture.shape[:2]
            intrinsics = intrinsics.of_original(fitting(height, width, side=view.image.shape[1], fit=self._fit))
        Image.fromarray(picture).save(self.path / "colmap" / "images" / name, compress_level=1)
        model.add(name, view.camera, intrinsics)


def tum_line(view: View) -> str:
    """Where the camera stands and how it is turned, camera-to-world."""
    pose = view.camera.camera_to_world
    numbers = [*pose[:3, 3], *quaternion_of(pose[:3, :3])]
    return f"{view.seconds:.6f} " + " ".join(f"{number:.9f}" for number in numbers)


def write_npz(path: Path, view: View) -> None:
    np.savez_compressed(
        path,
        image=view.image,
        depth=view.depth,
        points=view.points,
        confidence=view.confidence,
        world_to_camera=view.camera.world_to_camera,
        camera_to_world=view.camera.camera_to_world,
        intrinsics=view.intrinsics.matrix,
        seconds=np.float64(view.seconds),
    )
