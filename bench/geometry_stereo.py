"""Stereo pairs with truth, out of packages (specs: data.md (b)): real pictures of two cameras side by side."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from riverrun.train.clips import Absent, member

DOCS = Path("/usr/share/doc/opencv-doc/examples/data")
STEREO = "scikit-image==0.16.2"
FOCAL, CENTRE_OFFSET, BASELINE = 994.978, 31.086, 193.001  # of the motorcycle, in pixels, pixels and millimetres


@dataclass(frozen=True)
class Pair:
    """left, right uint8 [H, W, 3]; depth float32 [H, W] of the left one up to scale, 0 where unknown. rotation [3, 3],
    move [3]: the right camera's pose in the left one's; unless told, it is turned as that and stands to its right."""

    name: str
    left: np.ndarray
    right: np.ndarray
    depth: np.ndarray
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    move: np.ndarray = field(default_factory=lambda: np.array([1.0, 0.0, 0.0]))


def motorcycle() -> Pair:
    """Middlebury 2014, out of scikit-image 0.16.2."""
    left, right = (_picture(member(STEREO, f"skimage/data/motorcycle_{side}.png")) for side in ("left", "right"))
    with np.load(io.BytesIO(member(STEREO, "skimage/data/motorcycle_disp.npz"))) as archive:
        disparity = archive[archive.files[0]]
    depth = np.where(np.isfinite(disparity), FOCAL * BASELINE / 1000 / (disparity + CENTRE_OFFSET), 0)
    return Pair("motorcycle", left, right, depth.astype(np.float32))


def _picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def aloe() -> Pair:
    """Middlebury 2006, out of opencv-doc; depth up to an unknown shift of disparity, taken as none."""
    if not (DOCS / "aloeGT.png").is_file():
        raise Absent("opencv-doc is not there; get it by: apt-get install opencv-doc")
    left, right, truth = (np.asarray(Image.open(DOCS / f"aloe{name}")) for name in ("L.jpg", "R.jpg", "GT.png"))
    return Pair("aloe", left, right, np.where(truth > 0, 1 / np.maximum(truth, 1).astype(np.float32), 0))
