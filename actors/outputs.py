"""What a model hands out must be what it described: checked at its stage, before anybody else is given it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from riverrun.models.base import Chunk, Corrupt, Description, Kind
from riverrun.models.forms import FORMS, fits, is_finite


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
    form, data = FORMS[kind], chunk.data
    axes = (chunk.frames, *form.sized(None if description.sizes_vary else description.frame_shape))
    wanted = f"{form.dtype} [{chunk.frames}, ...]" if form.axes is None else f"{form.dtype} {_listed(axes)}"
    if not isinstance(data, np.ndarray):
        raise Corrupt(f"port {chunk.port!r} takes {wanted}, the model made something of type {type(data).__name__}")
    shape = data.shape[:1] if form.axes is None else data.shape
    if chunk.frames < 1 or data.dtype != form.dtype or not fits(shape, axes):
        got = f"{data.dtype} {list(data.shape)}"
        raise Corrupt(f"port {chunk.port!r} takes {wanted}, the model made {got} as {chunk.frames} frame(s)")
    if not is_finite(data):
        count = int((~np.isfinite(data)).sum())
        raise Corrupt(f"port {chunk.port!r} takes finite values, {count} of {data.size} that the model made are not")


def _listed(axes: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, axes))}]"
