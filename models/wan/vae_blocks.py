"""The layers of the causal VAE: convolutions, norm, residual, attention and resampling blocks (wan_base.md §2, §3).

A layer is given `Histories` and goes on from them, or None and treats its input as a whole clip, keeping nothing.

Legend: B streams, T frames, C channels, H W height and width. Tensors are (B, C, T, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.histories import Histories


class CausalConv3d(nn.Conv3d):
    """A convolution that sees no later frame: zeros, or the last frames of the chunk before, stand to its left.

    time_pad: frames to its left, twice the usual padding. With `Histories` it keeps its last kernel - 1 input frames.
    """

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], *, stride: int = 1, time_pad: int = 0):
        space = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(dim_in, dim_out, kernel, stride=(stride, 1, 1), padding=space)
        self.time_pad = time_pad
        self.path = ""  # set by assign_paths

    def forward(self, x: Tensor, histories: Histories | None = None) -> Tensor:
        """x: (B, C, T, H, W)."""
        past = None if histories is None else histories.get(self.path)
        if past is not None:
            x = torch.cat([past, x], dim=2)
        if histories is not None and self.time_pad:
            histories.put(self.path, x[:, :, -self.time_pad :])
        missing = self.time_pad - (0 if past is None else past.shape[2])
        return self._convolve(F.pad(x, (0, 0, 0, 0, missing, 0)) if missing else x)

    def _convolve(self, x: Tensor) -> Tensor:
        """On a CPU, PyTorch gives one small stream to a convolution 2.4 times slower than oneDNN's, and a batch of two
        to oneDNN's; so that a stream alone is as quick, and its sums are those of a batch, oneDNN's is asked for."""
        is_plain = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
        if not (is_plain and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[attr-defined]
            return super().forward(x)
        places = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.aten.mkldnn_convolution(x, self.weight, self.bias, *places)


def conv3(dim_in: int, dim_out: int) -> CausalConv3d:
    """The 3x3x3 causal convolution the VAE is made of."""
    return CausalConv3d(dim_in, dim_out, (3, 3, 3), time_pad=2)


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels (axis 1). axes: how many axes follow the channels."""

    def __init__(self, dim: int, axes: int):
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * axes))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.residual = nn.Sequential(
            *(RMSNorm(dim_in, 3), nn.SiLU(), conv3(dim_in, dim_out)),
            *(RMSNorm(dim_out, 3), nn.SiLU(), nn.Identity(), conv3(dim_out, dim_out)),
        )
        self.shortcut = CausalConv3d(dim_in, dim_out, (1, 1, 1)) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, histories: Histories | None) -> Tensor:
        return self.shortcut(x) + run(self.residual, x, histories)


class AttentionBlock(nn.Module):
    """Single-head attention over the places of each frame alone: it needs no history."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, histories: Histories | None) -> Tensor:
        b, c, t, h, w = x.shape
        frames = to_frames(x)  # (B*T, C, H, W)
        qkv = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)[:, None]  # (B*T, 1, H*W, 3C)
        attended = F.scaled_dot_product_attention(*(part.contiguous() for part in qkv.chunk(3, dim=-1)))
        out = self.proj(attended[:, 0].transpose(1, 2).reshape(b * t, c, h, w))
        return x + from_frames(out, b)


class Downsample(nn.Module):
    """Half the height and width; with `temporal` also half the frames, where the stream's first frame stays one."""

    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        if temporal:
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=2)
        self.temporal = temporal

    def forward(self, x: Tensor, histories: Histories | None) -> Tensor:
        x = from_frames(self.resample(to_frames(x)), x.shape[0])
        return self._halve(x, histories) if self.temporal else x

    def _halve(self, x: Tensor, histories: Histories | None) -> Tensor:
        slot = self.time_conv.path
        past = None if histories is None else histories.get(slot)
        if histories is not None:
            histories.put(slot, x[:, :, -1:])
        if past is not None:
            return self.time_conv(torch.cat([past, x], dim=2))
        # The stream's first frame passes as it is; it is also the left neighbour of the next two.
        first = x[:, :, :1]
        return torch.cat([first, self.time_conv(x)], dim=2) if x.shape[2] > 1 else first


class Upsample(nn.Module):
    """Twice the height and width, half the channels; with `temporal` twice the frames, except the stream's first."""

    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        nearest = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(nearest, nn.Conv2d(dim, dim // 2, 3, padding=1))
        if temporal:
            self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1), time_pad=2)
        self.temporal = temporal

    def forward(self, x: Tensor, histories: Histories | None) -> Tensor:
        x = self._double(x, histories) if self.temporal else x
        return from_frames(self.resample(to_frames(x)), x.shape[0])

    def _double(self, x: Tensor, histories: Histories | None) -> Tensor:
        slot = self.time_conv.path
        first = None
        if histories is None or histories.is_empty(slot):
            # The first latent makes one frame, and the second does not look back at it: only "seen" is kept.
            first, x = x[:, :, :1], x[:, :, 1:]
            if histories is not None:
                histories.mark_seen(slot)
            if not x.shape[2]:
                return first
        if histories is not None and histories.get(slot) is None:
            histories.put(slot, torch.zeros_like(x[:, :, :1]))
        pairs = self.time_conv(x, histories).unflatten(1, (2, -1))  # (B, 2, C, T, H, W)
        doubled = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # (B, C, 2T, H, W)
        return doubled if first is None else torch.cat([first, doubled], dim=2)


STATEFUL = (CausalConv3d, ResidualBlock, AttentionBlock, Downsample, Upsample)


def run(layers: Iterable[nn.Module], x: Tensor, histories: Histories | None) -> Tensor:
    """The layers in order; those that remember are given the histories."""
    for layer in layers:
        x = layer(x, histories) if isinstance(layer, STATEFUL) else layer(x)
    return x


def to_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def from_frames(x: Tensor, batch: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H, W)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def middle(dim: int) -> nn.Sequential:
    """The blocks between the stages and the latents, the same in both directions."""
    return nn.Sequential(ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim))
