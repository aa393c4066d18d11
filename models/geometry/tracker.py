"""VGGT's tracker: where points of the first frame of a clip are in the others (infinitevggt.md §7).

For clips only: a stream brings one frame a step, and one frame's track is its query, so `InfiniteVGGT` has no such
port. T frames, N points, A feature channels at half the image's size h x w, M points with the virtual tracks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.models.geometry.dpt import DPTHead
from riverrun.models.geometry.layers import Mlp

HEADS = 8
SCALE = 518
"""What flows are divided by, whatever the image's size."""


@dataclass(frozen=True)
class TrackConfig:
    """Sizes; the defaults are the released network's. levels, radius: of the correlation pyramid."""

    features: int = 128
    iterations: int = 4
    levels: int = 7
    radius: int = 4
    hidden: int = 384
    depth: int = 6
    virtual: int = 64
    stride: int = 2


class TrackBlock(nn.Module):
    """Attention and MLP. The skip carries the normed x, as trained."""

    def __init__(self, dim: int, is_cross: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        attention = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        if is_cross:
            self.norm_context = nn.LayerNorm(dim)
            self.cross_attn = attention
        else:
            self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, n, c], context [B, m, c] -> [B, n, c]."""
        x = self.norm1(x)
        if context is None:
            x = x + self.attn(x, x, x, need_weights=False)[0]
        else:
            context = self.norm_context(context)
            x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class UpdateFormer(nn.Module):
    """Attention along each track and, by way of virtual tracks, among the points of a frame."""

    def __init__(self, dim: int, out: int, config: TrackConfig) -> None:
        super().__init__()
        hidden, depth = config.hidden, config.depth
        self.input_norm = nn.LayerNorm(dim)
        self.input_transform = nn.Linear(dim, hidden)
        self.virual_tracks = nn.Parameter(torch.zeros(1, config.virtual, 1, hidden))  # spelt as in the checkpoint
        self.time_blocks = nn.ModuleList([TrackBlock(hidden, False) for _ in range(depth)])
        self.space_virtual_blocks = nn.ModuleList([TrackBlock(hidden, False) for _ in range(depth)])
        self.space_point2virtual_blocks = nn.ModuleList([TrackBlock(hidden, True) for _ in range(depth)])
        self.space_virtual2point_blocks = nn.ModuleList([TrackBlock(hidden, True) for _ in range(depth)])
        self.output_norm = nn.LayerNorm(hidden)
        self.flow_head = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, T, dim] -> [N, T, out]."""
        first = self.input_transform(self.input_norm(x))
        count = len(first)
        tracks = torch.cat([first, self.virual_tracks[0].expand(-1, x.shape[1], -1)])  # (M, T, c)
        for along, among, to_virtual, to_points in zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_virtual2point_blocks,
            self.space_point2virtual_blocks,
            strict=True,
        ):
            points, virtual = along(tracks).transpose(0, 1).tensor_split([count], dim=1)  # (T, N, c), (T, virtual, c)
            virtual = among(to_virtual(virtual, points))
            points = to_points(points, virtual)
            tracks = torch.cat([points, virtual], dim=1).transpose(0, 1)
        return self.flow_head(self.output_norm(tracks[:count] + first))


class Tracker(nn.Module):
    """Moves the points of all frames a few times, by what their surroundings look like."""

    def __init__(self, config: TrackConfig) -> None:
        super().__init__()
        self.config = config
        size, dim = config.features, 3 * config.features + 4
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, dim))
        self.corr_mlp = Mlp(config.levels * (2 * config.radius + 1) ** 2, config.hidden, size)
        self.updateformer = UpdateFormer(dim, size + 2, config)
        self.fmap_norm = nn.LayerNorm(size)
        self.ffeat_norm = nn.GroupNorm(1, size)
        self.ffeat_updater = nn.Sequential(nn.Linear(size, size), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(size, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(size, 1))

    def forward(self, maps: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """maps [T, A, h, w]; queries [N, 2], (x, y) in pixels of frame 0. See `TrackHead`."""
        maps = self.fmap_norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        start = queries / self.config.stride
        points = start.expand(len(maps), -1, -1)  # (T, N, 2)
        features = _sampled(maps[:1], start[None]).expand(len(maps), -1, -1)  # (T, N, A)
        height, width = maps.shape[2:]
        places = _place_embedding(height, width, self.query_ref_token.shape[-1]).to(maps)  # (1, dim, h, w)
        at = _sampled(places, start[None])[0]  # (N, dim)
        roles = self.query_ref_token[0, (torch.arange(len(maps)) > 0).long()]  # (T, dim)
        pyramid = self._pyramid(maps)
        tracks = []
        for _ in range(self.config.iterations):
            tokens = torch.cat([self._flow(points), self._correlation(pyramid, features, points), features], dim=-1)
            change = self.updateformer((tokens + at + roles[:, None]).transpose(0, 1)).transpose(0, 1)  # (T, N, A+2)
            features = features + self.ffeat_updater(self.ffeat_norm(change[..., 2:].flatten(0, 1))).view_as(features)
            points = torch.cat([start[None], (points + change[..., :2])[1:]])  # frame 0 stays at the query
            tracks.append(points * self.config.stride)
        seen, sure = (head(features)[..., 0].sigmoid() for head in (self.vis_predictor, self.conf_predictor))
        return torch.stack(tracks), seen, sure

    def _flow(self, points: Tensor) -> Tensor:
        """How far each point is from its place in frame 0, embedded: [T, N, A + 4]."""
        size = self.config.features // 2
        flow = points - points[:1]
        phase = flow[..., None] * (torch.arange(0, size, 2).to(flow) * (1000 / size))  # (T, N, 2, size/2)
        waves = torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(2)  # sin and cos by turns, x before y
        return torch.cat([waves, flow / SCALE, flow / SCALE], dim=-1)

    def _pyramid(self, maps: Tensor) -> list[Tensor]:
        levels = [maps]
        while len(levels) < self.config.levels:
            levels.append(F.avg_pool2d(levels[-1], 2, stride=2))
        return levels

    def _correlation(self, pyramid: Sequence[Tensor], features: Tensor, points: Tensor) -> Tensor:
        """How like each track's feature the maps are around its point: [T, N, A]."""
        steps = torch.arange(-self.config.radius, self.config.radius + 1).to(points)
        window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # its first axis moves x
        found = []
        for level, maps in enumerate(pyramid):
            likeness = torch.einsum("tna,tahw->tnhw", features, maps) / math.sqrt(maps.shape[1])
            centres = points.flatten(0, 1)[:, None, None] / 2**level  # (T*N, 1, 1, 2)
            around = _bilinear(likeness.flatten(0, 1)[:, None], centres + window, "zeros")
            found.append(around.flatten(1).unflatten(0, points.shape[:2]))  # (T, N, (2r+1)^2)
        return self.corr_mlp(torch.cat(found, dim=-1))


class TrackHead(nn.Module):
    """Feature maps and tracker."""

    def __init__(self, dim: int, channels: Sequence[int], config: TrackConfig) -> None:
        super().__init__()
        self.feature_extractor = DPTHead(dim, channels, config.features)
        self.tracker = Tracker(config)

    def forward(
        self, tokens: Sequence[Tensor], height: int, width: int, patch: int, queries: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens: as for `DPTHead`; queries [N, 2], (x, y) in pixels of frame 0.

        Returns tracks in pixels after each iteration [iterations, T, N, 2], visibility and confidence [T, N] in 0..1.
        """
        return self.tracker(self.feature_extractor(tokens, height, width, patch), queries)


def _bilinear(x: Tensor, points: Tensor, padding: str) -> Tensor:
    """x [B, c, h, w] at points [B, a, b, 2] in its pixels -> [B, c, a, b]."""
    size = torch.tensor([x.shape[3] - 1, x.shape[2] - 1], device=x.device).clamp(min=1)
    return F.grid_sample(x, points * (2 / size) - 1, padding_mode=padding, align_corners=True)


def _sampled(x: Tensor, points: Tensor) -> Tensor:
    """x [B, c, h, w] at points [B, n, 2] -> [B, n, c]; outside, its border."""
    return _bilinear(x, points[:, :, None], "border")[..., 0].transpose(1, 2)


def _place_embedding(height: int, width: int, dim: int) -> Tensor:
    """float32 [1, dim, height, width]: half of the channels for x, half for y, each half [sin, cos]."""
    omega = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"))  # (2, h, w)
    phase = omega[:, None, None] * grid[:, None]  # (2, dim/4, h, w)
    return torch.cat([phase.sin(), phase.cos()], dim=1).flatten(0, 1)[None].float()
