"""Images of any size to what the network takes (infinitevggt.md §3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from riverrun.models.base import BadRequest

Fit = Literal["crop", "pad"]
"""`crop`: the width becomes the network's, a taller image loses top and bottom. `pad`: the longer side does, and the
image is made square with white."""

MOST_ASPECT = 64
"""Of an image: a taller one would be blown up to gigabytes before most of it is cropped away."""


def network_size(height: int, width: int, side: int = 518, patch: int = 14, fit: Fit = "crop") -> tuple[int, int]:
    """(height, width) that an image of that size has in the network. Raises BadRequest if nothing is left of it."""
    rows, _ = _resized(height, width, side, patch, fit)
    return (side if fit == "pad" else min(rows, side)), side


def _resized(height: int, width: int, side: int, patch: int, fit: Fit) -> tuple[int, int]:
    if not 0 < max(height, width) <= MOST_ASPECT * min(height, width):
        raise BadRequest(f"an image has sides above 0, at most {MOST_ASPECT} to 1, got {height} x {width}")
    if fit == "crop" or width >= height:
        size = round(height * (side / width) / patch) * patch, side
    else:
        size = side, round(width * (side / height) / patch) * patch
    if min(size) < patch:
        raise BadRequest(f"an image of {height} x {width} is too narrow: less than a patch of {patch} would be left")
    return size


def prepare(image: Image.Image | np.ndarray, side: int = 518, patch: int = 14, fit: Fit = "crop") -> Tensor:
    """float32 [3, h, w] in 0..1, of an image in any mode or of uint8 [H, W, 3] RGB. Alpha is laid on white."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    picture = picture.convert("RGB")
    height, width = _resized(picture.height, picture.width, side, patch, fit)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (3, h, w)
    if fit == "crop" and height > side:
        top = (height - side) // 2
        return pixels[:, top : top + side]
    return centred(pixels, side, side) if fit == "pad" else pixels


def centred(pixels: Tensor, height: int, width: int) -> Tensor:
    """pixels [3, h, w] in the middle of white; the odd row or column goes below or right."""
    down, right = height - pixels.shape[1], width - pixels.shape[2]
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2), value=1.0)


def prepare_all(
    images: Sequence[Image.Image | np.ndarray], side: int = 518, patch: int = 14, fit: Fit = "crop"
) -> Tensor:
    """float32 [T, 3, H, W]: as `prepare`, centred in white where their sizes differ."""
    prepared = [prepare(image, side, patch, fit) for image in images]
    height, width = (max(pixels.shape[axis] for pixels in prepared) for axis in (1, 2))
    return torch.stack([centred(pixels, height, width) for pixels in prepared])
