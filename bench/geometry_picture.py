"""A sheet to look at: frame, true depth, depth, and the cloud from above with both camera paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from riverrun.bench.geometry_paths import Piece, whole
from riverrun.bench.geometry_quality import depth_scale
from riverrun.bench.geometry_watch import Watched, stream_of, watch
from riverrun.models.geometry.infinitevggt import InfiniteVGGT

SHOWN = (("orbit left", 60), ("in and out", 60), ("up and down", 60), ("revisits", 60), ("walks on", 40))
SIZE = 224
TRUE_PATH, PATH = (40, 160, 60), (220, 40, 30)


def picture(model: InfiniteVGGT, file: Path) -> None:
    """Writes a PNG, a row for each path. In the last picture green is the true path, red the reconstructed one."""
    rows = []
    for path, frames in SHOWN:
        truth = whole(path, 0, frames, model.config.image)
        said = watch(model, [truth], stream_of(model, "diverse_keys", 24))
        rows.append(_row(truth, said))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(file)


def _row(truth: Piece, said: Watched) -> np.ndarray:
    true = torch.where(truth.depth.isfinite(), truth.depth, 0.0)
    scale = depth_scale(said.depth, true)
    middle = len(truth.frames) // 2
    panels = [truth.frames[middle].numpy(), coloured(true[middle]), coloured(scale * said.depth[middle])]
    panels = [np.asarray(Image.fromarray(panel).resize((SIZE, SIZE), Image.Resampling.NEAREST)) for panel in panels]
    return np.concatenate([*panels, _from_above(truth, said, scale)], axis=1)


def coloured(depth: Tensor, near: float = 2.0, far: float = 12.0) -> np.ndarray:
    """uint8 [H, W, 3]: near is bright and warm; black where it is 0."""
    share = (1 - (depth.clamp(near, far).log() - np.log(near)) / (np.log(far) - np.log(near))).numpy()
    colour = np.stack([share, 0.25 + 0.5 * share * share, 0.55 * (1 - share) + 0.15], axis=-1)
    colour[depth.numpy() <= 0] = 0
    return (255 * colour).clip(0, 255).astype(np.uint8)


def _from_above(truth: Piece, said: Watched, scale: float) -> np.ndarray:
    """The reconstructed points, laid into the true world by the first camera, and both paths; x right, z up."""
    home = truth.poses[0]
    canvas = Image.new("RGB", (SIZE, SIZE), (250, 250, 250))
    draw = ImageDraw.Draw(canvas)
    every = max(1, len(said.kept) // 10)
    is_valid = truth.depth[::every, ::2, ::2].isfinite()
    points = (scale * said.points[::every, ::2, ::2])[is_valid] @ home[:3, :3].T + home[:3, 3]
    colours = truth.frames[::every, ::2, ::2][is_valid]
    middle, reach = truth.poses[:, :3, 3].mean(0) * torch.tensor([0.5, 0, 0.5]), 7.0

    def place(point: Tensor) -> tuple[float, float]:
        x, _, z = ((point - middle) / reach + 1).tolist()
        return x * SIZE / 2, z * SIZE / 2

    for point, colour in zip(points, colours.tolist(), strict=True):
        draw.point(place(point), fill=tuple(colour))
    scaled = said.poses[:, :3, 3] * scale @ home[:3, :3].T + home[:3, 3]
    for path, colour in ((truth.poses[:, :3, 3], TRUE_PATH), (scaled, PATH)):
        draw.line([place(p) for p in path], fill=colour, width=2)
        x, y = place(path[0])
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    return np.asarray(canvas)
