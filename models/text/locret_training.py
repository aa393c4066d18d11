"""How retaining heads are trained: labels from a question and its answer, the losses, one step (locret.md §7).

The rest of the model stays as it is. The official recipe: one sample a step, 3000 steps of LongAlpaca, the learning
rate rising over 2000 of them and falling to zero over the rest.

L layers, B batch, T tokens, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.attention import attention
from riverrun.kernels.cache import CacheSpec, KVCache, calling
from riverrun.kernels.policies import Full
from riverrun.kernels.rope import rotate_halves
from riverrun.models.base import BadRequest
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.locret import HEAD, RetainingLM
from riverrun.models.text.packed import Rows, feed
from riverrun.models.text.rotary import Rotary

SMOOTHNESS = 0.0025
LONGEST = 10_240
"""Tokens of a sample that are learned from, the first ones."""
CLIP = 0.5


class Importance:
    """The memory an answer passes, behind its prompt's raw keys in `cache`.

    peaks: the largest logit that any of its queries gives to each prompt key, float32 [K, prefix] a layer.
    """

    def __init__(self, rotary: Rotary, cache: KVCache, answer: int, turns_keys: bool) -> None:
        """answer: its tokens. turns_keys: see `importance_labels`."""
        self.cache, self.prefix, self.turns_keys = cache, cache.cursor, turns_keys
        self.turn = rotary.turn(torch.arange(self.prefix + answer, device=cache.k.device))
        self.peaks: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, k, v)
        q = rotate_halves(q, (self.turn[0][self.prefix :], self.turn[1][self.prefix :]))
        raw = self.cache.keys(layer)
        keys = rotate_halves(raw, self.turn)
        if not self.turns_keys:
            keys = torch.cat([raw[:, : self.prefix], keys[:, self.prefix :]], dim=1)
        self.peaks.append(self._peak(q[0], keys[0, : self.prefix]))
        return attention(q, keys, self.cache.values(layer), causal=True)

    @staticmethod
    def _peak(q: Tensor, keys: Tensor) -> Tensor:
        """q [T, H, D], keys [P, K, D] -> [K, P]."""
        grouped = q.float().unflatten(1, (keys.shape[1], -1))  # (T, K, H / K, D)
        logits = torch.einsum("tkgd,pkd->kgtp", grouped, keys.float())
        return logits.amax(dim=(1, 2)) * q.shape[-1] ** -0.5


@torch.no_grad()
def importance_labels(model: CausalLM, ids: Tensor, prefix: int, chunk: int = 4096, turns_keys: bool = True) -> Tensor:
    """What the heads learn: for each prompt token the largest attention logit any answer token gives it.

    ids int64 [T], the first `prefix` of them the prompt, the others the answer; read `chunk` at a time. turns_keys:
    False as the official code has it for Phi-3: the answer then meets its prompt's keys not turned.
    Returns float32 [L, 1, K, prefix].
    """
    if not 0 < prefix < len(ids):
        raise BadRequest(f"prompt and answer need a token each, got {prefix} and {len(ids) - prefix}")
    config = model.config
    sizes = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    spec = CacheSpec("labels", *sizes, "raw", page=len(ids))
    cache = KVCache(spec, Full(len(ids)), model.dtype, model.device)
    for start in range(0, prefix, chunk):
        feed(model, [Rows(cache, ids[start : min(start + chunk, prefix)].tolist(), logits=0)])
    answer = ids[None, prefix:].to(model.device)
    memory = Importance(config.rotary, cache, answer.shape[1], turns_keys)
    with calling([cache], [prefix], answer.shape[1]):
        model.hidden(answer, memory)
    return torch.stack(memory.peaks)[:, None]


@dataclass(frozen=True)
class HeadLoss:
    """regression: how far the scores are from the labels. smooth: how much they jump from token to token."""

    regression: Tensor
    smooth: Tensor

    @property
    def total(self) -> Tensor:
        return self.regression + SMOOTHNESS * self.smooth


def head_loss(scores: Tensor, labels: Tensor) -> HeadLoss:
    """scores [L, B, T, K], labels [L, B, K, T]. Layers add up in `smooth`, and average in `regression`."""
    by_head = scores.transpose(2, 3)  # (L, B, K, T)
    jumps = (by_head[..., 1:] - by_head[..., :-1]).square()
    return HeadLoss(F.smooth_l1_loss(by_head, labels), jumps.mean(dim=(1, 2, 3)).sum())


def overlap(scores: Tensor, labels: Tensor, share: float = 0.1) -> float:
    """Which part of each head's best tokens by label are also its best by score; scores and labels as `head_loss`."""
    count = max(1, int(labels.shape[-1] * share))
    best, wanted = (x.topk(count, dim=-1).indices for x in (scores.transpose(2, 3), labels))
    hits = (best[..., None] == wanted[..., None, :]).any(-1)
    return float(hits.float().mean())


def head_parameters(model: RetainingLM) -> list[nn.Parameter]:
    """The heads', made trainable; every other parameter is frozen."""
    model.requires_grad_(False)
    heads = [part for name, part in model.named_parameters() if HEAD in name]
    for part in heads:
        part.requires_grad_()
    return heads


def head_optimizer(model: RetainingLM) -> torch.optim.AdamW:
    """The official one; freezes the rest of the model."""
    return torch.optim.AdamW(head_parameters(model), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.01)


def train_step(
    model: RetainingLM, optimizer: torch.optim.Optimizer, ids: Tensor, labels: Tensor, longest: int = LONGEST
) -> HeadLoss:
    """One step on a prompt, ids int64 [T], with its labels [L, 1, K, T]; both are cut to the `longest` first tokens."""
    optimizer.zero_grad()
    scores = model.scores(ids[None, :longest].to(model.device))
    loss = head_loss(scores.float(), labels[..., :longest].to(model.device))
    loss.total.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_value_(group["params"], CLIP)
    optimizer.step()
    return loss
