"""Where a text's randomness comes from, and how logits become a distribution.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from riverrun.kernels.noise import generator


class Chance(Protocol):
    """A session's draws, on the host. drawn: how many there were; setting it back repeats them."""

    drawn: int

    def pick(self, pool: Sequence[int], count: int) -> list[int]:
        """So many members of the pool, uniformly, with replacement."""

    def uniform(self) -> float:
        """In [0, 1)."""

    def sample(self, probabilities: Tensor) -> int:
        """An index of probabilities [V], drawn by them."""


@dataclass
class SeededChance:
    """Draw n is a function of (seed, n) alone. drawn: draws so far; the only thing that changes."""

    seed: int
    drawn: int = 0

    def pick(self, pool: Sequence[int], count: int) -> list[int]:
        if not count:
            return []
        self.drawn += 1
        return [pool[i] for i in generator(self.seed, self.drawn, 0).integers(len(pool), size=count)]

    def uniform(self) -> float:
        self.drawn += 1
        return float(generator(self.seed, self.drawn, 0).random())

    def sample(self, probabilities: Tensor) -> int:
        cumulative = probabilities.double().cumsum(-1).cpu()
        place = torch.searchsorted(cumulative, self.uniform() * cumulative[-1], right=True)
        return min(int(place), len(cumulative) - 1)


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits), in nats; logits [..., V] -> [...]."""
    logs = torch.log_softmax(logits, -1)
    return -(logs.exp() * logs).nan_to_num().sum(-1)


def filtered(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """logits [n, V] with -inf where a row's token is out: first by rank, then by probability.

    top_k: keep the k best and what ties with the last of them; 0 keeps all. top_p: drop tokens before which, in
    falling order, more than p of the probability lies; the best always stays.
    """
    if 0 < top_k < logits.shape[-1]:
        last = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        shares = torch.softmax(ordered, -1)
        out = shares.cumsum(-1) - shares > top_p
        out[..., 0] = False
        logits = logits.masked_fill(out.scatter(-1, places, out), -torch.inf)
    return logits
