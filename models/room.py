"""Room for a session on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from riverrun.models.base import Unavailable


@contextmanager
def room(device: torch.device) -> Iterator[None]:
    """Where a session's memory is made. Raises Unavailable if the device has none left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Unavailable(f"{device} has no memory left for a session; close one, or set max_bytes") from error
