"""What a model must learn to guess well under Jacobi decoding: packing and losses (jacobi_forcing.md §8).

A training text is its prompt and T pairs of blocks: a state the decoding of that block went through, and its fixed
point. All are packed into one row, so that one forward gives every block's student and teacher.

P prompt tokens, n tokens a block, T pairs, S = P + 2 T n tokens of the row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.models.text.causal_lm import CausalLM, WholeMemory

AR_WEIGHT = 10.0


def noise_schedule(window: int, low: float = 0.0, high: float = 1.0) -> list[float]:
    """The share of a block that is still wrong in the state to learn from; block i uses entry i mod `window`."""
    return np.linspace(low, high, window).tolist()


def nearest_state(trajectory: Sequence[Sequence[int]], noise: float) -> int:
    """The first state whose noise is nearest. trajectory: a block's states, the last one its fixed point.

    A state's noise is the share of the block from its first wrong token on.
    """
    final = trajectory[-1]
    noises = [(len(final) - _first_difference(state, final)) / len(final) for state in trajectory]
    return min(range(len(noises)), key=lambda i: abs(noises[i] - noise))


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(b))


@dataclass(frozen=True)
class PackedPairs:
    """ids int64 [S]: prompt, then for each pair the state's block and the fixed point's. prompt: P. block: n."""

    ids: Tensor
    prompt: int
    block: int

    @classmethod
    def of(cls, prompt: Sequence[int], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> PackedPairs:
        """pairs: (state, fixed point), n tokens each."""
        row = [*prompt, *(token for pair in pairs for block in pair for token in block)]
        return cls(torch.tensor(row), len(prompt), len(pairs[0][0]))

    def __post_init__(self) -> None:
        if (len(self.ids) - self.prompt) % (2 * self.block) or len(self.ids) == self.prompt:
            raise ValueError(
                f"a prompt of {self.prompt} and pairs of {self.block} tokens twice don't make {len(self.ids)} tokens"
            )

    @property
    def pairs(self) -> int:
        return (len(self.ids) - self.prompt) // (2 * self.block)

    @property
    def blocks(self) -> Tensor:
        """Indices of the row, int64 [T, 2, n]: states under 0, fixed points under 1."""
        return torch.arange(self.prompt, len(self.ids)).view(self.pairs, 2, self.block)

    def padded(self, eos: int, pad: int) -> PackedPairs:
        """With `pad` behind the first `eos` of the last fixed point."""
        ids = self.ids.clone()
        end = (ids[-self.block :] == eos).nonzero()
        if len(end):
            ids[len(ids) - self.block + int(end[0]) + 1 :] = pad
        return PackedPairs(ids, self.prompt, self.block)

    def positions(self) -> Tensor:
        """int64 [S]: both blocks of a pair stand at the same places of the text."""
        rows = self.prompt + torch.arange(self.pairs * self.block).view(self.pairs, 1, self.block)
        return torch.cat([torch.arange(self.prompt), rows.expand(-1, 2, -1).flatten()])

    def mask(self, window: int | None = None) -> Tensor:
        """bool [S, S], True where a token (row) sees another.

        All see the prompt and their own block causally, fixed points the earlier fixed points. States see the earlier
        states; with a window, only those of the same `window` blocks and, before these, fixed points (1: none but
        fixed points; the official single-block variant).
        """
        kind = torch.zeros(len(self.ids), dtype=torch.int64)  # 0 prompt, 1 state, 2 fixed point
        number = torch.zeros_like(kind)  # of the pair, 0.. ; of its window
        kind[self.blocks[:, 0]], kind[self.blocks[:, 1]] = 1, 2
        groups = torch.arange(self.pairs) // (window or self.pairs)
        number[self.blocks.flatten(1)] = groups[:, None]
        q, k = kind[:, None], kind[None]
        alike = (q == k) & ((q != 1) | (number[:, None] == number[None]))
        settled = (q == 1) & (k == 2) & (number[None] < number[:, None])
        return ((k == 0) | alike | settled).tril()


@dataclass(frozen=True)
class JacobiLosses:
    """ar: next-token loss of prompt and fixed points, times 10. consistency: states towards their fixed points."""

    ar: Tensor
    consistency: Tensor

    @property
    def total(self) -> Tensor:
        return self.ar + self.consistency


def packed_logits(model: CausalLM, packed: PackedPairs, window: int | None = None) -> Tensor:
    """float32 [S, V] of the whole row in one forward, with gradients."""
    device = model.device
    memory = WholeMemory(model.config.rotary, packed.positions().to(device), packed.mask(window).to(device))
    return model(packed.ids[None].to(device), memory)[0]


def jacobi_losses(logits: Tensor, packed: PackedPairs, eos: int, pad: int) -> JacobiLosses:
    """logits [S, V] of `packed`, which is padded already."""
    sources, targets = _next_tokens(packed, eos)
    ar = F.cross_entropy(logits[sources], packed.ids[targets].to(logits.device), ignore_index=pad)
    return JacobiLosses(AR_WEIGHT * ar, _consistency(logits, packed, pad))


def _next_tokens(packed: PackedPairs, eos: int) -> tuple[Tensor, Tensor]:
    """Pairs of row indices (from, to) along prompt and fixed points; behind a block's end of text none within it."""
    finals = packed.blocks[:, 1]
    clean = torch.cat([torch.arange(packed.prompt), finals.flatten()])
    ends = (packed.ids[finals] == eos).cumsum(1)  # (T, n)
    behind = F.pad(ends[:, :-1], (1, 0)) > 0  # an end of text lies before this token, in its block
    behind[:, 0] = False
    wanted = torch.cat([torch.ones(packed.prompt, dtype=torch.bool), ~behind.flatten()])[1:]
    return clean[:-1][wanted], clean[1:][wanted]


def _consistency(logits: Tensor, packed: PackedPairs, pad: int) -> Tensor:
    """Soft cross entropy of the states' rows against the fixed points', from the first difference on; a mean over rows,
    divided by the number of pairs."""
    states, finals = packed.ids[packed.blocks].unbind(1)  # (T, n) each
    from_here = (states != finals).cumsum(1) > 0
    kept = from_here & (states != pad)
    if not kept.any():
        return logits.sum() * 0
    teacher = torch.softmax(logits[packed.blocks[:, 1][kept]].detach(), -1)
    student = torch.log_softmax(logits[packed.blocks[:, 0][kept]], -1)
    return -(teacher * student).sum(-1).mean() / packed.pairs
