"""The dense heads: tokens of four layers fused to a map of the image's size (infinitevggt.md §7).

N frames, D = 2C token channels, h x w patches of p pixels, F features. Stateless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.1
"""Weight of the position embedding that is added to maps."""

Activation = Literal["exp", "inv_log"]


class ResidualUnit(nn.Module):
    """Two convolutions beside a skip. The skip carries relu(x), not x: the official ReLU works in place."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x + self.conv2(self.conv1(x).relu())


class Fusion(nn.Module):
    """Adds a finer map to the coarser ones' sum and brings the result to the next size."""

    def __init__(self, features: int, has_skip: bool) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        return self.out_conv(_resized(self.resConfUnit2(x), size))  # resized before the convolution, as trained


class Scratch(nn.Module):
    """The part of a head that works on F features."""

    def __init__(self, channels: Sequence[int], features: int, output: int | None) -> None:
        """output: channels of the result; None stops at the features (the track head's maps)."""
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(c, features, 3, padding=1, bias=False) for c in channels
        )
        self.refinenet1, self.refinenet2, self.refinenet3 = (Fusion(features, has_skip=True) for _ in range(3))
        self.refinenet4 = Fusion(features, has_skip=False)
        half = features if output is None else features // 2
        self.output_conv1 = nn.Conv2d(features, half, 3, padding=1)
        if output is not None:
            self.output_conv2 = nn.Sequential(nn.Conv2d(half, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, output, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps, the finest first, -> [N, F/2, 2h1, 2w1] of the finest one's (h1, w1)."""
        one, two, three, four = (
            layer(x)
            for layer, x in zip((self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn), maps, strict=True)
        )
        x = self.refinenet4(four, None, _size(three))
        x = self.refinenet3(x, three, _size(two))
        x = self.refinenet2(x, two, _size(one))
        x = self.refinenet1(x, one, (2 * one.shape[2], 2 * one.shape[3]))
        return self.output_conv1(x)


class DPTHead(nn.Module):
    """Depth, points (with an activation), or feature maps for tracking (without)."""

    def __init__(
        self,
        dim: int,
        channels: Sequence[int],
        features: int,
        output: int | None = None,
        activation: Activation | None = None,
    ) -> None:
        """dim: D. channels: of the four maps. output: values a pixel with the confidence; None: features only, at
        half the image's size and without positions."""
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList([nn.Conv2d(dim, c, 1) for c in channels])
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(channels, features, output)
        self.activation = activation

    def forward(self, tokens: Sequence[Tensor], height: int, width: int, patch: int) -> Tensor:
        """tokens: patch tokens of four layers, each [N, h*w, D]; height, width: of the image.

        Returns raw values [N, output, H, W], for `activate`, or features [N, F, H/2, W/2].
        """
        aspect, is_dense = width / height, self.activation is not None
        maps = []
        for x, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True):
            x = self.norm(x).transpose(1, 2).unflatten(2, (height // patch, width // patch))  # (N, D, h, w)
            x = project(x)
            maps.append(resize(_with_position(x, aspect) if is_dense else x))
        x = self.scratch(maps)
        if not is_dense:
            return _resized(x, (height // 2, width // 2))
        return self.scratch.output_conv2(_with_position(_resized(x, (height, width)), aspect))

    def dense(self, tokens: Sequence[Tensor], height: int, width: int, patch: int) -> tuple[Tensor, Tensor]:
        """(values [N, H, W, output - 1], confidence [N, H, W] above 1)."""
        assert self.activation is not None
        return activate(self(tokens, height, width, patch), self.activation)


def activate(raw: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """raw [N, c + 1, H, W] -> (values [N, H, W, c], confidence [N, H, W])."""
    raw = raw.permute(0, 2, 3, 1)
    values, confidence = raw[..., :-1], 1 + raw[..., -1].exp()
    return (values.exp() if activation == "exp" else values.sign() * values.abs().expm1()), confidence


def axis_places(width: int, height: int, aspect: float) -> tuple[Tensor, Tensor]:
    """float64 (x [width], y [height]) of the cells of an image of that aspect, whose half diagonal is 1 long."""
    diagonal = (aspect**2 + 1) ** 0.5
    right, down = aspect / diagonal * (width - 1) / width, 1 / diagonal * (height - 1) / height
    x, y = (torch.linspace(-end, end, n, dtype=torch.float64) for end, n in ((right, width), (down, height)))
    return x, y


def axis_embedding(places: Tensor, dim: int) -> Tensor:
    """float32 [n, dim] of places [n]: [sin, cos]."""
    omega = 100 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    phase = places[:, None] * omega
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


def _with_position(x: Tensor, aspect: float) -> Tensor:
    """x [N, c, h, w] with its cells' places added: the column's to the first half of the channels, then the row's."""
    places = axis_places(x.shape[3], x.shape[2], aspect)
    by_column, by_row = (SCALE * axis_embedding(at, x.shape[1] // 2).T.to(x) for at in places)  # (c/2, w), (c/2, h)
    first, second = x.chunk(2, dim=1)
    return torch.cat([first + by_column[:, None, :], second + by_row[:, :, None]], dim=1)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]
