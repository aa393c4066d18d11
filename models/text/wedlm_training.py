"""What a model must learn to fill masks under causal attention: packing and losses (wedlm.md §8).

Each sample is fed twice: clean, and as a stream whose blocks hold their unmasked tokens first and then masks, every
row at its own position. The clean stream gives the blocks behind it their context and keeps the model able to write
plainly.

L tokens of a sample, N of all samples, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.models.text.causal_lm import CausalLM, WholeMemory

IGNORED = -100
"""A label that asks for nothing (prompts)."""
_LEAST = 1e-8


@dataclass(frozen=True)
class MaskedSample:
    """One sample, all [L]. ids. labels: the token itself, or IGNORED. masked: bool. ratio: the share of its block's
    tokens that was to be masked."""

    ids: Tensor
    labels: Tensor
    masked: Tensor
    ratio: Tensor

    @classmethod
    def draw(cls, ids: Tensor, labels: Tensor, block: int, generator: torch.Generator | None = None) -> MaskedSample:
        """Masks round(n g) of the n tokens of each block that have a label, g uniform in 0..1."""
        masked, ratio = torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids))
        for start in range(0, len(ids), block):
            share = max(float(torch.rand((), generator=generator)), _LEAST)
            places = start + (labels[start : start + block] != IGNORED).nonzero().flatten()
            order = torch.randperm(len(places), generator=generator)
            masked[places[order[: round(len(places) * share)]]] = True
            ratio[start : start + block] = share
        return cls(ids, labels, masked, ratio)

    def order(self, block: int) -> Tensor:
        """The places of the masked stream, block by block: unmasked ones, then masks, each ascending."""
        places = torch.arange(len(self.ids))
        return places[torch.argsort(2 * (places // block) + self.masked, stable=True)]


@dataclass(frozen=True)
class MaskedBatch:
    """Samples end to end, each clean and then masked; all [2N].

    ids: as fed. targets: the tokens without masks. positions: in their sample. masked: bool. ratio: as drawn, 0 where
    nothing is masked. labels: of the clean stream, IGNORED elsewhere. sample, block: numbers. clean: bool, the stream.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    masked: Tensor
    ratio: Tensor
    labels: Tensor
    sample: Tensor
    block: Tensor
    clean: Tensor

    @classmethod
    def of(cls, samples: Sequence[MaskedSample], block: int, mask_id: int) -> MaskedBatch:
        columns = [_columns(number, sample, block, mask_id) for number, sample in enumerate(samples)]
        return cls(*(torch.cat(parts) for parts in zip(*columns, strict=True)))

    def mask(self) -> Tensor:
        """bool [2N, 2N], True where a token (row) sees another.

        Within a block of a stream: causal in the order fed. Beyond it: the clean tokens of earlier blocks.
        """
        together = self.sample[:, None] == self.sample[None]
        here = (self.clean[:, None] == self.clean[None]) & (self.block[:, None] == self.block[None])
        before = self.clean[None] & (self.block[None] < self.block[:, None])
        causal = torch.ones(len(self.ids), len(self.ids), dtype=torch.bool).tril()
        return together & ((here & causal) | before)


def _columns(number: int, sample: MaskedSample, block: int, mask_id: int) -> tuple[Tensor, ...]:
    places, order = torch.arange(len(sample.ids)), sample.order(block)
    masked = sample.masked[order]
    positions, targets = torch.cat([places, order]), torch.cat([sample.ids, sample.ids[order]])
    nothing = torch.zeros_like(sample.masked)
    both = torch.cat([nothing, masked])
    ratio = torch.cat([sample.ratio, sample.ratio[order]]) * both
    labels = torch.cat([sample.labels, torch.full_like(sample.labels, IGNORED)])
    fed = targets.masked_fill(both, mask_id)
    clean = torch.cat([~nothing, nothing])
    return fed, targets, positions, both, ratio, labels, torch.full_like(positions, number), positions // block, clean


@dataclass(frozen=True)
class WeDLMLosses:
    """masked: of the masks against their own tokens, weighted by 1 / ratio. plain: the same, unweighted. ar: next token
    of the clean streams. ar_weight: its weight in `total`."""

    masked: Tensor
    plain: Tensor
    ar: Tensor
    ar_weight: float

    @property
    def total(self) -> Tensor:
        return (self.masked + self.ar_weight * self.ar) / (1 + self.ar_weight)


def batch_logits(model: CausalLM, batch: MaskedBatch) -> Tensor:
    """float32 [2N, V] of the whole batch in one forward, with gradients."""
    memory = WholeMemory(model.config.rotary, batch.positions.to(model.device), batch.mask().to(model.device))
    return model(batch.ids[None].to(model.device), memory)[0]


def wedlm_losses(logits: Tensor, batch: MaskedBatch, ar_weight: float = 1.0) -> WeDLMLosses:
    """logits [2N, V] of `batch`.

    The clean streams are shifted as one text, so a sample's last row predicts the first token of the next unless its
    label is IGNORED: the official rule.
    """
    device = logits.device
    each = F.cross_entropy(logits[batch.masked], batch.targets[batch.masked].to(device), reduction="none")
    weights = (1 / (batch.ratio[batch.masked] + _LEAST)).to(device)
    labels = batch.labels[batch.clean][1:].to(device)
    ar = F.cross_entropy(logits[batch.clean][:-1], labels, ignore_index=IGNORED)
    return WeDLMLosses((each * weights).sum() / weights.sum(), each.mean(), ar, ar_weight)
