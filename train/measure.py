"""What a picture of the tiny world shows, read off the pixels alone: object colour, floor, sky."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.train.scenes import FLOORS, OBJECT_COLOURS, SKIES

OBJECT_CHROMA, OBJECT_SATURATION = 0.22, 0.55
"""Least chroma (largest minus smallest channel) and least chroma / largest channel of an object's pixel. By the choice
of the palette every floor and sky misses one of them under every light, and every object has both even in its shade."""
LEAST_SHARE = 0.03
"""A picture with fewer object pixels than this shows no object."""


@dataclass(frozen=True)
class ColourCount:
    """Share of the pixels that are an object's, and of these the share of each colour, in palette order."""

    object_share: float
    colours: Tensor

    def shows(self, colour: str) -> bool:
        """Whether there is an object and more than half of its pixels have this colour."""
        index = list(OBJECT_COLOURS).index(colour)
        return self.object_share >= LEAST_SHARE and self.colours[index].item() > 0.5


def count_colours(frames: Tensor) -> ColourCount:
    """frames uint8 [T, H, W, 3]. An object pixel counts for the palette colour of nearest hue."""
    labels = label_pixels(frames)
    counts = torch.bincount(labels.flatten() + 1, minlength=len(OBJECT_COLOURS) + 1)
    objects = counts[1:].float()
    return ColourCount(objects.sum().item() / labels.numel(), objects / objects.sum().clamp(min=1))


def label_pixels(frames: Tensor) -> Tensor:
    """uint8 [..., 3] -> int64 [...]: index of the object colour, or -1 for floor and sky."""
    rgb = frames.float() / 255
    high = rgb.amax(-1)
    chroma = high - rgb.amin(-1)
    is_object = (chroma >= OBJECT_CHROMA) & (chroma >= OBJECT_SATURATION * high)
    palette = hue(torch.tensor(list(OBJECT_COLOURS.values())))
    difference = (hue(rgb)[..., None] - palette).abs()
    nearest = torch.minimum(difference, 360 - difference).argmin(-1)
    return torch.where(is_object, nearest, -1)


def hue(rgb: Tensor) -> Tensor:
    """[..., 3] -> hue in degrees [...] (the hexagon's, as in HSV)."""
    r, g, b = rgb.unbind(-1)
    high, chroma = rgb.amax(-1), (rgb.amax(-1) - rgb.amin(-1)).clamp(min=1e-6)
    of_green_or_blue = torch.where(high == g, (b - r) / chroma + 2, (r - g) / chroma + 4)
    turns = torch.where(high == r, ((g - b) / chroma) % 6, of_green_or_blue)
    return turns * 60


def floor_and_sky(frames: Tensor) -> tuple[str, str]:
    """The nearest (floor, sky) to the mean colours of the lowest and highest eighth, object pixels left out."""
    rows = frames.shape[1] // 8
    below, above = _mean_background(frames[:, -rows:]), _mean_background(frames[:, :rows])
    best, found = float("inf"), ("", "")
    for sky_name, sky in SKIES.items():
        light, zenith = torch.tensor(sky.light), torch.tensor(sky.zenith)
        for floor_name, floor in FLOORS.items():
            distance = (below - torch.tensor(floor) * light).square().sum() + (above - zenith).square().sum()
            if distance.item() < best:
                best, found = distance.item(), (floor_name, sky_name)
    return found


def sharpness(frames: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels, in levels of 255."""
    x = frames.float()
    return 0.5 * ((x[:, 1:] - x[:, :-1]).abs().mean() + (x[:, :, 1:] - x[:, :, :-1]).abs().mean()).item()


def _mean_background(frames: Tensor) -> Tensor:
    background = frames[label_pixels(frames) < 0]
    return background.float().mean(0) / 255 if len(background) else torch.full((3,), 9.0)
