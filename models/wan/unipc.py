"""UniPC, the multistep solver Wan samples with (arXiv 2302.04867; wan_base.md §5): order 2, B(h) = e^h - 1, over x0.

The tables are those of Wan and of diffusers; the solver is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.models.wan.schedule import TIMESTEPS, shifted


@dataclass(frozen=True)
class UniPCTable:
    """sigmas: float32 [n + 1], 0 last. timesteps: int64 [n], what the model is told."""

    sigmas: Tensor
    timesteps: Tensor

    @classmethod
    def wan(cls, steps: int, shift: float) -> UniPCTable:
        """Wan's own: from 0.999 down to 0, the last left off; shift 5 for 720p, 3 for 480p."""
        last = 1 - 1 / TIMESTEPS
        return cls._of(shifted(torch.linspace(last, 0, steps + 1, dtype=torch.float64)[:-1], shift))

    @classmethod
    def diffusers(cls, steps: int, shift: float) -> UniPCTable:
        """diffusers': from 1 down to 1/1000, the last left off, and a first sigma just below 1."""
        table = cls._of(shifted(torch.linspace(1, 1 / TIMESTEPS, steps + 1, dtype=torch.float64)[:-1], shift))
        # log(1 - sigma) must be finite
        return cls(table.sigmas.clamp(max=1 - 1e-6), table.timesteps.clamp(max=TIMESTEPS - 1))

    @classmethod
    def _of(cls, sigmas: Tensor) -> UniPCTable:
        return cls(torch.cat([sigmas, sigmas.new_zeros(1)]).float(), (sigmas * TIMESTEPS).long())


@dataclass(frozen=True)
class UniPCMemory:
    """What the solver keeps between two steps: the step before's corrected sample, and the last one or two x0."""

    sample: Tensor
    x0s: tuple[Tensor, ...]


def unipc_step(
    table: UniPCTable, i: int, x: Tensor, flow: Tensor, memory: UniPCMemory | None
) -> tuple[Tensor, UniPCMemory]:
    """Step i of the table: (sample, flow at it) -> (next sample, memory for the next step).

    x: any shape. memory: of step i - 1, None at step 0. The sample is first corrected with what the model has just
    said of it, then moved on. The first and the last step are of order 1.
    """
    sigmas = table.sigmas.tolist()
    last = len(sigmas) - 2
    x0 = x - sigmas[i] * flow
    if memory is not None:
        x = _advance(memory.sample, memory.x0s, sigmas, i - 1, _order(i - 1, last), arrived=x0)
    x0s = (x0, *(memory.x0s[:1] if memory else ()))
    return _advance(x, x0s, sigmas, i, _order(i, last)), UniPCMemory(x, x0s)


def _order(i: int, last: int) -> int:
    return 1 if i in (0, last) else 2


def _advance(
    x: Tensor, x0s: Sequence[Tensor], sigmas: list[float], i: int, order: int, arrived: Tensor | None = None
) -> Tensor:
    """From noise level i to i + 1: the predictor, or with the x0 found on arrival the corrector."""
    log_snr = [_log_snr(sigma) for sigma in sigmas[max(i - 1, 0) : i + 2]]
    h = log_snr[-1] - log_snr[-2]
    phi = math.expm1(-h)
    differences = []
    if order == 2:
        r = (log_snr[-3] - log_snr[-2]) / h
        differences.append((x0s[1] - x0s[0]) / r)
    if arrived is None:
        weights = [0.5]
    else:
        differences.append(arrived - x0s[0])
        weights = [0.5] if order == 1 else _corrector_weights(r, -h, phi)
    slope = sum((w * d for w, d in zip(weights, differences, strict=False)), torch.zeros_like(x))
    sigma, sigma_next = sigmas[i], sigmas[i + 1]
    return (sigma_next / sigma) * x - (1 - sigma_next) * phi * (x0s[0] + slope)


def _corrector_weights(r: float, hh: float, phi: float) -> list[float]:
    """The solution of [[1, 1], [r, 1]] rho = b, b_k = k! * phi_(k+1) / phi_1."""
    phi2 = phi / hh - 1
    phi3 = phi2 / hh - 0.5
    b1, b2 = phi2 / phi, 2 * phi3 / phi
    first = (b1 - b2) / (1 - r)
    return [first, b1 - first]


def _log_snr(sigma: float) -> float:
    return math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)
