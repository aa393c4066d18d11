"""Images of any size to what the network takes (infinitevggt.md §3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from riverrun.models.geometry.fitting import Fit, fitting


def prepare(image: Image.Image | np.ndarray, side: int = 518, patch: int = 14, fit: Fit = "crop") -> Tensor:
    """float32 [3, h, w] in 0..1, of an image in any mode or of uint8 [H, W, 3] RGB. Alpha is laid on white."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    picture = picture.convert("RGB")
    laid = fitting(picture.height, picture.width, side, patch, fit)
    height, width = laid.resized
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (3, h, w)
    if height > laid.inside[0]:
        top = -laid.offset[0]
        return pixels[:, top : top + laid.inside[0]]
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
