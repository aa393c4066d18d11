"""Swin transformer over one picture, square and of a fixed size: the trunk of the visual guidance.

Paper: arXiv 2103.14030; sizes and key names as in the recognise-anything release (infvsr_flashvsr.md A1 §5).

B pictures, R side of the token grid, W side of a window, n windows a picture, C channels, H heads, D head dim.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SwinConfig:
    """img_size: side in pixels. depths, num_heads: of each stage; a stage halves the grid and doubles the channels.

    window_size: side of an attention window in tokens; a stage that is no larger is one window.
    """

    img_size: int
    patch_size: int
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for stage in range(len(self.depths)):
            side, window = self.side(stage), self.window(stage)
            if side < 1 or side % window:
                raise ValueError(f"stage {stage} has a grid of side {side}, no multiple of its window {window}")

    def side(self, stage: int) -> int:
        """Tokens along a side of a stage's grid."""
        return self.img_size // self.patch_size // 2**stage

    def window(self, stage: int) -> int:
        return min(self.side(stage), self.window_size)

    def dim(self, stage: int) -> int:
        return int(self.embed_dim * 2**stage)

    @property
    def out_dim(self) -> int:
        return self.dim(len(self.depths) - 1)

    @property
    def tokens(self) -> int:
        """Tokens of the last stage."""
        return self.side(len(self.depths) - 1) ** 2


SWIN_L = SwinConfig(384, patch_size=4, embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12)


def infer_swin(tensors: Mapping[str, Tensor]) -> SwinConfig:
    """The configuration of a trunk by its tensors, under their own names; `SWIN_L` where one that tells is missing.

    No shape shows img_size: the last stage is taken to be one window, as in the released trunk.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = [m for name in shapes if (m := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.weight", name))]
    blocks = Counter(int(match[1]) for match in found)
    try:
        embed_dim, _, patch_size, _ = shapes["patch_embed.proj.weight"]
        tables = [shapes[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(blocks))]
        windows = [(math.isqrt(rows) + 1) // 2 for rows, _ in tables]
        hidden = shapes["layers.0.blocks.0.mlp.fc1.weight"][0]
        return SwinConfig(
            img_size=patch_size * windows[-1] * 2 ** (len(blocks) - 1),
            patch_size=patch_size,
            embed_dim=embed_dim,
            depths=tuple(blocks[i] for i in range(len(blocks))),
            num_heads=tuple(heads for _, heads in tables),
            window_size=windows[0],
            mlp_ratio=hidden / embed_dim,
        )
    except (KeyError, IndexError, ValueError):
        return SWIN_L


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, R, R, ...) -> (B*n, W*W, ...), row by row."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B, R/W, W, R/W, W, ...)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, window: int, side: int) -> Tensor:
    """(B*n, W*W, C) -> (B, R, R, C)."""
    count = side // window
    x = x.unflatten(1, (window, window)).unflatten(0, (-1, count, count))  # (B, R/W, R/W, W, W, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_index(window: int) -> Tensor:
    """int64 (W*W, W*W): the row of the bias table for each pair of places of a window."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # (W*W, 2)
    apart = places[:, None] - places[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def shifted_mask(side: int, window: int, shift: int) -> Tensor:
    """(n, W*W, W*W) added to the scores of a grid rolled by `shift`: -100 between places that weren't neighbours."""
    band = torch.zeros(side, dtype=torch.long)
    band[-window:-shift], band[-shift:] = 1, 2
    region = to_windows((3 * band[:, None] + band[None])[None, ..., None], window)[..., 0]  # (n, W*W)
    return -100.0 * (region[:, :, None] != region[:, None])


class WindowAttention(nn.Module):
    """Attention inside each window, with a learned bias for each offset."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B*n, W*W, C), mask (n, W*W, W*W)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B*n, H, W*W, D) each
        index = relative_index(self.window).to(x.device)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None]  # (1, H, W*W, W*W)
        if mask is not None:
            bias = (bias + mask[:, None].to(bias)).repeat(len(x) // len(mask), 1, 1, 1)  # (B*n, H, W*W, W*W)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """shift: how far the windows are moved against the grid, 0 for none."""

    def __init__(self, dim: int, heads: int, side: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, R*R, C)."""
        grid = self.norm1(x).unflatten(1, (self.side, self.side))
        grid = grid.roll((-self.shift, -self.shift), dims=(1, 2))
        mask = shifted_mask(self.side, self.window, self.shift).to(x.device) if self.shift else None
        grid = from_windows(self.attn(to_windows(grid, self.window), mask), self.window, self.side)
        x = x + grid.roll((self.shift, self.shift), dims=(1, 2)).flatten(1, 2)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Joins each 2 x 2 tokens, columns first, into one of twice the channels."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, R*R, C) -> (B, R*R/4, 2C)."""
        grid = x.unflatten(1, (self.side // 2, 2, self.side // 2, 2))  # (B, R/2, row, R/2, column, C)
        joined = grid.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)  # (0,0) (1,0) (0,1) (1,1) as (row, column)
        return self.reduction(self.norm(joined))


class SwinStage(nn.Module):
    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        side, window, dim = config.side(stage), config.window(stage), config.dim(stage)
        shift = 0 if side <= config.window_size else window // 2
        self.blocks = nn.Sequential(
            *(
                SwinBlock(dim, config.num_heads[stage], side, window, shift * (i % 2), config.mlp_ratio)
                for i in range(config.depths[stage])
            )
        )
        is_last = stage == len(config.depths) - 1
        self.downsample: nn.Module | None = None if is_last else PatchMerging(dim, side)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))  # (B, R*R, C)


class Swin(nn.Module):
    """Pictures (B, 3, img_size, img_size) -> their mean token, then all tokens: (B, 1 + tokens, out_dim)."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.layers = nn.Sequential(*(SwinStage(config, stage) for stage in range(len(config.depths))))
        self.norm = nn.LayerNorm(config.out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layers(self.patch_embed(x)))
        return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
