"""Long3D's scenes as they lie in a folder: 10 Hz frames and a scanner's cloud (infinitevggt.md §12).

SCENE/image/*.png|jpg        the frames, unpacked from image.7z
SCENE/dense_cloud_map.pcd    the cloud, in the scanner's axes
SCENE/camera_from_lidar.txt  optional: 4 x 4 numbers; default none, and only the protocol's ICP aligns
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from riverrun.models.base import BadRequest

CLOUD, FRAMES, EXTRINSIC = "dense_cloud_map.pcd", "image", "camera_from_lidar.txt"
_KINDS = {"F": "f", "U": "u", "I": "i"}


@dataclass(frozen=True)
class Long3DScene:
    """files: the frames in their order. cloud float64 [N, 3] in the first camera's axes, if that is known."""

    name: str
    files: tuple[Path, ...]
    cloud: np.ndarray

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] each."""
        for path in self.files:
            with Image.open(path) as picture:
                yield np.asarray(picture.convert("RGB"))


def long3d_scene(folder: Path) -> Long3DScene:
    """Raises BadRequest that says what is missing."""
    files = tuple(sorted(p for p in (folder / FRAMES).glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")))
    if not files:
        packed = " (unpack image.7z first)" if (folder / "image.7z").exists() else ""
        raise BadRequest(f"{folder / FRAMES} has no PNG or JPEG frames{packed}")
    if not (folder / CLOUD).is_file():
        raise BadRequest(f"{folder} has no {CLOUD}")
    cloud = read_pcd(folder / CLOUD)
    if (folder / EXTRINSIC).is_file():
        extrinsic = np.loadtxt(folder / EXTRINSIC).reshape(4, 4)
        cloud = cloud @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    return Long3DScene(folder.name, files, cloud)


def read_pcd(path: Path) -> np.ndarray:
    """The x, y, z of a PCD file (ascii or binary), float64 [N, 3], points that aren't finite left out."""
    data = path.read_bytes()
    header, start = _header(data, path)
    count = int(header["POINTS"][0])
    counts = [int(n) for n in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
    if missing := [name for name in "xyz" if name not in header["FIELDS"]]:
        raise BadRequest(f"{path} has no field {', '.join(missing)}")
    kind = header["DATA"][0]
    if kind == "ascii":
        values = np.loadtxt(data[start:].decode().splitlines(), ndmin=2)
        columns = np.cumsum([0, *counts])
        points = np.stack([values[:, columns[header["FIELDS"].index(name)]] for name in "xyz"], axis=1)
    elif kind == "binary":
        fields = zip(header["FIELDS"], header["TYPE"], header["SIZE"], counts, strict=True)
        layout = np.dtype([(f"{name}{i}", f"<{_KINDS[t]}{size}", (n,)) for i, (name, t, size, n) in enumerate(fields)])
        if len(data) - start < count * layout.itemsize:
            raise BadRequest(f"{path} ends early: {count} points take {count * layout.itemsize} bytes")
        table = np.frombuffer(data, layout, count, start)
        points = np.stack([table[f"{name}{header['FIELDS'].index(name)}"][:, 0] for name in "xyz"], axis=1)
    else:
        raise BadRequest(f"{path} is PCD of data {kind!r}; ascii and binary can be read")
    points = points.astype(np.float64)
    return points[np.isfinite(points).all(axis=1)]


def _header(data: bytes, path: Path) -> tuple[dict[str, list[str]], int]:
    header: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in header:
        end = data.find(b"\n", start)
        if end < 0 or end > 65536:
            raise BadRequest(f"{path} has no PCD header")
        words = data[start:end].decode("ascii", "replace").split()
        if words and words[0] != "#":
            header[words[0]] = words[1:]
        start = end + 1
    if not {"FIELDS", "TYPE", "SIZE", "POINTS"} <= header.keys():
        raise BadRequest(f"{path} has no PCD header")
    return header, start
