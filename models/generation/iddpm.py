"""Gaussian diffusion with a learned range of variances, on a respaced subset of its steps (ca2vdm.md §6).

N samples, C latent channels, T frames. The network gives [N, 2 C, T, h, w]: the noise, and a value in -1..1 that
lies between the log variances of the posterior (-1) and of the forward step (+1). Tables are float32, as officially.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOTAL_STEPS = 1000


@dataclass(frozen=True)
class Loss:
    """Of each sample, [N]: mean squared error of the noise, and the variational bound in bits per value."""

    mse: Tensor
    vb: Tensor

    @property
    def total(self) -> Tensor:
        return self.mse + self.vb


class IDDPM:
    """Tables over `steps` evenly spaced ones of 1000 steps. timestep_map: the original step of each, rising."""

    def __init__(self, steps: int) -> None:
        if not 1 <= steps <= TOTAL_STEPS:
            raise ValueError(f"steps must lie in 1..{TOTAL_STEPS}, got {steps}")
        self.timestep_map = respaced(steps)
        base = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, TOTAL_STEPS, dtype=torch.float64), 0)[self.timestep_map]
        previous = torch.cat([base.new_ones(1), base[:-1]])
        self.betas = (1 - base / previous).float()
        self.alphas_cumprod = torch.cumprod(1 - self.betas, 0)
        before = torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])
        self.alphas_cumprod_prev = before
        self.sqrt_recip_alphas_cumprod = (1 / self.alphas_cumprod).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / self.alphas_cumprod - 1).sqrt()
        self.posterior_variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        floor = self.posterior_variance[min(1, steps - 1)]  # the first is 0
        self.posterior_log_variance_clipped = torch.cat([floor[None], self.posterior_variance[1:]]).log()
        self.posterior_mean_coef1 = self.betas * before.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - before) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)

    @property
    def steps(self) -> int:
        return len(self.timestep_map)

    def q_sample(self, x0: Tensor, step: int | Tensor, noise: Tensor) -> Tensor:
        """x0 [N, C, T, h, w] noised to `step`, an index into the respaced steps (one, or [N])."""
        level = _at(self.alphas_cumprod, step, x0)
        return level.sqrt() * x0 + (1 - level).sqrt() * noise

    def x0(self, x: Tensor, eps: Tensor, step: int | Tensor) -> Tensor:
        """The clean sample that the predicted noise implies; not clipped."""
        return _at(self.sqrt_recip_alphas_cumprod, step, x) * x - _at(self.sqrt_recipm1_alphas_cumprod, step, x) * eps

    def ddpm(self, x: Tensor, out: Tensor, step: int, noise: Tensor) -> Tensor:
        """x one step earlier, drawn from the predicted posterior. noise: of x's shape, unused at step 0."""
        eps, value = out.to(x.dtype).chunk(2, dim=1)
        mean = self._posterior_mean(self.x0(x, eps, step), x, step)
        return mean if step == 0 else mean + (0.5 * self._log_variance(value, step)).exp() * noise

    def ddim(self, x: Tensor, out: Tensor, step: int) -> Tensor:
        """x one step earlier, deterministically (eta 0)."""
        eps = out.to(x.dtype).chunk(2, dim=1)[0]
        before = _at(self.alphas_cumprod_prev, step, x)
        return before.sqrt() * self.x0(x, eps, step) + (1 - before).sqrt() * eps

    def loss(self, x0: Tensor, xt: Tensor, out: Tensor, noise: Tensor, step: Tensor, mask: Tensor) -> Loss:
        """Of frames where mask [N, T] is true; step [N]. The bound trains the variance only (means are detached)."""
        eps, value = out.chunk(2, dim=1)
        mean = self._posterior_mean(self.x0(xt, eps.detach(), step), xt, step)
        log_variance = self._log_variance(value, step)
        true_mean = self._posterior_mean(x0, xt, step)
        true_log = _at(self.posterior_log_variance_clipped, step, x0)
        divergence = normal_kl(true_mean, true_log, mean, log_variance)
        likelihood = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        bound = torch.where(step.view(-1, 1, 1, 1, 1) == 0, likelihood, divergence) / math.log(2)
        return Loss(_frame_mean((noise - eps) ** 2, mask), _frame_mean(bound, mask))

    def _posterior_mean(self, x0: Tensor, x: Tensor, step: int | Tensor) -> Tensor:
        return _at(self.posterior_mean_coef1, step, x) * x0 + _at(self.posterior_mean_coef2, step, x) * x

    def _log_variance(self, value: Tensor, step: int | Tensor) -> Tensor:
        low = _at(self.posterior_log_variance_clipped, step, value)
        high = _at(self.betas, step, value).log()
        share = (value + 1) / 2
        return share * high + (1 - share) * low


def respaced(steps: int) -> list[int]:
    """Original steps of an even respacing from 0 to 999: an accumulated stride, rounded half to even."""
    stride = (TOTAL_STEPS - 1) / (steps - 1) if steps > 1 else 1.0
    at, taken = 0.0, []
    for _ in range(steps):
        taken.append(round(at))
        at += stride
    return taken


def progressive_noise(noise: Tensor, alpha: float, last: Tensor | None = None) -> Tensor:
    """Noise whose frames lean on the one before, still standard normal each (vidgpt.md §4). noise [..., T, h, w].

    alpha: how strongly, >= 0. last: the frame before [..., h, w] (State of a stream), None at the stream's start.
    """
    share, rest = alpha / math.sqrt(1 + alpha**2), 1 / math.sqrt(1 + alpha**2)
    frames = []
    for fresh in noise.unbind(-3):
        last = fresh if last is None else share * last + rest * fresh
        frames.append(last)
    return torch.stack(frames, dim=-3)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of each value, in nats."""
    spread = (log_variance1 - log_variance2).exp() + (mean1 - mean2) ** 2 * (-log_variance2).exp()
    return 0.5 * (log_variance2 - log_variance1 - 1 + spread)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P of x in -1..1, taken as one of 256 levels, under a Gaussian (with the tanh form of its integral)."""
    centred, precision = x - mean, (-log_scale).exp()
    below, above = (_normal_cdf(precision * (centred + edge)) for edge in (-1 / 255, 1 / 255))
    inside = (above - below).clamp(min=1e-12).log()
    upper = (1 - below).clamp(min=1e-12).log()
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(), torch.where(x > 0.999, upper, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _frame_mean(values: Tensor, mask: Tensor) -> Tensor:
    """values [N, C, T, h, w] -> [N], over the frames where mask [N, T] is true."""
    frames = values.mean(dim=(1, 3, 4))  # (N, T)
    return (frames * mask).sum(1) / mask.sum(1)


def _at(table: Tensor, step: int | Tensor, like: Tensor) -> Tensor:
    """table[step], to be multiplied with `like` [N, C, T, h, w]."""
    return table.to(like.device)[step].reshape(-1, 1, 1, 1, 1)
