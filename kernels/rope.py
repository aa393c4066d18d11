"""Rotary position embedding with angles computed for any position, so that no stream meets the end of a table.

Pairs are adjacent channels (2j, 2j+1) of a head, taken as complex numbers (Wan's and LLaMA's original form).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def angles(positions: Tensor, dim: int, theta: float = 10_000.0) -> Tensor:
    """float64 [T, dim/2]: position * theta^(-2j/dim). positions [T], integer or float, of any size."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    return torch.outer(positions.to(torch.float64), theta**-exponents)


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head given to time, rows and columns (longlive.md §3): 44, 42, 42 of 128."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def angles_3d(frames: Tensor, height: int, width: int, head_dim: int) -> Tensor:
    """float64 [F*height*width, head_dim/2] for tokens in (frame, row, column) order.

    frames [F]: the position of each frame; rows and columns count from 0.
    """
    time_dim, _, _ = axis_dims(head_dim)
    time = angles(frames, time_dim)[:, None, :]  # (F, 1, dt/2)
    space = _space_angles(height, width, head_dim, frames.device)[None]  # (1, h*w, dh/2 + dw/2)
    parts = [time.expand(-1, height * width, -1), space.expand(len(frames), -1, -1)]
    return torch.cat(parts, dim=-1).flatten(0, 1)


@lru_cache(maxsize=16)
def _space_angles(height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    _, row_dim, column_dim = axis_dims(head_dim)
    rows = angles(torch.arange(height, device=device), row_dim)[:, None].expand(-1, width, -1)
    columns = angles(torch.arange(width, device=device), column_dim)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)  # (h*w, dh/2 + dw/2)


def rotation(angle: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(cos, sin) of float64 angles, each [T, D/2] in `dtype`; computed once a call, used by every layer."""
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates x [B, T, H, D] by (cos, sin) [T, D/2]; computed in their dtype, returned in x's."""
    cos, sin = (part[None, :, None, :] for part in turn)  # (1, T, 1, D/2)
    even, odd = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D/2) each
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """As `rotate`, for pairs of channels (j, j + D/2) (transformers' form of Llama, Qwen and Phi)."""
    cos, sin = (part[None, :, None, :] for part in turn)  # (1, T, 1, D/2)
    first, second = x.to(cos.dtype).chunk(2, dim=-1)  # (B, T, H, D/2) each
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
