"""Tensors on their way into a `Snapshot` and back: CPU arrays that keep every bit, whatever the dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

_BITS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
"""Dtypes that numpy lacks, and those whose bits stand for them."""


def to_arrays(tensors: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, dtypes): copies on the CPU, and each tensor's torch dtype by name."""
    arrays = {
        name: t.detach().to("cpu", copy=True).contiguous().view(_BITS.get(t.dtype, t.dtype)).numpy()
        for name, t in tensors.items()
    }
    return arrays, {name: str(t.dtype).removeprefix("torch.") for name, t in tensors.items()}


def to_tensors(
    arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str], device: torch.device | str
) -> dict[str, Tensor]:
    """The tensors `to_arrays` was given, on `device`, owning their memory."""
    return {
        name: torch.from_numpy(np.array(array)).view(getattr(torch, dtypes[name])).to(device)
        for name, array in arrays.items()
    }


def below(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
