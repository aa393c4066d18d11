"""What causal convolutions remember from one chunk of a stream to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Histories:
    """Slots keyed by module path, each *empty*, *seen* (something passed, nothing is kept) or a tensor.

    State of one stream, or of B streams in the same phase (`stack`); the batch is the first axis of every tensor.
    Stored tensors are replaced, never written into, so copies of a Histories may share them. Slots are keyed by path
    and not by call order: a layer that is skipped once (wan_base.md §6) can't shift its neighbours' memory.
    """

    def __init__(self) -> None:
        self._slots: dict[str, Tensor | None] = {}  # None: seen

    def is_empty(self, path: str) -> bool:
        """Whether nothing ever passed the module at `path`."""
        return path not in self._slots

    def get(self, path: str) -> Tensor | None:
        """The kept tensor; None where the slot is empty or seen."""
        return self._slots.get(path)

    def mark_seen(self, path: str) -> None:
        """Remembers that something passed, without keeping it."""
        self._slots[path] = None

    def put(self, path: str, tensor: Tensor) -> None:
        """Keeps a copy: `tensor` is usually a view of an activation many times its size, which must be freed."""
        self._slots[path] = tensor.detach().clone(memory_format=torch.contiguous_format)

    def paths(self) -> Iterator[str]:
        """The slots that aren't empty, in the order of their first use."""
        return iter(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes of all kept tensors."""
        return sum(kept.nbytes for kept in self._slots.values() if kept is not None)

    @property
    def phase(self) -> tuple[tuple[str, tuple[int, ...] | None], ...]:
        """Equal for streams that may be stacked: the same slots, holding tensors of the same shape past the batch."""
        shapes = ((path, None if kept is None else tuple(kept.shape[1:])) for path, kept in self._slots.items())
        return tuple(sorted(shapes, key=lambda slot: slot[0]))

    def clear(self) -> None:
        """Forgets everything, as at the start of a stream."""
        self._slots.clear()

    def clone(self) -> Histories:
        """An independent copy (the tensors are shared, see the class)."""
        copy = Histories()
        copy._slots = dict(self._slots)
        return copy

    def mark(self) -> Histories:
        """Where they stand, for `rewind`. Costs nothing, see the class."""
        return self.clone()

    def rewind(self, mark: Histories) -> None:
        """Back to where `mark` was taken."""
        self._slots = dict(mark._slots)

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(meta, tensors): meta is a small JSON-able dict, tensors are the kept ones by path."""
        tensors = {path: kept for path, kept in self._slots.items() if kept is not None}
        return {"slots": [[path, kept is not None] for path, kept in self._slots.items()]}, tensors

    @classmethod
    def restore(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Histories:
        """The Histories that `snapshot` was taken of. Raises ValueError if a tensor it names is missing."""
        histories = cls()
        for path, is_kept in meta["slots"]:
            if is_kept and path not in tensors:
                raise ValueError(f"the snapshot of the histories names {path!r} but holds no tensor for it")
            histories._slots[path] = tensors[path] if is_kept else None
        return histories

    @classmethod
    def stack(cls, streams: Sequence[Histories]) -> Histories:
        """One Histories for a batch of streams, in their order. Raises ValueError if their phases differ."""
        phases = {stream.phase for stream in streams}
        if len(phases) != 1:
            raise ValueError(f"{len(streams)} streams in {len(phases)} different phases can't share a step")
        stacked = cls()
        for path, kept in streams[0]._slots.items():
            rows = [stream._slots[path] for stream in streams]
            stacked._slots[path] = None if kept is None else torch.cat([row for row in rows if row is not None])
        return stacked

    def unstack(self) -> list[Histories]:
        """One Histories for each row of the batch, owning its memory. All slots seen or empty: one."""
        kept = {path: tensor for path, tensor in self._slots.items() if tensor is not None}
        sizes = {tensor.shape[0] for tensor in kept.values()} or {1}
        if len(sizes) != 1:
            raise ValueError(f"slots disagree on the number of streams: {sorted(sizes)}")
        streams = [Histories() for _ in range(sizes.pop())]
        for path, tensor in self._slots.items():
            for row, stream in enumerate(streams):
                stream._slots[path] = None if tensor is None else tensor[row : row + 1].clone()
        return streams


def assign_paths(root: nn.Module, kind: type[nn.Module]) -> None:
    """Tells every submodule of class `kind` its path under `root`, the key of its slot, as attribute `path`."""
    for path, module in root.named_modules():
        if isinstance(module, kind):
            module.path = path  # type: ignore[assignment]
