"""A VGGT over a path: what it says of each frame, as arrays to be compared with the truth.

T frames, H x W pixels of the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.bench.geometry_paths import Piece
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.memory import GeometryStream
from riverrun.models.geometry.poses import camera_to_world, matrices
from riverrun.models.geometry.vggt import CameraMemory, TokenMemory, least_budget, rolling_stream

CAMERA_FRAMES = 64


@dataclass(frozen=True)
class Watched:
    """poses camera-to-world [T, 4, 4]; depth [T', H, W] and points [T', H, W, 3] (first camera's axes) of the frames
    `kept` [T']; ms [T]: process time of each frame; rows: cached at the end, most: at any frame."""

    poses: Tensor
    depth: Tensor
    points: Tensor
    kept: Tensor
    ms: Tensor
    rows: int
    most: int


def stream_of(
    model: InfiniteVGGT, memory: TokenMemory, frames: int, camera_frames: int = CAMERA_FRAMES
) -> GeometryStream:
    """An empty memory for `frames` frames; at least as many as the policy can work with."""
    side, config = model.config.image, model.config
    rows = config.tokens(side, side)
    total = max(frames * config.depth * rows, least_budget(config, rows, memory))
    camera: CameraMemory = "full" if memory == "full" else "sink_window"
    return rolling_stream(config, (side, side), total, max(camera_frames, frames if camera == "full" else 2),
                          memory=memory, camera_memory=camera)  # fmt: skip


@torch.no_grad()
def watch(
    model: InfiniteVGGT,
    pieces: Iterable[Piece],
    stream: GeometryStream,
    every: int = 1,
    each: Callable[[int], None] = lambda _: None,
) -> Watched:
    """every: of how many frames one keeps its maps. each: told the number of every frame done."""
    poses, depths, points, kept, ms, most, t = [], [], [], [], [], 0, 0
    for piece in pieces:
        for pixels in piece.frames:
            image = pixels.permute(2, 0, 1)[None].float() / 255
            begun = time.process_time()
            if t % every == 0:
                said = model.model.frame(image, [stream])
                assert said.points is not None
                depths.append(said.depth[0])
                points.append(said.points[0])
                kept.append(t)
                cameras = said.poses
            else:
                cameras = model.model.cameras(image, [stream])
            ms.append(1000 * (time.process_time() - begun))
            poses.append(_pose(cameras[-1], image.shape[-1]))
            most = max(most, sum(stream.tokens.lengths))
            each(t)
            t += 1
    return Watched(torch.stack(poses), torch.stack(depths), torch.stack(points), torch.tensor(kept), torch.tensor(ms),
                   sum(stream.tokens.lengths), most)  # fmt: skip


def _pose(camera: Tensor, side: int) -> Tensor:
    extrinsic, _ = matrices(camera, side, side)
    return camera_to_world(extrinsic)[0]
