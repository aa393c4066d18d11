"""Rows on their way out of a cache: read once, straight to where they go, and not at all where a view will do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Slots of a pool [rows, slots, heads, head_dim], laid end to end along the second axis.

    at: where they lie: runs, or indices where pages don't follow one another. Nothing is copied before it is asked for,
    and the pool must not change until then.
    """

    pool: Tensor
    at: Sequence[slice | Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.pool.shape[0], sum(_length(where) for where in self.at), *self.pool.shape[2:])

    def together(self) -> Tensor | None:
        """A view of them, where they lie in one contiguous piece of memory; else None."""
        runs = [where for where in self.at if isinstance(where, slice) and where.stop > where.start]
        total = self.shape[1]
        if not runs or sum(map(_length, runs)) != total:
            return None
        if any(later.start != before.stop for before, later in itertools.pairwise(runs)):
            return None
        view = self.pool[:, runs[0].start : runs[-1].stop]
        return view if view.is_contiguous() else None

    def into(self, out: Tensor) -> Tensor:
        """Copies them into `out`, of their shape, on any device."""
        for where, part in zip(self.at, out.split([_length(where) for where in self.at], dim=1), strict=True):
            part.copy_(self.pool[:, where])
        return out

    def packed(self) -> Tensor:
        """A copy on the CPU: a second copy may not fit on the pool's device."""
        return self.into(torch.empty(self.shape, dtype=self.pool.dtype))


def _length(where: slice | Tensor) -> int:
    return where.stop - where.start if isinstance(where, slice) else len(where)
