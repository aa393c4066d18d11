"""The causal 3-D VAE of Wan 2.1, streaming in both directions (wan_base.md §2, §3; arXiv 2503.20314).

Attributes carry the names of the official checkpoint. One path serves streams and whole clips: a module is given
`Histories` and goes on from them, or None and treats its input as a whole clip, keeping nothing. Both give the same
numbers, however a stream is cut into chunks.

Legend: B streams, T frames (pixel or latent), C channels, H W height and width. Inside, tensors are (B, C, T, H, W);
at the public methods (B, T, C, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from riverrun.kernels.histories import Histories, assign_paths
from riverrun.models.wan.vae_blocks import (
    CausalConv3d,
    Downsample,
    ResidualBlock,
    RMSNorm,
    Upsample,
    conv3,
    middle,
    run,
)


@dataclass(frozen=True)
class VAEConfig:
    """Widths of the VAE. The stages halve height and width between them, and time where `temporal_downsample` says.

    dim: channels of the first stage. z_dim: latent channels. dim_mult: each stage's width in units of `dim`.
    num_res_blocks: residual blocks an encoder stage (a decoder stage has one more).
    temporal_downsample: one flag between each two stages. mean, std: per latent channel, of the normalisation.
    """

    dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample needs one flag between each two of the {len(self.dim_mult)} stages, "
                f"got {len(self.temporal_downsample)}"
            )
        if not len(self.mean) == len(self.std) == self.z_dim:
            raise ValueError(f"mean and std need {self.z_dim} values, got {len(self.mean)} and {len(self.std)}")

    @property
    def spatial_factor(self) -> int:
        """Pixels a latent, along height and width."""
        return int(2 ** len(self.temporal_downsample))

    @property
    def temporal_factor(self) -> int:
        """Pixel frames a latent frame, the first excepted (it stands for one)."""
        return int(2 ** sum(self.temporal_downsample))


WAN21_VAE = VAEConfig(
    dim=96,
    z_dim=16,
    dim_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    temporal_downsample=(False, True, True),
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    std=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)
"""The released VAE (`Wan2.1_VAE.pth`: 194 tensors, 126,892,531 values)."""


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) -> mean and log-variance before `conv1`, (B, 2z, T', H/8, W/8)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.dim, *(config.dim * mult for mult in config.dim_mult)]
        self.conv1 = conv3(3, widths[0])
        stages: list[nn.Module] = []
        for i, (dim_in, dim_out) in enumerate(pairwise(widths)):
            stages += [ResidualBlock(dim_in if j == 0 else dim_out, dim_out) for j in range(config.num_res_blocks)]
            if i < len(config.temporal_downsample):
                stages.append(Downsample(dim_out, config.temporal_downsample[i]))
        self.downsamples = nn.Sequential(*stages)
        self.middle = middle(widths[-1])
        self.head = nn.Sequential(RMSNorm(widths[-1], 3), nn.SiLU(), conv3(widths[-1], 2 * config.z_dim))

    def forward(self, x: Tensor, histories: Histories | None) -> Tensor:
        return run([self.conv1, *self.downsamples, *self.middle, *self.head], x, histories)


class Decoder(nn.Module):
    """Latents after `conv2`, (B, z, T, h, w) -> pixels (B, 3, T', 8h, 8w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.dim * mult for mult in (config.dim_mult[-1], *reversed(config.dim_mult))]
        doubles = tuple(reversed(config.temporal_downsample))
        self.conv1 = conv3(config.z_dim, widths[0])
        self.middle = middle(widths[0])
        stages: list[nn.Module] = []
        for i, (dim_in, dim_out) in enumerate(pairwise(widths)):
            dim_in = dim_in // 2 if i else dim_in  # each Upsample halves the channels
            stages += [ResidualBlock(dim_in if j == 0 else dim_out, dim_out) for j in range(config.num_res_blocks + 1)]
            if i < len(doubles):
                stages.append(Upsample(dim_out, doubles[i]))
        self.upsamples = nn.Sequential(*stages)
        self.head = nn.Sequential(RMSNorm(widths[-1], 3), nn.SiLU(), conv3(widths[-1], 3))

    def forward(self, x: Tensor, histories: Histories | None) -> Tensor:
        return run([self.conv1, *self.middle, *self.upsamples, *self.head], x, histories)


class WanVAE(nn.Module):
    """Pixels <-> normalised latents. A stream's memory is the `Histories` given at each call, both ways in one.

    `decode` and `encode` continue a stream for ever; `decode_clip`, `encode_clip` and `moments` take whole clips and
    are differentiable. Latents are (mu - mean) / std per channel, in the dtype of the weights.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        assign_paths(self, CausalConv3d)

    @torch.no_grad()
    def decode(self, latents: Tensor, histories: Histories) -> Tensor:
        """The next frames of the stream: (B, T, z, h, w) normalised, T >= 1 -> float32 (B, T', 3, 8h, 8w) in [-1, 1].

        T' = 4T, and three less where `histories` has seen no latent yet. Raises ValueError for wrong shapes.
        """
        return self.decode_unclamped(latents, histories).clamp(-1, 1)

    @torch.no_grad()
    def decode_unclamped(self, latents: Tensor, histories: Histories) -> Tensor:
        """As `decode`, for callers that blend overlapping pictures before they clamp."""
        self._check("latents", latents, self.config.z_dim)
        return self._decode(latents, histories)

    @torch.no_grad()
    def encode(self, pixels: Tensor, histories: Histories) -> Tensor:
        """The next latents of the stream: (B, T, 3, H, W) in [-1, 1] -> (B, T', z, H/8, W/8) normalised.

        The stream's first call takes 4n + 1 frames, each later one 4n; ValueError otherwise.
        """
        self._check_pixels(pixels, is_first=histories.is_empty(self.encoder.conv1.path))
        return self.normalise(self._moments(pixels, histories)[0])

    def decode_clip(self, latents: Tensor) -> Tensor:
        """A whole clip, as `decode` but not clamped, and differentiable."""
        self._check("latents", latents, self.config.z_dim)
        return self._decode(latents, None)

    def encode_clip(self, pixels: Tensor) -> Tensor:
        """A whole clip of 4n + 1 frames, as `encode`, and differentiable."""
        return self.normalise(self.moments(pixels)[0])

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of a whole clip's latents before normalisation, each (B, T', z, H/8, W/8)."""
        self._check_pixels(pixels, is_first=True)
        return self._moments(pixels, None)

    def normalise(self, means: Tensor) -> Tensor:
        """(B, T, z, h, w) means as `moments` gives them -> normalised latents, in float32 and cast back."""
        mean, std = self._mean_std(means)
        return ((means.float() - mean) / std).to(means.dtype)

    def _decode(self, latents: Tensor, histories: Histories | None) -> Tensor:
        mean, std = self._mean_std(latents)
        z = (latents.float() * std + mean).to(self.conv2.weight.dtype).transpose(1, 2)
        return self.decoder(self.conv2(z), histories).transpose(1, 2).float()

    def _moments(self, pixels: Tensor, histories: Histories | None) -> tuple[Tensor, Tensor]:
        x = pixels.to(self.conv1.weight.dtype).transpose(1, 2)
        mean, log_variance = self.conv1(self.encoder(x, histories)).transpose(1, 2).chunk(2, dim=2)
        return mean, log_variance

    def _mean_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Made at each call: a buffer would be rounded by .to(bfloat16) and left on the meta device by the loader.
        mean, std = (torch.tensor(v, device=like.device) for v in (self.config.mean, self.config.std))
        return mean[:, None, None], std[:, None, None]

    def _check_pixels(self, pixels: Tensor, *, is_first: bool) -> None:
        self._check("pixels", pixels, 3)
        t, h, w = pixels.shape[1], *pixels.shape[3:]
        factor, space = self.config.temporal_factor, self.config.spatial_factor
        if h % space or w % space:
            raise ValueError(f"height and width must be multiples of {space}, got {h} x {w}")
        if t % factor != (1 % factor if is_first else 0):
            wanted = f"{factor}n + 1 frames at the start of a stream" if is_first else f"{factor}n frames"
            raise ValueError(f"the encoder takes {wanted}, got {t}")

    @staticmethod
    def _check(name: str, x: Tensor, channels: int) -> None:
        if x.ndim != 5 or x.shape[1] < 1 or x.shape[2] != channels:
            raise ValueError(f"{name} must be (B, T >= 1, {channels}, H, W), got {tuple(x.shape)}")
