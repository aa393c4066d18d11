"""Flow matching as Wan and its few-step descendants use it: tables, re-noising, Euler (longlive.md §5, wan_base.md §5).

x_sigma = (1 - sigma) * x0 + sigma * noise, the model predicts flow = noise - x0, and a timestep is 1000 * sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIMESTEPS = 1000
"""Timesteps of the training schedule."""


def shifted(sigmas: Tensor, shift: float) -> Tensor:
    """sigmas moved towards 1, where large pictures need more steps (shift 1 changes nothing)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def linear_sigmas(steps: int, *, sigma_min: float = 0.0, extra_step: bool = True) -> Tensor:
    """float32 [steps], from 1 down; with `extra_step` the one that would be sigma_min is left off."""
    return torch.linspace(1, sigma_min, steps + 1)[:-1] if extra_step else torch.linspace(1, sigma_min, steps)


@dataclass(frozen=True)
class FlowSchedule:
    """A table of noise levels and their timesteps, both float32 [N] and falling."""

    sigmas: Tensor
    timesteps: Tensor

    @classmethod
    def shifted(
        cls, shift: float, steps: int = TIMESTEPS, *, sigma_min: float = 0.0, extra_step: bool = True
    ) -> FlowSchedule:
        """The table the streaming models look their timesteps up in is the default one, of 1000 entries."""
        sigmas = shifted(linear_sigmas(steps, sigma_min=sigma_min, extra_step=extra_step), shift)
        return cls(sigmas, TIMESTEPS * sigmas)

    def to(self, device: torch.device | str) -> FlowSchedule:
        """The same tables on another device, where `t` will be."""
        return FlowSchedule(self.sigmas.to(device), self.timesteps.to(device))

    def warp(self, steps: Sequence[int]) -> Tensor:
        """Denoising steps given in 1000ths of the way -> the timesteps there, float32 [len(steps)]; 0 stays 0.

        Raises ValueError for a step outside 0..N.
        """
        table = torch.cat([self.timesteps, self.timesteps.new_zeros(1)])
        wrong = [step for step in steps if not 0 <= step < len(table)]
        if wrong:
            raise ValueError(f"denoising steps must lie in 0..{len(table) - 1}, got {wrong[0]}")
        return table[[len(self.timesteps) - step for step in steps]]

    def index(self, t: Tensor) -> Tensor:
        """The table entry nearest to each timestep (the first of equals), int64 of t's shape.

        t = 0 finds the last entry, whose sigma isn't 0 (longlive.md §15.6).
        """
        return (self.timesteps - t.to(self.timesteps.dtype).unsqueeze(-1)).abs().argmin(dim=-1)

    def sigma(self, t: Tensor) -> Tensor:
        """float32 noise level of each timestep, t's shape."""
        return self.sigmas[self.index(t)]

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x0 brought to the noise level of `t` (x0's leading axes), in float32 and cast to noise's dtype."""
        sigma = _spread(self.sigma(t), x0)
        return ((1 - sigma) * x0 + sigma * noise).to(noise.dtype)

    def flow_to_x0(self, flow: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean sample a flow at `x_t` points to, in float64 and cast to flow's dtype."""
        sigma = _spread(self.sigma(t), x_t).double()
        return (x_t.double() - sigma * flow.double()).to(flow.dtype)

    def x0_to_flow(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The flow at `x_t` that points to x0, in float64 and cast to x0's dtype."""
        sigma = _spread(self.sigma(t), x_t).double()
        return ((x_t.double() - x0.double()) / sigma).to(x0.dtype)

    def training_weights(self) -> Tensor:
        """float32 [N] loss weight of each timestep: a bell over the timesteps, lowest 0, mean 1."""
        bell = torch.exp(-2 * ((self.timesteps - TIMESTEPS / 2) / TIMESTEPS) ** 2)
        lifted = bell - bell.min()
        return lifted * (len(lifted) / lifted.sum())


def euler(x: Tensor, flow: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x moved along the flow from one noise level to the next. sigmas: x's leading axes, or scalars."""
    return x + flow * _spread(sigma_next - sigma, x)


def twice_shifted_sigmas(steps: int, shift: float) -> Tensor:
    """float32 [steps + 1], 0 last: the table of diffusers' FlowMatchEulerDiscreteScheduler, which shifts twice.

    Its end points are those of the already shifted training table, and the steps between are shifted again.
    """
    ends = shifted(torch.tensor([1.0, 1 / TIMESTEPS]), shift)
    timesteps = torch.linspace(float(ends[0]) * TIMESTEPS, float(ends[1]) * TIMESTEPS, steps)
    return torch.cat([shifted(timesteps / TIMESTEPS, shift), torch.zeros(1)])


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """values of the leading axes of `like`, with the axes that follow as ones."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim))
