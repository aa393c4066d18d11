"""FLUX.1's noise levels, its Euler walk down them, and how latents are packed into tokens (easycontrol.md §7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from riverrun.models.wan.schedule import euler, shifted

BASE_TOKENS, MAX_TOKENS = 256, 4096
"""Image sizes between which the shift is a line."""


def flux_sigmas(steps: int, tokens: int, base_shift: float = 0.5, max_shift: float = 1.15) -> Tensor:
    """float32 [steps + 1], 1 first and 0 last; moved further towards 1 the more tokens an image has."""
    slope = (max_shift - base_shift) / (MAX_TOKENS - BASE_TOKENS)
    mu = base_shift + slope * (tokens - BASE_TOKENS)
    return torch.cat([shifted(torch.linspace(1, 1 / steps, steps), math.exp(mu)), torch.zeros(1)])


def walk(x: Tensor, sigmas: Tensor, flow: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x brought from the first noise level to the last. flow(x, sigma): of x [B, N, c] at the scalar sigma."""
    for now, then in pairwise(sigmas):
        x = euler(x.float(), flow(x, now), now, then).to(x.dtype)  # summed in float32, whatever the dtype
    return x


def pack(latents: Tensor) -> Tensor:
    """[B, z, 2h, 2w] -> [B, h * w, 4z]: squares of four become one token, row by row."""
    squares = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, z, h, 2, w, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, 4z] -> [B, z, 2 height, 2 width]."""
    squares = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height, width))  # (B, h, w, z, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
