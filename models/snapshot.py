"""Tensors on their way into a `Snapshot` and back: CPU arrays that keep every bit, whatever the dtype, copied once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from riverrun.kernels.export import Rows
from riverrun.models.base import Control, Snapshot

T = TypeVar("T")

_BITS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
"""Dtypes that numpy lacks, and those whose bits stand for them."""
LARGE = 4 << 20
"""Bytes from which on numpy asks the kernel for large pages: a copy into such memory takes a third of the time."""


class Snapshotting(ABC):
    """A State that says what it consists of; what leaves it is copied here, once, or lent."""

    @abstractmethod
    def parts(self, kind: str) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """(meta, tensors) of a snapshot of this kind, the tensors its own memory. Raises Corrupt, BadRequest."""

    def snapshot(self, kind: str = "exact") -> Snapshot:
        meta, tensors = self.parts(kind)
        return _snapshot(meta, tensors, kind, _copied)

    def lend(self) -> Snapshot:
        """As `snapshot`, of its own memory where that lies in one piece on the CPU; to be read before the next step."""
        meta, tensors = self.parts("exact")
        return _snapshot(meta, tensors, "exact", _lent)


def _snapshot(
    meta: dict[str, Any], tensors: Mapping[str, Tensor | Rows], kind: str, leave: Callable[[Tensor | Rows], Tensor]
) -> Snapshot:
    left = {name: leave(tensor.detach() if isinstance(tensor, Tensor) else tensor) for name, tensor in tensors.items()}
    dtypes = {name: str(t.dtype).removeprefix("torch.") for name, t in left.items()}
    arrays = {name: t.view(_BITS.get(t.dtype, t.dtype)).numpy() for name, t in left.items()}
    return Snapshot(meta | {"dtypes": dtypes}, arrays, kind)


def _copied(part: Tensor | Rows) -> Tensor:
    out = _empty(tuple(part.shape), part.pool.dtype if isinstance(part, Rows) else part.dtype)
    return part.into(out) if isinstance(part, Rows) else out.copy_(part)


def _lent(part: Tensor | Rows) -> Tensor:
    view = part.together() if isinstance(part, Rows) else part
    return _copied(part) if view is None else view.cpu().contiguous()


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < LARGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(nbytes, np.uint8)).view(dtype).view(shape)


def to_tensors(
    arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str], device: torch.device | str, lent: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """A snapshot's tensors on `device`, owning their memory. Raises KeyError if one is missing.

    lent: those whose names begin so are views on the CPU, for a cache to copy from.
    """

    def tensor(name: str, dtype: str) -> Tensor:
        array = arrays[name]
        if lent and name.startswith(lent):
            return torch.from_numpy(_writable(array)).view(getattr(torch, dtype))
        return torch.from_numpy(np.array(array)).view(getattr(torch, dtype)).to(device)

    return {name: tensor(name, dtype) for name, dtype in dtypes.items()}


def _writable(array: np.ndarray) -> np.ndarray:
    """A view that torch takes without a word: it has no tensors that are only read, as what lies in Ray's store is."""
    return array if array.flags.writeable else np.asarray(_Memory(array))


class _Memory:
    def __init__(self, array: np.ndarray) -> None:
        about = array.__array_interface__
        self.__array_interface__ = about | {"data": (about["data"][0], False)}
        self._array = array


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
