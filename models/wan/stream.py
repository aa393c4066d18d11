"""Self attention of a Wan model over KV caches, for several sessions in one call (longlive.md §3, §4).

Linear layers run on the whole batch; attention runs session by session on a view of each one's own cache, so that
sessions with different fills, windows and positions share a call without copying a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from riverrun.kernels.attention import attention
from riverrun.kernels.cache import CacheCall, KVCache
from riverrun.kernels.policies import Plan
from riverrun.kernels.rope import angles_3d, rotate, rotation
from riverrun.kernels.shared import TextEntry
from riverrun.models.wan.dit import WanConfig

RopeForm = Literal["infinite", "standard"]
"""`infinite`: keys are cached before RoPE and turned at each call by their slot's frame number, so positions never
grow. `standard`: keys are cached after RoPE at their absolute frame number."""

Turn = tuple[Tensor, Tensor]


class CachedMemory(CacheCall):
    """One call's self attention for a batch of sessions."""

    def __init__(
        self,
        config: WanConfig,
        caches: Sequence[KVCache],
        starts: Sequence[int],
        frames: int,
        grid: tuple[int, int],
        rope: RopeForm,
        rewrite_sink: bool = False,
    ) -> None:
        """starts: first latent frame of each session's call. grid: (h, w) in tokens. frames: latent frames a call."""
        self.config, self.caches, self.grid, self.rope = config, caches, grid, rope
        self.tokens = grid[0] * grid[1]
        self.frames, self.starts, self.rewrite_sink = frames, starts, rewrite_sink
        self.turns: list[tuple[Turn, Turn]] = []

    def caches_used(self) -> Sequence[KVCache]:
        return self.caches

    def begin(self) -> None:
        for cache, start in zip(self.caches, self.starts, strict=True):
            plan = cache.begin(start * self.tokens, self.frames * self.tokens, self.rewrite_sink)
            self.turns.append(self._turns(plan, start, cache.k.device))

    def _turns(self, plan: Plan, start: int, device: torch.device) -> tuple[Turn, Turn]:
        """Rotations of the queries and of the keys. Standard keys are turned before they are stored."""
        if self.rope == "standard":
            turn = self._turn(torch.arange(start, start + self.frames, device=device))
            return turn, turn
        slots = torch.cat([torch.arange(a, b, device=device) for a, b in plan.attend])
        frames_seen = slots[:: self.tokens] // self.tokens  # every range begins and ends with a frame
        first = plan.length // self.tokens - self.frames
        own = torch.arange(first, first + self.frames, device=device)
        return self._turn(own), self._turn(frames_seen)

    def _turn(self, frames: Tensor) -> Turn:
        return rotation(angles_3d(frames, *self.grid, self.config.head_dim))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        at = 0
        for cache, (turn_q, turn_k) in zip(self.caches, self.turns, strict=True):
            own = slice(at, at + cache.spec.rows)
            at += cache.spec.rows
            if self.rope == "standard":
                cache.write(layer, rotate(k[own], turn_k), v[own])
                keys = cache.keys(layer)
            else:
                cache.write(layer, k[own], v[own])
                keys = rotate(cache.keys(layer), turn_k)
            outs.append(attention(rotate(q[own], turn_q), keys, cache.values(layer)))
        return torch.cat(outs)


class TextMemories:
    """Cross attention of a batch of sessions, each to its own prompt's keys and values (longlive.md §4, end).

    Session by session like `CachedMemory`: to join the keys of a batch would copy 94 MB a released session and pass.
    """

    def __init__(self, entries: Sequence[TextEntry]) -> None:
        self.entries = entries

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [B, T, H, D], a row for each entry."""
        rows = zip(q.split(1), self.entries, strict=True)
        return torch.cat([attention(row, entry.k[layer], entry.v[layer]) for row, entry in rows])
