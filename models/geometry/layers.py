"""Transformer blocks of VGGT: its own, DINOv2's and the camera head's are one class (infinitevggt.md §4-§6).

N frames (of N sessions, or of one clip), P tokens a frame, C channels, H heads, D head dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.attention import attention
from riverrun.kernels.rope import rotate_halves

Turn = tuple[Tensor, Tensor]
"""(cos, sin), each [P, D/2], for `rotate_halves`."""


class Memory(Protocol):
    """Who a frame's tokens attend to, besides themselves."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [N, P, H, D] -> [N, P, H, D]."""


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Self attention inside a frame, or over a memory. Keys reach the memory normed and rotated."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        if qk_norm:
            self.q_norm = nn.LayerNorm(dim // heads)
            self.k_norm = nn.LayerNorm(dim // heads)
        self.qk_norm = qk_norm

    def forward(self, x: Tensor, turns: tuple[Turn, Turn] | None, memory: Memory | None, layer: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (N, P, H, D) each
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if turns is not None:
            q, k = (turned(part, turns) for part in (q, k))
        out = attention(q, k, v) if memory is None else memory.attend(layer, q, k, v)
        return self.proj(out.flatten(2))


def turned(x: Tensor, turns: tuple[Turn, Turn]) -> Tensor:
    """x [N, P, H, D]: the first half of each head's channels turned by row, the second by column."""
    return torch.cat([rotate_halves(part, turn) for part, turn in zip(x.chunk(2, -1), turns, strict=True)], dim=-1)


class Block(nn.Module):
    """Pre-norm attention and MLP, each through its LayerScale."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, *, qk_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim)

    def forward(
        self, x: Tensor, turns: tuple[Turn, Turn] | None = None, memory: Memory | None = None, layer: int = 0
    ) -> Tensor:
        """x [N, P, C]. turns: rotations by row and column. layer: this block's number in the memory."""
        x = x + self.ls1(self.attn(self.norm1(x), turns, memory, layer))
        return x + self.ls2(self.mlp(self.norm2(x)))
