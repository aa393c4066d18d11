"""DINOv2 with registers as patch embedder (infinitevggt.md §4).

N frames, h x w patches of p pixels, C channels. Stateless: a frame's tokens depend on that frame alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.models.geometry.layers import Block

EPS = 1e-6


class PatchEmbed(nn.Module):
    """Pixels to one token a patch, in row order."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # (N, h*w, C)


class DinoEmbedder(nn.Module):
    """Images, mean and deviation taken out, to patch tokens."""

    def __init__(self, image: int, patch: int, dim: int, depth: int, heads: int, mlp_ratio: float, registers: int):
        """image: side in pixels of the square that the position table was made for."""
        super().__init__()
        self.patch, self.side = patch, image // patch
        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # of its pre-training: never read, but in the checkpoint
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio, eps=EPS) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, images: Tensor) -> Tensor:
        """images [N, 3, H, W] -> [N, h*w, C]."""
        count, _, height, width = images.shape
        x = torch.cat([self.cls_token.expand(count, -1, -1), self.patch_embed(images)], dim=1)
        x = x + self.positions(height, width)
        x = torch.cat([x[:, :1], self.register_tokens.expand(count, -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + self.register_tokens.shape[1] :]

    def positions(self, height: int, width: int) -> Tensor:
        """The position table for an image of that size in pixels, [1, 1 + h*w, C]."""
        rows, columns = height // self.patch, width // self.patch
        if rows == columns == self.side:
            return self.pos_embed
        table = self.pos_embed[:, 1:].float().unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False)
        patches = table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)  # (1, h*w, C)
        return torch.cat([self.pos_embed[:, :1], patches], dim=1)
