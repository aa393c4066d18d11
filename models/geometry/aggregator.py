"""VGGT's aggregator: attention inside a frame and over a memory, in turn (infinitevggt.md §5).

N frames, P tokens a frame = 1 camera + R registers + h x w patches, C channels. Each pair of blocks gives [N, P, 2C].
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from riverrun.kernels.rope import angles, rotation
from riverrun.models.geometry.embedder import DinoEmbedder
from riverrun.models.geometry.layers import Block, Memory, Turn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Aggregator(nn.Module):
    """Frames to tokens that know the frames before. No positions in time: order is in the memory alone."""

    def __init__(
        self, embedder: DinoEmbedder, dim: int, depth: int, heads: int, mlp_ratio: float, registers: int, theta: float
    ) -> None:
        super().__init__()
        self.patch_embed = embedder
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, registers, dim))
        self.frame_blocks = nn.ModuleList([Block(dim, heads, mlp_ratio, qk_norm=True) for _ in range(depth)])
        self.global_blocks = nn.ModuleList([Block(dim, heads, mlp_ratio, qk_norm=True) for _ in range(depth)])
        self.special, self.head_dim, self.theta = 1 + registers, dim // heads, theta

    def forward(self, images: Tensor, later: Tensor, memory: Memory, wanted: Collection[int]) -> dict[int, Tensor]:
        """images [N, 3, H, W] in 0..1; later [N] int64: 0 for the first frame of its stream, else 1.

        Returns the outputs of the `wanted` pairs of blocks, {pair: [N, P, 2C]}.
        """
        x = self._tokens(images, later)
        patch = self.patch_embed.patch
        turns = self.turns(images.shape[2] // patch, images.shape[3] // patch, images.device)
        pairs = {}
        for layer, (inside, across) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            local = inside(x, turns)
            x = across(local, turns, memory, layer)
            if layer in wanted:
                pairs[layer] = torch.cat([local, x], dim=-1)
        return pairs

    def _tokens(self, images: Tensor, later: Tensor) -> Tensor:
        return torch.cat([self.camera_token[0, later], self.register_token[0, later], self.patches(images)], dim=1)

    def patches(self, images: Tensor) -> Tensor:
        """images [N, 3, H, W] in 0..1 -> patch tokens [N, h*w, C]."""
        mean, std = (torch.tensor(c, dtype=images.dtype, device=images.device)[:, None, None] for c in (MEAN, STD))
        return self.patch_embed(((images - mean) / std).to(self.camera_token.dtype))

    def turns(self, rows: int, columns: int, device: torch.device) -> tuple[Turn, Turn]:
        """Rotations of all P tokens by row and by column; patches count from 1, special tokens are at 0."""
        places = torch.arange(rows * columns, device=device)
        special = places.new_zeros(self.special)
        by_row, by_column = (torch.cat([special, 1 + at]) for at in (places // columns, places % columns))
        return self.turns_at(by_row, by_column)

    def turns_at(self, rows: Tensor, columns: Tensor) -> tuple[Turn, Turn]:
        """Rotations of tokens at these places, each [P]."""
        half = self.head_dim // 2
        return rotation(angles(rows, half, self.theta)), rotation(angles(columns, half, self.theta))
