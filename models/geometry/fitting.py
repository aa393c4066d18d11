"""How an image of any size comes to lie in the network (infinitevggt.md §3), and back. Pure numbers: no torch here, so
that a client may use it to say where a point of the network's image lies in its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from riverrun.models.base import BadRequest

Fit = Literal["crop", "pad"]
"""`crop`: the width becomes the network's, a taller image loses top and bottom. `pad`: the longer side does, and the
image is made square with white."""

PATCH = 14

MOST_ASPECT = 64
"""Of an image: a taller one would be blown up to gigabytes before most of it is cropped away."""


@dataclass(frozen=True)
class Fitting:
    """An image of height x width, made `resized` (rows, columns) and then cut or padded to `inside` (rows, columns).

    Continuous coordinates: a pixel's first corner is (0, 0), its centre (0.5, 0.5).
    """

    height: int
    width: int
    resized: tuple[int, int]
    inside: tuple[int, int]

    @property
    def offset(self) -> tuple[int, int]:
        """(down, right): where the resized image begins in the network's; negative where it was cut."""
        down, right = (have - want for have, want in zip(self.inside, self.resized, strict=True))
        return down // 2 if down > 0 else -(-down // 2), right // 2

    @property
    def scale(self) -> tuple[float, float]:
        """(down, right): pixels of the image in one of the network's."""
        return self.height / self.resized[0], self.width / self.resized[1]


def fitting(height: int, width: int, side: int = 518, patch: int = PATCH, fit: Fit = "crop") -> Fitting:
    """Raises BadRequest if nothing is left of an image of that size."""
    rows, columns = _resized(height, width, side, patch, fit)
    return Fitting(height, width, (rows, columns), (side if fit == "pad" else min(rows, side), side))


def network_size(height: int, width: int, side: int = 518, patch: int = PATCH, fit: Fit = "crop") -> tuple[int, int]:
    """(height, width) that an image of that size has in the network. Raises BadRequest if nothing is left of it."""
    return fitting(height, width, side, patch, fit).inside


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
