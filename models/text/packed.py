"""One forward of a language model for several sessions, each with its own cache and its own number of tokens.

All sessions' tokens lie end to end in one row; linear layers run on that row, attention runs session by session on a
view of each one's cache. No padding, no copied cache. Where a cache's keys are raw its slot numbers are the positions,
and all its keys are turned anew at each call: rows may leave its middle (Locret).

N tokens of the call, T of one session, V vocabulary, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.kernels.attention import attention
from riverrun.kernels.cache import KVCache, calling
from riverrun.kernels.rope import rotate_halves
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.rotary import Rotary


@dataclass(frozen=True)
class Rows:
    """What one session feeds: `ids`, appended to `cache`.

    positions: of the tokens in the text, default those that follow on from the cache. mask: bool [T, T], which of the
    call's own tokens (columns) each one sees, default causal; what was cached before is seen by all. logits: how many
    of the last rows need logits, default all.
    """

    cache: KVCache
    ids: Sequence[int]
    positions: Sequence[int] | None = None
    mask: Tensor | None = None
    logits: int | None = None

    @property
    def is_raw(self) -> bool:
        return self.cache.spec.keys == "raw"

    def places(self) -> Sequence[int]:
        """Positions the tokens are turned to: those in the text, or in what the cache has kept of it."""
        start = self.cache.cursor
        places = range(start, start + len(self.ids)) if self.positions is None else self.positions
        gone = start - self.cache.lengths[0] if self.is_raw else 0
        return [place - gone for place in places]

    def key_places(self) -> Tensor:
        """Positions of the keys that the call turns, int64: all of a raw cache's, else the new ones."""
        held = self.cache.lengths[0] if self.is_raw else 0
        return torch.cat([torch.arange(held), torch.tensor(self.places(), dtype=torch.int64)])


class PackedMemory:
    """Attention of one call, whose caches have begun it."""

    def __init__(self, rotary: Rotary, calls: Sequence[Rows], device: torch.device) -> None:
        self.calls = calls
        places = [place for call in calls for place in call.places()]
        self.turn = rotary.turn(torch.tensor(places, device=device))
        self.key_turns = [rotary.turn(call.key_places().to(device)) for call in calls]
        self.sizes = [len(call.ids) for call in calls]
        self.masks = [_over_cache(call, device) for call in calls]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rotate_halves(q, self.turn)
        own = (x.split(self.sizes, dim=1) for x in (q, k, v))
        outs = []
        for call, mask, turn, own_q, own_k, own_v in zip(self.calls, self.masks, self.key_turns, *own, strict=True):
            cache = call.cache
            cache.write(layer, own_k if call.is_raw else rotate_halves(own_k, turn), own_v)
            keys = rotate_halves(cache.keys(layer), turn) if call.is_raw else cache.keys(layer)
            outs.append(attention(own_q, keys, cache.values(layer), causal=mask is None, mask=mask))
        return torch.cat(outs, dim=1)


def _over_cache(call: Rows, device: torch.device) -> Tensor | None:
    """The call's mask [T, cached + T]."""
    return None if call.mask is None else F.pad(call.mask.to(device), (call.cache.lengths[0], 0), value=True)


@torch.no_grad()
def feed(model: CausalLM, calls: Sequence[Rows]) -> list[Tensor]:
    """Runs the calls in one forward and appends their tokens to the caches; nothing is appended if it fails.

    Returns float32 logits [n, V] for the rows each call wants.
    """
    ids = torch.tensor([[token for call in calls for token in call.ids]], device=model.device)  # (1, N)
    memory = PackedMemory(model.config.rotary, calls, model.device)
    caches = [call.cache for call in calls]
    with calling(caches, [cache.cursor for cache in caches], memory.sizes):
        hidden = model.hidden(ids, memory)[0]  # (N, C)
        wanted = [
            part[len(part) - (len(part) if call.logits is None else call.logits) :]
            for call, part in zip(calls, hidden.split(memory.sizes), strict=True)
        ]
        logits = model.logits(torch.cat(wanted))
    return list(logits.split([len(part) for part in wanted]))
