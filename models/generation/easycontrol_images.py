"""Pictures on their way to being conditions: square, small, in [-1, 1] (easycontrol.md §7.2)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from riverrun.models.base import BadRequest
from riverrun.models.generation.easycontrol_conditions import TOKEN, Placing


def fit(placing: Placing, image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h, w, 3] of an image uint8 [H, W, 3].

    Spatial: size x size, the aspect ratio is lost. Subject: the longer side is `size`, the other is what the aspect
    ratio makes it, down to whole tokens. Raises BadRequest for a subject that is too narrow to keep a token.
    """
    height, width = image.shape[:2]
    if placing == "spatial":
        sides = (size, size)
    else:
        scale = size / max(height, width)
        sides = tuple(int(side * scale) // TOKEN * TOKEN for side in (height, width))  # type: ignore[assignment]
    if min(sides) < TOKEN:
        raise BadRequest(f"an image of {height} x {width} is too narrow for a subject of {size} pixels")
    picture = Image.fromarray(image).resize(sides[::-1], Image.Resampling.LANCZOS)
    return np.array(picture)


def pixels(image: np.ndarray, size: int) -> Tensor:
    """float32 [1, 3, size, size] in [-1, 1] of an image `fit` made; a subject lies in the middle of mid-grey."""
    scaled = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1  # (3, h, w)
    height, width = scaled.shape[1:]
    top, left = (size - height) // 2, (size - width) // 2
    padded = torch.zeros(1, 3, size, size)
    padded[0, :, top : top + height, left : left + width] = scaled
    return padded
