"""A COLMAP model in its binary format: cameras, images and points, as splatting and reconstruction tools read it.

Our own small writer: pycolmap is 38 MB of compiled code and holds a whole model in memory, while this one appends a
frame as it comes and needs the standard library only. The test reads it back by pycolmap.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from riverrun.client.geometry.cameras import Camera, Intrinsics, quaternion_of
from riverrun.client.geometry.cloud import Points

PINHOLE = 1
"""COLMAP's number for the model with fx, fy, cx, cy."""


class ColmapModel:
    """`sparse/0` below a folder: every image has a camera of its own, since each frame tells its field of view anew.

    Poses are world-to-camera, as COLMAP has them, and pixels count from the image's corner. Points carry no tracks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sparse" / "0"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._cameras, self._images = _Counted(self._folder / "cameras.bin"), _Counted(self._folder / "images.bin")

    def add(self, name: str, camera: Camera, intrinsics: Intrinsics) -> None:
        """The image of that file name, with the pinhole of its own pixels."""
        number = self._images.count + 1
        size = (intrinsics.width, intrinsics.height)
        pinhole = (intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy)
        self._cameras.add(struct.pack("<iiQQ4d", number, PINHOLE, *size, *pinhole))
        pose = camera.world_to_camera
        x, y, z, w = quaternion_of(pose[:3, :3])
        placed = struct.pack("<i4d3di", number, w, x, y, z, *pose[:3, 3], number)
        self._images.add(placed + name.encode() + b"\0" + struct.pack("<Q", 0))

    def close(self, points: Points) -> None:
        """Completes the model. Closing twice is no error."""
        self._cameras.close()
        self._images.close()
        with (self._folder / "points3D.bin").open("wb") as file:
            file.write(struct.pack("<Q", len(points)))
            for number, (xyz, rgb) in enumerate(zip(points.xyz, points.rgb, strict=True), 1):
                file.write(struct.pack("<Q3d3BdQ", number, *xyz, *rgb, 0.0, 0))


class _Counted:
    """A file that begins with the number of its records."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._file: BinaryIO = path.open("wb")
        self._file.write(struct.pack("<Q", 0))

    def add(self, record: bytes) -> None:
        self._file.write(record)
        self.count += 1

    def close(self) -> None:
        if self._file.closed:
            return
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self.count))
        self._file.close()
