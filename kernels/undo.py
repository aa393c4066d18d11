"""What a KV cache must remember to go back to a mark: the rows it has overwritten since, and nothing else.

A call that appends overwrites nothing that counts. One that evicts moves rows down, and moving them up again loses
nothing, so only the evicted ones are kept: a block of LongLive's window, not the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(eq=False)
class Undo:
    """A mark of one cache. cursor, lengths, pages: of the cache then. floors: slots below it, of each layer, hold what
    counted then (moved down, if others were evicted), and must be kept before they are overwritten. beside: what a
    cache of another kind has beside its rows."""

    cursor: int
    lengths: list[int]
    floors: list[int]
    pages: tuple[list[list[int]], list[int]]
    kept: list[Kept] = field(default_factory=list)
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

    def put_back(self, k: Tensor, v: Tensor) -> None:
        """Undoes everything in the pools, last first."""
        for rows in reversed(self.kept):
            for pool, old in ((k, rows.k), (v, rows.v)):
                if rows.moved is not None:
                    source, target = rows.moved
                    pool[:, source] = pool[:, target].clone()
                pool[:, rows.at] = old
        self.kept.clear()
        self.floors = list(self._first)
