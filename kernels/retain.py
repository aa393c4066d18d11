"""Rows that stay by a score of their own: what a trained retaining head, or any final score, decides (locret.md §4).

A row's score depends on that row alone and is known when the row comes, so it is stored beside the keys and never
computed again. Heads keep different rows of a layer, but all keep equally many.

n rows of a layer, H key heads, S rows kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riverrun.kernels.cache import CachePoisoned, CacheSpec, KVCache
from riverrun.kernels.export import Rows
from riverrun.kernels.policies import Full, Plan
from riverrun.kernels.undo import Undo


def best_rows(scores: Tensor, budget: int, protected: int = 0) -> Tensor:
    """The `budget` best rows of each head, int64 [H, min(budget, n)], ascending; scores [n, H].

    The newest `protected` rows stay whatever their score. Of equal scores the newer row stays.
    """
    rows = len(scores)
    newest_first = scores.float().flip(0)
    newest_first[:protected] = torch.inf
    order = newest_first.argsort(dim=0, descending=True, stable=True)[:budget]  # (S, H)
    return (rows - 1 - order).sort(dim=0).values.t()


@dataclass(frozen=True)
class RetainingHeads:
    """Appends up to `capacity`; asked to, it names each head's `budget` best rows.

    stabilisers: newest rows that stay whatever their score as long as more of a text follows.
    """

    capacity: int
    budget: int
    stabilisers: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.budget <= self.capacity:
            raise ValueError(f"budget must lie in 1..{self.capacity} (the capacity), got {self.budget}")
        if not 0 <= self.stabilisers <= self.budget:
            raise ValueError(f"stabilisers must lie in 0..{self.budget} (the budget), got {self.stabilisers}")

    def plan(self, cursor: int, length: int, start: int, new: int, rewrite_sink: bool = False) -> Plan:
        return Full(self.capacity).plan(cursor, length, start, new, rewrite_sink)

    def select(self, scores: Tensor, is_final: bool) -> Tensor:
        """Slots each head keeps, int64 [H, S], ascending; scores [n, H]. is_final: no row is protected."""
        return best_rows(scores, self.budget, 0 if is_final else self.stabilisers)


class ScoredCache(KVCache):
    """A cache that holds one score a row and head, where the row lies, and can be pruned to its policy's budget.

    State, beside the cache's own: `scores` [layers, slots, heads]; those of filled slots count.
    """

    def __init__(
        self,
        spec: CacheSpec,
        policy: RetainingHeads,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if spec.rows != 1:
            raise ValueError(f"a scored cache has one row, got {spec.rows}")
        super().__init__(spec, policy, dtype, device)
        self.retaining = policy
        self.scores = torch.zeros((spec.layers, policy.capacity, spec.heads), dtype=dtype, device=device)

    def score(self, layer: int, scores: Tensor) -> None:
        """Within a call: the scores [new, heads] of its new rows."""
        plan = self._planned(layer)
        self.scores[layer, plan.write : plan.length] = scores[plan.skip :]

    def held(self, layer: int) -> Tensor:
        """Scores of the filled slots, [n, heads]; a view."""
        return self.scores[layer, : self.lengths[layer]]

    def prune(self, is_final: bool) -> list[Tensor]:
        """Between calls: each head of each layer keeps its best rows; returns the slots kept, [heads, S] a layer.

        is_final: the stabilisers compete too. The cursor stays. A failure half-way poisons the cache.
        """
        if self._plans:
            raise CachePoisoned(f"cache {self.spec.name!r} is in the middle of a call")
        self._plans = [Plan(length, self.cursor, 0, ((0, length),)) for length in self.lengths]
        chosen = [self.retaining.select(self.held(layer), is_final) for layer in range(self.spec.layers)]
        for layer, slots in enumerate(chosen):
            self.keep(layer, slots)
        self.commit()
        return chosen

    def keep(self, layer: int, slots: Tensor) -> None:
        super().keep(layer, slots)
        self.scores[layer, : slots.shape[-1]] = self.scores[layer].gather(0, slots.t())

    def adopt(self, cursor: int, chosen: Sequence[int]) -> None:
        index = torch.tensor(chosen, dtype=torch.int64, device=self.scores.device)
        for layer, length in enumerate(self.lengths):
            shift = length - self.cursor  # from a position to its slot
            self.scores[layer, shift + cursor : shift + cursor + len(chosen)] = self.scores[layer, shift + index]
        super().adopt(cursor, chosen)

    def forget(self, positions: int) -> None:
        """Counts positions from so many further on: rows stay, only the numbers of the stream's start are let go."""
        if not 0 <= positions <= self.cursor - max(self.lengths):
            raise ValueError(f"can forget 0..{self.cursor - max(self.lengths)} positions, got {positions}")
        self.cursor -= positions

    def mark(self) -> Undo:
        """As any cache; the scores are copied, a value beside the many of its row."""
        undo = super().mark()
        undo.beside = self.scores.clone()
        return undo

    def rewind(self, mark: Undo) -> None:
        super().rewind(mark)
        if mark.beside is not None:
            self.scores.copy_(mark.beside)

    @property
    def is_poisoned(self) -> bool:
        return bool(self._plans)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.scores.nbytes

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        meta, rows = super().snapshot()
        scores = torch.cat([self.held(layer) for layer in range(self.spec.layers)])
        return meta, rows | {"scores": scores}

    def restore(self, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().restore(meta, tensors)
        for layer, scores in enumerate(tensors["scores"].split(self.lengths)):
            self.held(layer).copy_(scores)
