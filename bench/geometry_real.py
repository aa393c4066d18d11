"""Depth and camera on real pictures with truth, out of packages (specs: data.md (b)); whatever is absent is left out.

Weights trained on rendered scenes of one lens are not made for these: the figures say how far that goes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from riverrun.bench.geometry_watch import stream_of
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.metrics import depth_errors
from riverrun.models.geometry.poses import rotation_matrix
from riverrun.train.clips import Absent, member
from riverrun.train.geometry_measure import degrees_between

DOCS = Path("/usr/share/doc/opencv-doc/examples/data")
STEREO = "scikit-image==0.16.2"
FOCAL, CENTRE_OFFSET, BASELINE = 994.978, 31.086, 193.001  # of the motorcycle, in pixels, pixels and millimetres


@dataclass(frozen=True)
class Pair:
    """left, right uint8 [H, W, 3]; depth float32 [H, W] of the left one up to scale, 0 where unknown. The right
    camera is turned as the left one and stands to its right."""

    name: str
    left: np.ndarray
    right: np.ndarray
    depth: np.ndarray


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


PAIRS: tuple[Callable[[], Pair], ...] = (motorcycle, aloe)


def real(model: InfiniteVGGT) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each pair, and a line for each that is absent. The truth of the pose: two parallel cameras, no turn,
    a move to the right."""
    rows, absent = [], []
    for make in PAIRS:
        try:
            rows.append(_row(model, make()))
        except Absent as problem:
            absent.append(str(problem))
    if not (DOCS / "left01.jpg").is_file():
        absent.append("chessboard stereo is not there; get it by: apt-get install opencv-doc")
    else:
        absent.append("chessboard stereo is left out: its poses want a calibration (opencv-python-headless)")
    return rows, absent


@torch.no_grad()
def _row(model: InfiniteVGGT, pair: Pair) -> dict[str, Any]:
    side = model.config.image
    pixels = (torch.from_numpy(x.copy()).permute(2, 0, 1).float() / 255 for x in (pair.left, pair.right))
    left, right = (_square(x, side) for x in pixels)
    true = _square(torch.from_numpy(pair.depth)[None], side, nearest=True)[0]
    stream = stream_of(model, "diverse_keys", 24)
    first, second = (model.model.frame(image[None], [stream]) for image in (left, right))
    depth = depth_errors(first.depth, true[None], "median", None)
    constant = depth_errors(torch.ones_like(true)[None], true[None], "median", None)
    rotation = rotation_matrix(second.poses[-1][:, 3:7]) @ rotation_matrix(first.poses[-1][:, 3:7]).transpose(1, 2)
    at = -(rotation.transpose(1, 2) @ second.poses[-1][:, :3, None])[0, :, 0]
    towards = at / at.norm().clamp(min=1e-9)
    return {
        "pair": pair.name, "abs_rel": depth.abs_rel, "within": depth.within[1], "constant": constant.abs_rel,
        "turned": float(degrees_between(rotation, torch.eye(3)[None])[0]),
        "direction": float(torch.rad2deg(torch.acos(towards[0].clamp(-1, 1)))),
    }  # fmt: skip


def _square(image: Tensor, side: int, nearest: bool = False) -> Tensor:
    """[c, H, W] -> the middle square, made `side` pixels wide."""
    short = min(image.shape[1:])
    top, left = ((n - short) // 2 for n in image.shape[1:])
    cut = image[None, :, top : top + short, left : left + short]
    if nearest:
        return F.interpolate(cut, (side, side), mode="nearest")[0]
    return F.interpolate(cut, (side, side), mode="bilinear", antialias=True)[0]
