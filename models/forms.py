"""What the arrays of each kind of port look like. One table for what clients put in and what models hand out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from riverrun.models.base import Kind

Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class Form:
    """Arrays of one kind. axes: of one frame, "H" and "W" being its height and width; None: the model's own."""

    dtype: np.dtype[Any]
    axes: Axes | None

    def sized(self, size: tuple[int, int] | None) -> Axes:
        """The axes of a frame of this (H, W); letters stay where there is none."""
        known: dict[str | int, int] = dict(zip("HW", size, strict=True)) if size else {}
        return tuple(known.get(axis, axis) for axis in self.axes or ())

    @property
    def pixel_bytes(self) -> int:
        """Of each pixel; 0 for kinds that have none."""
        axes = self.axes or ()
        return self.dtype.itemsize * math.prod(axis for axis in axes if isinstance(axis, int)) if "H" in axes else 0


FORMS: Mapping[Kind, Form] = {
    Kind.FRAMES: Form(np.dtype(np.uint8), ("H", "W", 3)),
    Kind.DEPTH: Form(np.dtype(np.float32), ("H", "W")),
    Kind.POINTS: Form(np.dtype(np.float32), ("H", "W", 3)),
    Kind.CAMERA: Form(np.dtype(np.float32), (9,)),
    Kind.CONFIDENCE: Form(np.dtype(np.float32), ("H", "W")),
    Kind.TEXT: Form(np.dtype(np.int64), ()),
    Kind.CONDITION: Form(np.dtype(np.float32), None),
}


def fits(shape: Sequence[int], axes: Axes) -> bool:
    """Whether an array has these axes; a letter takes any length of at least 1."""
    if len(shape) != len(axes):
        return False
    return all(size == axis if isinstance(axis, int) else size > 0 for size, axis in zip(shape, axes, strict=True))


def is_finite(data: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity: two passes and no copy, since the largest of values among which one is
    NaN is NaN."""
    return data.dtype.kind != "f" or not data.size or (math.isfinite(data.min()) and math.isfinite(data.max()))
