"""A decoder that also sees the low-resolution frames: it may take the place of the VAE's.

In the form of FlashVSR's conditional decoder (infvsr_flashvsr.md A2 F4; arXiv 2510.12747), but nearly all of it works
at the size of the frames that came in, and what it makes is added to their bicubic enlargement. Causal: each memory
block sees its own input at the frame before; within the 4 frames of a latent it sees all of them.

Legend: B streams, F latent frames, T = 4F frames (4F - 3 at the start of a stream), C channels, H W height and width of
the low-resolution frames, h w of the latents. z latent channels, s pixels out for one in, g frames a latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.histories import Histories, assign_paths

SLOPE = 0.1
"""Of every leaky ReLU here."""
CORE = 1 / 127.5
"""What is added is damped below about one 8-bit level: there it follows the rounding of the frames that came in, and
would flicker. Not while training, where it would keep a first small output from growing."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes. width: channels at low resolution; latent_width: at the latents' size. trunk: residual convolutions of a
    single frame; memory: blocks that see the frame before. scale: s. spatial_factor, temporal_factor: of the VAE."""

    z_dim: int = 16
    width: int = 48
    latent_width: int = 64
    trunk: int = 3
    memory: int = 4
    scale: int = 4
    spatial_factor: int = 8
    temporal_factor: int = 4

    def __post_init__(self) -> None:
        if self.spatial_factor % self.scale:
            raise ValueError(f"scale must divide {self.spatial_factor}, got {self.scale}")

    @property
    def fold(self) -> int:
        """Low-resolution pixels a latent, along each side."""
        return self.spatial_factor // self.scale


class MemoryBlock(nn.Module):
    """x + conv(leaky(conv([x, x of the frame before]))); zeros stand before a stream's first frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.path = ""  # set by assign_paths

    def forward(self, x: Tensor, histories: Histories | None) -> Tensor:
        """x: (B, T, C, H, W)."""
        past = None if histories is None else histories.get(self.path)
        past = torch.zeros_like(x[:, :1]) if past is None else past
        if histories is not None:
            histories.put(self.path, x[:, -1:])
        before = torch.cat([past, x[:, :-1]], dim=1)
        both = torch.cat([x, before], dim=2).flatten(0, 1)  # (B*T, 2C, H, W)
        return x + self.conv2(leaky(self.conv1(both))).view_as(x)


class ConditionalDecoder(nn.Module):
    """Latents and low-resolution frames -> pixels. A stream's memory is the `Histories` given at each call."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.frames_in = nn.Conv2d(3, c.width, 3, padding=1)
        self.trunk = nn.ModuleList(nn.Conv2d(c.width, c.width, 3, padding=1) for _ in range(c.trunk))
        self.latents_in = nn.Conv2d(c.z_dim, c.latent_width, 3, padding=1)
        self.group_in = nn.Conv2d(3 * c.temporal_factor * c.fold**2, c.latent_width, 3, padding=1)
        self.mix = nn.Conv2d(c.latent_width, c.latent_width, 3, padding=1)
        self.split = nn.Conv2d(c.latent_width, c.temporal_factor * c.width, 1)
        self.join = nn.Conv2d(2 * c.width, c.width, 3, padding=1)
        self.memory = nn.ModuleList(MemoryBlock(c.width) for _ in range(c.memory))
        self.head = nn.Conv2d(c.width, 3 * c.scale**2, 3, padding=1)
        assign_paths(self, MemoryBlock)

    def forward(self, latents: Tensor, frames: Tensor, histories: Histories | None = None) -> Tensor:
        """latents (B, F, z, h, w), frames (B, T, 3, H, W) in [-1, 1] -> float32 (B, T, 3, sH, sW), not clamped.

        histories None: a whole clip, nothing is kept. Raises ValueError for shapes that don't belong together.
        """
        self._check(latents, frames)
        return enlarged(frames.float(), self.config.scale) + self.detail(latents, frames, histories)

    def detail(self, latents: Tensor, frames: Tensor, histories: Histories | None) -> Tensor:
        """What is added to the enlarged frames: float32."""
        b, t = frames.shape[:2]
        frames = frames.to(self.head.weight.dtype)
        x = self._join(self._features(frames.flatten(0, 1)), self._guide(latents, frames))
        x = x.unflatten(0, (b, t))  # (B, T, C, H, W)
        for block in self.memory:
            x = block(x, histories)
        detail = F.pixel_shuffle(self.head(leaky(x.flatten(0, 1))), self.config.scale).unflatten(0, (b, t)).float()
        return detail if self.training else detail * (detail.square() / (detail.square() + CORE**2))

    def history_bytes(self, height: int, width: int, itemsize: int) -> int:
        """What one stream of frames of height x width keeps between calls."""
        return len(self.memory) * self.config.width * height * width * itemsize

    def _features(self, x: Tensor) -> Tensor:
        """Of each frame alone: (B*T, C, H, W)."""
        x = self.frames_in(x)
        for conv in self.trunk:
            x = x + 0.5 * leaky(conv(x))
        return x

    def _guide(self, latents: Tensor, frames: Tensor) -> Tensor:
        """From the latents and their 4 frames together: (B*T, C, H, W)."""
        c, count = self.config, frames.shape[1]
        missing = latents.shape[1] * c.temporal_factor - count  # a stream's first latent stands for one frame
        whole = torch.cat([frames[:, :1].expand(-1, missing, -1, -1, -1), frames], dim=1)
        groups = F.pixel_unshuffle(whole.unflatten(1, (-1, c.temporal_factor)).flatten(0, 1).flatten(1, 2), c.fold)
        x = leaky(self.group_in(groups) + self.latents_in(latents.flatten(0, 1)))  # (B*F, C', h, w)
        x = self.split(F.interpolate(leaky(self.mix(x)), scale_factor=c.fold, mode="nearest"))
        x = x.unflatten(0, latents.shape[:2]).unflatten(2, (c.temporal_factor, c.width)).flatten(1, 2)
        return x[:, missing:].flatten(0, 1)

    def _join(self, features: Tensor, guide: Tensor) -> Tensor:
        return features + self.join(torch.cat([features, guide], dim=1))

    def _check(self, latents: Tensor, frames: Tensor) -> None:
        c = self.config
        wanted = (latents.shape[3] * c.fold, latents.shape[4] * c.fold)
        longest = latents.shape[1] * c.temporal_factor
        if frames.shape[3:] != wanted or frames.shape[1] not in (longest, longest - c.temporal_factor + 1):
            raise ValueError(
                f"latents {tuple(latents.shape)} belong to {longest} frames of {wanted[0]} x {wanted[1]} "
                f"({longest - c.temporal_factor + 1} at the start), got {tuple(frames.shape)}"
            )


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def enlarged(frames: Tensor, scale: int) -> Tensor:
    """Bicubic, as the encoder's input is made: (..., 3, H, W) -> (..., 3, sH, sW)."""
    size = (frames.shape[-2] * scale, frames.shape[-1] * scale)
    flat = frames.flatten(0, -4) if frames.ndim > 4 else frames
    large = F.interpolate(flat, size, mode="bicubic", align_corners=False, antialias=True)
    return large.reshape(*frames.shape[:-2], *size)
