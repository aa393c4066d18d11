"""What a model hands out must be what it described: checked at its stage, before anybody else is given it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riverrun.models.base import Chunk, Corrupt, Description, Kind


@dataclass(frozen=True)
class Form:
    """Arrays of one kind. axes: what follows the frames, "HW" being the frame's height and width; None: anything."""

    dtype: np.dtype
    axes: tuple[int | str, ...] | None


FORMS = {
    Kind.FRAMES: Form(np.dtype(np.uint8), ("H", "W", 3)),
    Kind.DEPTH: Form(np.dtype(np.float32), ("H", "W")),
    Kind.POINTS: Form(np.dtype(np.float32), ("H", "W", 3)),
    Kind.CONFIDENCE: Form(np.dtype(np.float32), ("H", "W")),
    Kind.CAMERA: Form(np.dtype(np.float32), (9,)),
    Kind.TEXT: Form(np.dtype(np.int64), ()),
    Kind.CONDITION: Form(np.dtype(np.float32), None),
}


def check_outputs(chunks: Sequence[Chunk], description: Description) -> None:
    """Raises Corrupt, naming the port, what was expected and what came."""
    kinds = {port.name: port.kind for port in description.outputs}
    for chunk in chunks:
        if not isinstance(chunk, Chunk):
            raise Corrupt(f"the model made something of type {type(chunk).__name__}, not a chunk")
        if chunk.port not in kinds:
            raise Corrupt(f"the model made a chunk of port {chunk.port!r}; it has {', '.join(kinds)}")
        _check(chunk, kinds[chunk.port], description)


def _check(chunk: Chunk, kind: Kind, description: Description) -> None:
    form = FORMS[kind]
    data, axes = chunk.data, _axes(form, chunk.frames, description.frame_shape)
    wanted = f"{form.dtype} [{', '.join(map(str, axes)) if axes else f'{chunk.frames}, ...'}]"
    if not isinstance(data, np.ndarray):
        raise Corrupt(f"port {chunk.port!r} takes {wanted}, the model made something of type {type(data).__name__}")
    if chunk.frames < 1 or data.dtype != form.dtype or not _fits(data.shape, axes, chunk.frames):
        got = f"{data.dtype} {list(data.shape)}"
        raise Corrupt(f"port {chunk.port!r} takes {wanted}, the model made {got} as {chunk.frames} frame(s)")
    if data.dtype.kind == "f" and data.size and not _is_finite(data):
        count = int((~np.isfinite(data)).sum())
        raise Corrupt(f"port {chunk.port!r} takes finite values, {count} of {data.size} that the model made are not")


def _axes(form: Form, frames: int, size: tuple[int, int] | None) -> tuple[int | str, ...] | None:
    """The shape there should be; a letter where any length will do."""
    if form.axes is None:
        return None
    known = dict(zip("HW", size, strict=True)) if size else {}
    return (frames, *(known.get(axis, axis) if isinstance(axis, str) else axis for axis in form.axes))


def _fits(shape: tuple[int, ...], axes: tuple[int | str, ...] | None, frames: int) -> bool:
    if axes is None:
        return len(shape) > 0 and shape[0] == frames
    return len(shape) == len(axes) and all(isinstance(b, str) or a == b for a, b in zip(shape, axes, strict=True))


def _is_finite(data: np.ndarray) -> bool:
    """Two passes and no copy: the largest of values among which one is NaN is NaN."""
    return math.isfinite(data.min()) and math.isfinite(data.max())
