"""What a KV cache must remember to go back to a mark: the rows it has overwritten since, and nothing else.

A call that appends overwrites nothing that counts. One that evicts moves rows down, and moving them up again loses
nothing, so only the evicted ones are kept: a block of LongLive's window, not the window. So it is with one that chooses
its rows by content: those chosen lie packed in front and know where they came from, only the others are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Where = slice | Tensor
"""Slots of a pool: a run of them, or an index."""


@dataclass(frozen=True)
class Kept:
    """Rows k and v [rows, n, heads, head_dim] that stood at `at`. moved: rows went from the first place to the second
    when these were evicted."""

    at: Where
    k: Tensor
    v: Tensor
    moved: tuple[Where, Where] | None

    def put_back(self, k: Tensor, v: Tensor) -> None:
        """As they were, in the pools."""
        for pool, old in ((k, self.k), (v, self.v)):
            if self.moved is not None:
                source, target = self.moved
                pool[:, source] = pool[:, target].clone()
            pool[:, self.at] = old


@dataclass(frozen=True)
class Chosen:
    """Of the slots `at`, head h's rows at `packed[..., h, :]` went to the first slots; the others, k and v [rows, n,
    heads, head_dim], stood at `dropped`. Both [rows, heads, n], ascending."""

    at: Where
    packed: Tensor
    dropped: Tensor
    k: Tensor
    v: Tensor

    def put_back(self, k: Tensor, v: Tensor) -> None:
        """As they were, in the pools."""
        for pool, old in ((k, self.k), (v, self.v)):
            rows = pool[:, self.at].clone()
            front = rows[:, : self.packed.shape[-1]].clone()
            rows.scatter_(1, by_head(self.packed, rows), front).scatter_(1, by_head(self.dropped, rows), old)
            pool[:, self.at] = rows


def by_head(slots: Tensor, rows: Tensor) -> Tensor:
    """slots [heads, n] or [rows, heads, n] as an index along the slots of `rows` [rows, N, heads, head_dim]."""
    return slots.transpose(-1, -2)[..., None].expand(len(rows), -1, -1, rows.shape[-1])  # (rows, n, H, D)


def others(slots: Tensor, count: int) -> Tensor:
    """Those of `count` slots that are not among `slots` [rows, heads, n], ascending: [rows, heads, count - n]."""
    is_other = torch.ones(*slots.shape[:-1], count, dtype=torch.bool, device=slots.device)
    is_other.scatter_(-1, slots, value=False)
    return is_other.nonzero()[:, -1].view(*slots.shape[:-1], count - slots.shape[-1])


@dataclass(eq=False)
class Undo:
    """A mark of one cache. cursor, lengths, pages: of the cache then. floors: slots below it, of each layer, hold what
    counted then (moved down, if others were evicted), and must be kept before they are overwritten. beside: what a
    cache of another kind has beside its rows."""

    cursor: int
    lengths: list[int]
    floors: list[int]
    pages: tuple[list[list[int]], list[int]]
    kept: list[Kept | Chosen] = field(default_factory=list)
    beside: Tensor | None = None

    def __post_init__(self) -> None:
        self._first = list(self.floors)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows kept so far."""
        return sum(rows.k.nbytes + rows.v.nbytes for rows in self.kept)

    def overwrites(self, layer: int, start: int, stop: int) -> int:
        """Slots [start, stop) of a layer are overwritten: where those end that must be kept, at most `start` if none
        must."""
        floor = self.floors[layer]
        if start < floor <= stop:
            self.floors[layer] = start
        return min(floor, stop)

    def evicts(self, layer: int, keep: int, evict: int) -> bool:
        """Slots [keep, keep + evict) of a layer go, and later ones move down: whether that must be kept."""
        floor = self.floors[layer]
        self.floors[layer] -= max(0, min(floor, keep + evict) - keep)
        return floor > keep

    def keep(self, k: Tensor, v: Tensor, at: Where, moved: tuple[Where, Where] | None = None) -> None:
        """Copies what stands `at` these slots of the pools."""
        self.kept.append(Kept(at, k[:, at].clone(), v[:, at].clone(), moved))

    def chooses(self, layer: int, k: Tensor, v: Tensor, at: Where, slots: Tensor) -> None:
        """Of a layer's slots `at`, those at `slots` [heads, n] or [rows, heads, n], ascending, go to the first ones."""
        packed = slots if slots.dim() == 3 else slots[None]
        rows = k[:, at], v[:, at]
        dropped = others(packed, rows[0].shape[1])
        self.kept.append(Chosen(at, packed, dropped, *(part.gather(1, by_head(dropped, part)) for part in rows)))
        self.floors[layer] = slots.shape[-1]

    def put_back(self, k: Tensor, v: Tensor) -> None:
        """Undoes everything in the pools, last first."""
        for rows in reversed(self.kept):
            rows.put_back(k, v)
        self.kept.clear()
        self.floors = list(self._first)
