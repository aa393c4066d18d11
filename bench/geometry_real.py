"""Depth and camera on real pictures with truth; whatever is absent is left out.

Weights trained on rendered scenes of one lens are not made for these: the figures say how far that goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.bench.geometry_chess import chessboards
from riverrun.bench.geometry_stereo import DOCS, Pair, aloe, motorcycle
from riverrun.bench.geometry_watch import stream_of
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.metrics import depth_errors
from riverrun.models.geometry.poses import rotation_matrix
from riverrun.train.clips import Absent
from riverrun.train.geometry_measure import degrees_between

PAIRS: tuple[Callable[[], Sequence[Pair]], ...] = (
    lambda: [motorcycle()],
    lambda: [aloe()],
    lambda: chessboards(DOCS),
)


def real(model: InfiniteVGGT) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each kind of pair, the mean over its pairs, and a line for each that is absent."""
    rows, absent = [], []
    for make in PAIRS:
        try:
            pairs = make()
        except Absent as problem:
            absent.append(str(problem))
            continue
        found = [_figures(model, pair) for pair in pairs]
        means = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
        rows.append({"pair": pairs[0].name, "pairs": len(pairs), **means})
    return rows, absent


@torch.no_grad()
def _figures(model: InfiniteVGGT, pair: Pair) -> dict[str, float]:
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
    true_rotation = torch.from_numpy(pair.rotation.T.copy()).float()[None]  # as `rotation`: from the left to the right
    true_towards = F.normalize(torch.from_numpy(pair.move).float(), dim=0)
    return {
        "abs_rel": depth.abs_rel, "within": depth.within[1], "constant": constant.abs_rel,
        "turned": float(degrees_between(rotation, true_rotation)[0]),
        "direction": float(torch.rad2deg(torch.acos((towards @ true_towards).clamp(-1, 1)))),
    }  # fmt: skip


def _square(image: Tensor, side: int, nearest: bool = False) -> Tensor:
    """[c, H, W] -> the middle square, made `side` pixels wide."""
    short = min(image.shape[1:])
    top, left = ((n - short) // 2 for n in image.shape[1:])
    cut = image[None, :, top : top + short, left : left + short]
    if nearest:
        return F.interpolate(cut, (side, side), mode="nearest")[0]
    return F.interpolate(cut, (side, side), mode="bilinear", antialias=True)[0]
