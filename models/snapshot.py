"""Tensors on their way into a `Snapshot` and back: CPU arrays that keep every bit, whatever the dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from riverrun.models.base import Control

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
    """The tensors `to_arrays` was given, on `device`, owning their memory. Raises KeyError if one is missing."""
    return {
        name: torch.from_numpy(np.array(arrays[name])).view(getattr(torch, dtype)).to(device)
        for name, dtype in dtypes.items()
    }


def below(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def pack_control(control: Control | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """(meta, tensors) of a prompt that waits for the next step: its embedding is the tensor "pending"."""
    if control is None:
        return None, {}
    meta = {"revision": control.revision, "kind": control.kind, "value": control.value}
    return meta, {"pending": torch.from_numpy(np.array(control.embedding))}


def unpack_control(meta: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Control | None:
    """The control that `pack_control` was given."""
    return None if meta is None else Control(**meta, embedding=tensors["pending"].numpy())
