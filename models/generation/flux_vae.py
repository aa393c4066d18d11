"""FLUX.1's image VAE: pixels to latents and back, one image at a time. State-dict keys of diffusers' AutoencoderKL.

The latents are the posterior's means, (mean - shift) * scale: the same picture has the same latents in every session,
so that what is made of them can be shared (the official pipeline draws from the narrow posterior). No state.

Weights: FLUX.1's `vae` (also published under Apache-2.0 with FLUX.1-schnell).

Legend: B images, C channels, z latent channels, H W height and width in pixels, h w in latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.attention import attention
from riverrun.models.base import BadRequest
from riverrun.models.weights import as_tuples

EPS = 1e-6


@dataclass(frozen=True)
class FluxVAEConfig:
    """Widths, named as in diffusers' config.json; the stages halve height and width between them."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    scaling_factor: float
    shift_factor: float

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> FluxVAEConfig:
        """From what a config.json holds. Raises BadRequest for a missing value; other entries are passed over, a form
        of the model they may ask for has other weights."""
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise BadRequest(f"the VAE's config lacks {missing[0]!r}")
        return cls(**as_tuples({name: values[name] for name in names}))

    @property
    def spatial_factor(self) -> int:
        """Pixels a latent, along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)


FLUX_VAE = FluxVAEConfig(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=16,
    norm_num_groups=32,
    scaling_factor=0.3611,
    shift_factor=0.1159,
)


class ResidualBlock(nn.Module):
    def __init__(self, dim_in: int, dim: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, dim_in, EPS), nn.Conv2d(dim_in, dim, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, dim, EPS), nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(dim_in, dim, 1) if dim_in != dim else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nn.Module):
    """One head over all places of the image."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, dim, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, h*w, C)
        q, k, v = (linear(h)[:, :, None] for linear in (self.to_q, self.to_k, self.to_v))  # (B, h*w, 1, C)
        out = self.to_out[0](attention(q, k, v)[:, :, 0])
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only


class Upsample(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(dim, dim, groups) for _ in range(2))
        self.attentions = nn.ModuleList([AttentionBlock(dim, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Stage(nn.Module):
    """`layers` residual blocks, then a change of size, under the name it has in the encoder or in the decoder."""

    def __init__(self, dim_in: int, dim: int, layers: int, groups: int, sampler: tuple[str, nn.Module] | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(dim if i else dim_in, dim, groups) for i in range(layers))
        self._sampler = sampler and sampler[0]
        if sampler is not None:
            self.add_module(sampler[0], nn.ModuleList([sampler[1]]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        return x if self._sampler is None else self.get_submodule(self._sampler)[0](x)  # type: ignore[index]


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> mean and log-variance (B, 2z, h, w)."""

    def __init__(self, config: FluxVAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (dim_in, dim) in enumerate(pairwise((widths[0], *widths))):
            sampler = None if i == len(widths) - 1 else ("downsamplers", Downsample(dim))
            self.down_blocks.append(Stage(dim_in, dim, config.layers_per_block, groups, sampler))
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, z, h, w) -> pixels (B, 3, H, W)."""

    def __init__(self, config: FluxVAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = nn.ModuleList()
        for i, (dim_in, dim) in enumerate(pairwise((widths[0], *widths))):
            sampler = None if i == len(widths) - 1 else ("upsamplers", Upsample(dim))
            self.up_blocks.append(Stage(dim_in, dim, config.layers_per_block + 1, groups, sampler))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class FluxVAE(nn.Module):
    """Pixels in [-1, 1] <-> scaled latents, in the dtype of the weights."""

    def __init__(self, config: FluxVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), sides multiples of `spatial_factor` -> (B, z, h, w)."""
        mean, _ = self.encoder(pixels.to(self.encoder.conv_in.weight.dtype)).chunk(2, dim=1)
        return (mean - self.config.shift_factor) * self.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> float32 (B, 3, H, W), clamped to [-1, 1]."""
        z = latents / self.config.scaling_factor + self.config.shift_factor
        return self.decoder(z.to(self.decoder.conv_in.weight.dtype)).float().clamp(-1, 1)
