"""What a client may put into a graph: arrays of the form its port's kind has, refused before they enter a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from riverrun.models.base import BadRequest, Kind, Port

Axes = tuple[str | int, ...]
_FORMS: Mapping[Kind, tuple[str, Axes]] = {  # dtype and axes of one frame; a letter stands for any size of at least 1
    Kind.FRAMES: ("uint8", ("H", "W", 3)),
    Kind.DEPTH: ("float32", ("H", "W")),
    Kind.POINTS: ("float32", ("H", "W", 3)),
    Kind.CAMERA: ("float32", (9,)),
    Kind.CONFIDENCE: ("float32", ("H", "W")),
    Kind.TEXT: ("int64", ()),
}


def check_input(name: str, port: Port, data: Any) -> None:
    """data: T frames of graph input `name`, [T, ...], or a reference, which is not looked into. Raises BadRequest
    unless the port takes such; CONDITION is the model's own, so only its numbers are looked at."""
    if not isinstance(data, np.ndarray):
        return
    if port.kind in _FORMS:
        dtype, axes = _FORMS[port.kind]
        if port.size:
            axes = tuple(dict(zip("HW", port.size, strict=True)).get(str(axis), axis) for axis in axes)
        if data.dtype != dtype or not _fits(data.shape[1:], axes):
            wanted = f"{dtype} [{', '.join(map(str, axes))}]"
            raise BadRequest(f"input {name!r} takes {wanted} a frame, got {data.dtype} {list(data.shape[1:])}")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise BadRequest(f"input {name!r} takes finite numbers, got NaN or infinity")


def _fits(shape: tuple[int, ...], axes: Axes) -> bool:
    if len(shape) != len(axes):
        return False
    return all(size == axis if isinstance(axis, int) else size > 0 for size, axis in zip(shape, axes, strict=True))
