"""NVFP4 for cached keys and values: 4-bit values, a scale for every 16 of them, one float for the whole block.

Reference in plain torch of what LongLive 2 does (longlive.md §10). A value is E2M1 (0, .5, 1, 1.5, 2, 3, 4, 6 and
their negatives), a group scale E4M3, the block's scale its greatest absolute value (`amax`). About 4.5 bits a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GROUP = 16
"""Neighbouring values that share a scale."""
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of E2M1, by their three-bit codes."""
E4M3_MAX = {"static_6": 448.0, "mse": 256.0}

Rule = Literal["static_6", "mse"]
"""How a group's scale is chosen. `static_6`: its greatest value becomes 6. `mse`: 6 or 4, whichever gives the
smaller squared error (six if equal); the scale's range is kept down to 256 to leave room for the 1.5-fold."""


@dataclass(frozen=True)
class Fp4:
    """A quantised matrix of R rows and N columns.

    packed: uint8 [R, N/2], the even column in the low four bits. scales: float8_e4m3fn [R, N/16]. amax: float32 [1].
    """

    packed: Tensor
    scales: Tensor
    amax: Tensor
    rule: Rule

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.amax.nbytes

    @property
    def values(self) -> Tensor:
        """float32 [R, N]: the E2M1 values, not scaled."""
        codes = torch.stack([self.packed & 15, self.packed >> 4], dim=-1).flatten(-2).long()
        levels = torch.tensor([*LEVELS, *(-level for level in LEVELS)], device=codes.device)
        return levels[codes]


def smoothed(keys: Tensor) -> Tensor:
    """Keys [..., D] minus their mean over D, as they are stored; the mean is lost (longlive.md §10)."""
    return keys - keys.mean(dim=-1, keepdim=True)


def quantise_nvfp4(x: Tensor, rule: Rule = "mse") -> Fp4:
    """x [R, N], N a multiple of 16. Raises ValueError otherwise."""
    if x.ndim != 2 or x.shape[1] % GROUP:
        raise ValueError(f"NVFP4 takes (rows, a multiple of {GROUP}), got {tuple(x.shape)}")
    groups = x.float().unflatten(1, (-1, GROUP))  # (R, N/16, 16)
    amax = groups.abs().amax().reshape(1)
    to_scale = LEVELS[-1] * E4M3_MAX[rule] / amax
    raw = groups.abs().amax(dim=-1) / LEVELS[-1] * to_scale  # (R, N/16)
    scales, codes, error = _encode(groups, raw, to_scale)
    if rule == "mse":
        wider, wider_codes, wider_error = _encode(groups, raw * (LEVELS[-1] / LEVELS[-2]), to_scale)
        better = wider_error < error
        scales = torch.where(better, wider.float(), scales.float()).to(torch.float8_e4m3fn)
        codes = torch.where(better[..., None], wider_codes, codes)
    flat = codes.flatten(1)
    return Fp4(flat[:, 0::2] | flat[:, 1::2] << 4, scales, amax, rule)


def dequantise_nvfp4(x: Fp4) -> Tensor:
    """float32 [R, N]."""
    per_group = x.scales.float() * (x.amax / (LEVELS[-1] * E4M3_MAX[x.rule]))
    return (x.values.unflatten(1, (-1, GROUP)) * per_group[..., None]).flatten(1)


def _encode(groups: Tensor, raw: Tensor, to_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(scales in E4M3, codes uint8, squared error of each group) for wished-for scales."""
    scales = raw.to(torch.float8_e4m3fn)
    factor = scales.float()[..., None] / to_scale
    scaled = torch.where(factor == 0, 0, groups / factor)
    codes = _codes(scaled)
    levels = torch.tensor(LEVELS, device=groups.device)
    decoded = levels[(codes & 7).long()] * torch.where(codes > 7, -1, 1) * factor
    return scales, codes, (decoded - groups).square().sum(dim=-1)


def _codes(x: Tensor) -> Tensor:
    """The nearest E2M1 code, uint8; half-way to the even code, beyond 6 to 6. Bit 3 is the sign, of zero too."""
    levels = torch.tensor(LEVELS, device=x.device)
    between = (levels[1:] + levels[:-1]) / 2
    above, reached = (torch.bucketize(x.abs(), between, right=right) for right in (False, True))
    nearest = torch.where(above % 2 == 0, above, reached)
    return (nearest + 8 * torch.signbit(x)).to(torch.uint8)
