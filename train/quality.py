"""How near an upscaled clip is to the true one. Clips are uint8 or float32 in 0..255, [..., T, 3, H, W]."""

from __future__ import annotations

import torch
from torch import Tensor

BORDER = 8
"""Pixels left out at each side: what lies there was made of a padding."""


def luma(frames: Tensor) -> Tensor:
    """BT.601, 0..255: [..., 3, H, W] -> [..., H, W]."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (frames.float() * weights).sum(-3)


def psnr(ours: Tensor, truth: Tensor) -> float:
    """Luma, dB: the mean over the frames."""
    apart = (inner(luma(ours)) - inner(luma(truth))).square().mean((-2, -1)).clamp(min=1e-6)
    return float((10 * (255**2 / apart).log10()).mean())


def temporal_error(ours: Tensor, truth: Tensor) -> float:
    """mean |change of ours - change of the truth| from frame to frame, in levels of luma."""
    changes = [inner(luma(video)).diff(dim=-3) for video in (ours, truth)]
    return float((changes[0] - changes[1]).abs().mean())


def inner(pictures: Tensor) -> Tensor:
    return pictures[..., BORDER:-BORDER, BORDER:-BORDER]
