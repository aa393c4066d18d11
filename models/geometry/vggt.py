"""VGGT made causal (StreamVGGT), the network of InfiniteVGGT (infinitevggt.md §2, §5-§7, §10).

N frames, one of each session or all of one clip; H x W pixels in patches of p; P tokens a frame; C channels, D = 2C.
Attributes are named as in the released checkpoint, 1797 tensors in all, the tracker's among them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import DiverseKeys, Full, PlannedPolicy, SinkWindow, smallest_total
from riverrun.models.geometry.aggregator import Aggregator
from riverrun.models.geometry.camera import CameraHead
from riverrun.models.geometry.dpt import DPTHead
from riverrun.models.geometry.embedder import DinoEmbedder
from riverrun.models.geometry.memory import ClipMemory, GeometryStream, pose_memory, token_memory
from riverrun.models.geometry.tracker import TrackConfig, TrackHead

TokenMemory = Literal["diverse_keys", "sink_window", "full"]
"""What the global blocks remember: rows unlike each other (InfiniteVGGT), the first frame and the newest ones, or all
until the budget is full, which is an error then (StreamVGGT)."""

CameraMemory = Literal["sink_window", "full"]
"""What the camera trunk remembers: the first frame and the newest ones, or all (official) until they are too many."""

RELEASED_BUDGET = 1_200_000
"""Rows a head over all layers, of the official code."""

PAGE = 64
"""Slots in a page of the rolling memory."""


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes; the defaults are the released network's. image: the side of the square DINOv2 was trained on.

    dpt_layers: pairs of blocks whose tokens the dense heads read. track: None leaves the tracker out.
    """

    image: int = 518
    patch: int = 14
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    registers: int = 4
    rope_theta: float = 100.0
    dino_depth: int = 24
    dino_heads: int = 16
    dino_mlp_ratio: float = 4.0
    dino_registers: int = 4
    camera_depth: int = 4
    camera_heads: int = 16
    camera_mlp_ratio: float = 4.0
    camera_iterations: int = 4
    dpt_features: int = 256
    dpt_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    dpt_layers: tuple[int, ...] = (4, 11, 17, 23)
    track: TrackConfig | None = field(default_factory=TrackConfig)

    @property
    def special(self) -> int:
        """Tokens of a frame that are no patches: the camera's and the registers."""
        return 1 + self.registers

    def tokens(self, height: int, width: int) -> int:
        """P of a frame of that size in pixels."""
        return self.special + (height // self.patch) * (width // self.patch)

    def token_spec(self, page: int = PAGE) -> CacheSpec:
        """The global blocks' cache: keys are normed and rotated."""
        return CacheSpec("global", self.depth, self.heads, self.dim // self.heads, "rotated", page)

    def pose_spec(self, page: int) -> CacheSpec:
        """The camera trunk's cache: its keys have no positions."""
        width = 2 * self.dim
        return CacheSpec("camera", self.camera_depth, self.camera_heads, width // self.camera_heads, "raw", page)


@dataclass(frozen=True)
class Geometry:
    """What the network says of N frames, all in the axes of the stream's first camera, up to one scale.

    poses [iterations, N, 9], the last one counts. depth, depth_confidence, point_confidence [N, H, W]; points
    [N, H, W, 3]. pairs: the tokens [N, P, D] of the pairs of blocks that were asked for.
    """

    poses: Tensor
    depth: Tensor
    depth_confidence: Tensor
    points: Tensor | None
    point_confidence: Tensor | None
    pairs: dict[int, Tensor]


class VGGT(nn.Module):
    """Frames to cameras, depth and points. Weights only: a stream's memory is an argument."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = c = config
        embedder = DinoEmbedder(c.image, c.patch, c.dim, c.dino_depth, c.dino_heads, c.dino_mlp_ratio, c.dino_registers)
        self.aggregator = Aggregator(embedder, c.dim, c.depth, c.heads, c.mlp_ratio, c.registers, c.rope_theta)
        self.camera_head = CameraHead(
            2 * c.dim, c.camera_depth, c.camera_heads, c.camera_mlp_ratio, c.camera_iterations
        )
        self.point_head = DPTHead(2 * c.dim, c.dpt_channels, c.dpt_features, 4, "inv_log")
        self.depth_head = DPTHead(2 * c.dim, c.dpt_channels, c.dpt_features, 2, "exp")
        if c.track is not None:
            self.track_head = TrackHead(2 * c.dim, c.dpt_channels, c.track)

    def frame(
        self,
        images: Tensor,
        streams: Sequence[GeometryStream],
        *,
        points: bool = True,
        wanted: Collection[int] = (),
    ) -> Geometry:
        """The next frame of each stream: images [N, 3, H, W] in 0..1. The streams move on by it.

        points: False leaves the point head out. wanted: pairs of blocks whose tokens the result carries.
        """
        pairs, poses = self._seen(images, streams, wanted)
        return self._dense(images, pairs, poses, points, wanted)

    def cameras(self, images: Tensor, streams: Sequence[GeometryStream]) -> Tensor:
        """As `frame`, the poses alone [iterations, N, 9]: for frames whose maps nobody wants, half of the work."""
        return self._seen(images, streams, ())[1]

    def _seen(
        self, images: Tensor, streams: Sequence[GeometryStream], wanted: Collection[int]
    ) -> tuple[dict[int, Tensor], Tensor]:
        later = torch.tensor([min(stream.tokens.cursor, 1) for stream in streams], device=images.device)
        with token_memory(streams, self.config.tokens(*images.shape[2:])) as memory:
            pairs = self.aggregator(images, later, memory, self._needed(wanted))
        return pairs, self.camera_head(self._camera(pairs), lambda: pose_memory(streams))

    def clip(self, images: Tensor, *, wanted: Collection[int] = ()) -> Geometry:
        """All N frames of one clip at once, each seeing those before it. Nothing is kept.

        The camera head's iterations see only their own kind here, so poses differ from a stream's (§6).
        """
        later = (torch.arange(len(images), device=images.device) > 0).long()
        pairs = self.aggregator(images, later, ClipMemory(), self._needed(wanted))
        poses = self.camera_head(self._camera(pairs), lambda: nullcontext(ClipMemory()))
        return self._dense(images, pairs, poses, True, wanted)

    def track(self, images: Tensor, pairs: dict[int, Tensor], queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tracks of points through one clip; see `TrackHead`. pairs: of a `clip` that was asked for `dpt_layers`."""
        height, width = images.shape[2:]
        return self.track_head(self.patch_tokens(pairs), height, width, self.config.patch, queries)

    def patch_tokens(self, pairs: dict[int, Tensor]) -> list[Tensor]:
        """What the dense heads read: [N, h*w, D] in float32 of each of `dpt_layers`."""
        return [pairs[layer][:, self.config.special :].float() for layer in self.config.dpt_layers]

    def _needed(self, wanted: Collection[int]) -> set[int]:
        return {*self.config.dpt_layers, self.config.depth - 1, *wanted}

    def _camera(self, pairs: dict[int, Tensor]) -> Tensor:
        return pairs[self.config.depth - 1][:, 0].float()  # heads run in float32, whatever the aggregator does

    def _dense(
        self, images: Tensor, pairs: dict[int, Tensor], poses: Tensor, points: bool, wanted: Collection[int]
    ) -> Geometry:
        tokens, (height, width), patch = self.patch_tokens(pairs), images.shape[2:], self.config.patch
        depth, depth_confidence = self.depth_head.dense(tokens, height, width, patch)
        where, confidence = self.point_head.dense(tokens, height, width, patch) if points else (None, None)
        kept = {layer: pairs[layer] for layer in wanted}
        return Geometry(poses, depth[..., 0], depth_confidence, where, confidence, kept)


def open_stream(
    config: VGGTConfig,
    tokens: PlannedPolicy,
    poses: PlannedPolicy,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> GeometryStream:
    """An empty memory under these policies. dtype: of the global blocks' cache; the camera trunk's is float32."""
    token_cache = KVCache(config.token_spec(), tokens, dtype, device)
    pose_cache = KVCache(config.pose_spec(poses.capacity), poses, torch.float32, device)
    return GeometryStream(token_cache, pose_cache, torch.zeros(config.depth))


def rolling_stream(
    config: VGGTConfig,
    size: tuple[int, int],
    total_budget: int,
    camera_frames: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    memory: TokenMemory = "diverse_keys",
    camera_memory: CameraMemory = "sink_window",
) -> GeometryStream:
    """An empty bounded memory for frames of that (height, width) in the network. Nothing is allocated on "meta".

    total_budget: rows a head may hold over all layers, under any policy. camera_frames: of the camera trunk's.
    """
    frame, rows = config.tokens(*size), config.camera_iterations  # rows of a frame, there and in the camera trunk
    poses = _window(rows * camera_frames, rows) if camera_memory == "sink_window" else Full(rows * camera_frames)
    return open_stream(config, _token_policy(config, frame, total_budget, memory), poses, dtype, device)


def least_budget(config: VGGTConfig, frame: int, memory: TokenMemory) -> int:
    """The smallest total_budget for frames of `frame` tokens: their first stays; a window holds one more."""
    if memory == "diverse_keys":
        return smallest_total(config.depth, frame)
    return config.depth * frame * (2 if memory == "sink_window" else 1)


def _token_policy(config: VGGTConfig, frame: int, total: int, memory: TokenMemory) -> PlannedPolicy:
    if memory == "diverse_keys":
        return DiverseKeys(total, config.depth, frame)
    rows = total // config.depth // frame * frame  # whole frames, as many in each layer
    return _window(rows, frame) if memory == "sink_window" else Full(rows)


def _window(slots: int, frame: int) -> SinkWindow:
    return SinkWindow(slots, sink=frame, sees_unfilled=False)
