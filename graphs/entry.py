"""What a client may put into a graph: arrays of the form its port's kind has, refused before they enter a stage."""

from __future__ import annotations

from typing import Any

import numpy as np

from riverrun.models.base import BadRequest, Port
from riverrun.models.forms import FORMS, fits, is_finite


def check_input(name: str, port: Port, data: Any, frame: int) -> None:
    """data: T frames of graph input `name`, [T, ...], the first of them number `frame`; or a reference, which is not
    looked into. Raises BadRequest unless the port takes such; CONDITION is the model's own, so only its numbers are
    looked at."""
    if not isinstance(data, np.ndarray):
        return
    form = FORMS[port.kind]
    axes = form.sized(port.size)
    if form.axes is not None and (data.dtype != form.dtype or not fits(data.shape[1:], axes)):
        wanted = f"{form.dtype} [{', '.join(map(str, axes))}]"
        raise BadRequest(
            f"input {name!r} takes {wanted} a frame, got {data.dtype} {list(data.shape[1:])} (frame {frame})"
        )
    if not is_finite(data):
        raise BadRequest(f"input {name!r} takes finite numbers, got NaN or infinity (frame {frame})")
