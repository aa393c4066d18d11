"""Rotary embedding of the Llama family, with the frequency scalings its released checkpoints use.

D head dim. Angles are float64 and computed for any position, so no table ends (`kernels/rope.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from riverrun.kernels.rope import rotation
from riverrun.models.base import BadRequest

Turn = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: wavelengths far beyond the original length are stretched by `factor`, short ones left alone."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def scale(self, frequencies: Tensor) -> Tensor:
        turns = frequencies * self.original_max_position_embeddings / (2 * math.pi)  # over the original length
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share = smooth.clamp(0, 1)
        return frequencies * (share + (1 - share) / self.factor)

    @property
    def amplitude(self) -> float:
        return 1.0


@dataclass(frozen=True)
class LongRope:
    """Phi-3's: one factor a frequency, and a gain on cosines and sines.

    Always the long factors: a stream can't know its length, and keys turned one way must not meet queries turned
    another (transformers switches at the original length; Locret's official code never does).
    """

    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    max_position_embeddings: int
    attention_factor: float | None = None

    def scale(self, frequencies: Tensor) -> Tensor:
        return frequencies / torch.tensor(self.long_factor, dtype=frequencies.dtype)

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        ratio = self.max_position_embeddings / self.original_max_position_embeddings
        return math.sqrt(1 + math.log(ratio) / math.log(self.original_max_position_embeddings)) if ratio > 1 else 1.0


Scaling = Llama3Scaling | LongRope


@dataclass(frozen=True)
class Rotary:
    """Turns of (cos, sin) for positions; pairs are channels (j, j + D/2), see `rope.rotate_halves`."""

    head_dim: int
    theta: float = 10_000.0
    scaling: Scaling | None = None

    @cached_property
    def frequencies(self) -> Tensor:
        """float64 [D/2], radians a position."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        plain = self.theta**-exponents
        return plain if self.scaling is None else self.scaling.scale(plain)

    def turn(self, positions: Tensor) -> Turn:
        """(cos, sin), float32 [T, D/2] on the device of `positions` [T], gain included."""
        cos, sin = rotation(torch.outer(positions.to(torch.float64), self.frequencies.to(positions.device)))
        gain = 1.0 if self.scaling is None else self.scaling.amplitude
        return cos * gain, sin * gain


def rotary(config: Mapping[str, Any], head_dim: int) -> Rotary:
    """From a config.json of transformers: `rope_theta` and `rope_scaling`, or its newer `rope_parameters`.

    Raises BadRequest for a scaling that isn't built in.
    """
    stated = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(stated.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = stated.get("rope_type") or stated.get("type") or "default"
    if float(stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise BadRequest("rotary embedding of a part of the head (partial_rotary_factor) isn't built in")
    if kind == "default":
        return Rotary(head_dim, theta)
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return Rotary(head_dim, theta, Llama3Scaling(*(stated[name] for name in names)))
    if kind == "longrope":
        return Rotary(head_dim, theta, _long_rope(config, stated, head_dim))
    raise BadRequest(f"rotary scaling must be one of default, llama3, longrope, got {kind!r}")


def _long_rope(config: Mapping[str, Any], stated: Mapping[str, Any], head_dim: int) -> LongRope:
    factors = tuple(float(factor) for factor in stated["long_factor"])
    if len(factors) != head_dim // 2:
        raise BadRequest(f"long_factor must hold {head_dim // 2} numbers (half a head), got {len(factors)}")
    longest = config["max_position_embeddings"]
    name = "original_max_position_embeddings"
    original = config.get(name) or stated.get(name) or longest
    return LongRope(factors, original, longest, stated.get("attention_factor"))
