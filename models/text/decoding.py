"""How a text goes on: what every decoding strategy has in common.

A strategy drafts rows for the next forward and, from their logits, decides which tokens are now part of the text. It
is a plain object over any `CausalLM`; what it remembers of a session is its own small `Work`. Strategies of different
kinds share a forward, since a forward knows only rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor

from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import Full
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.packed import Rows, feed
from riverrun.models.text.sampling import Chance, filtered

PREFILL = 512
"""Prompt tokens a session feeds in one forward: bounds the mask and the activations of long prompts."""


@dataclass
class TextStream:
    """One session's text.

    ids: prompt and verified tokens, in order; only ever appended to. cache: keys and values of ids[: cache.cursor].
    work: what the strategy remembers, a dataclass of plain values. turn: where the newest prompt ended.
    """

    cache: KVCache
    chance: Chance
    decoder: Decoder
    ids: list[int]
    work: Any
    turn: int = 0
    is_ended: bool = False

    @classmethod
    def start(cls, cache: KVCache, chance: Chance, decoder: Decoder, prompt: Sequence[int]) -> TextStream:
        stream = cls(cache, chance, decoder, [], decoder.open())
        stream.prompt(prompt)
        return stream

    def prompt(self, ids: Sequence[int]) -> None:
        """Appends given text; what the strategy had drafted for its place is void."""
        self.ids += ids
        self.turn, self.is_ended, self.work = len(self.ids), False, self.decoder.open()

    def follow(self, decoder: Decoder) -> None:
        """Goes on by another strategy. What the old one had drafted is void."""
        self.decoder, self.work = decoder, decoder.open()
        self.settle()  # the new one may bring more of the text's end itself

    @property
    def generated(self) -> list[int]:
        """Tokens made since the newest prompt."""
        return self.ids[self.turn :]

    def mark(self) -> Mark:
        """Where the text stands, for `back`."""
        return Mark(len(self.ids), self.is_ended, copy.deepcopy(self.work), self.chance.drawn)

    def back(self, mark: Mark) -> None:
        """Forgets all that came after `mark`."""
        del self.ids[mark.length :]
        self.is_ended, self.work, self.chance.drawn = mark.is_ended, mark.work, mark.drawn

    def settle(self) -> None:
        """Takes rows that are no part of the text out of the cache."""
        self.cache.truncate(min(self.cache.cursor, len(self.ids) - self.decoder.lag))

    def overrule(self, start: int, tokens: Sequence[int]) -> None:
        """Puts `tokens` in the place of the text's tokens from `start` on; what the strategy had drafted is void."""
        found = self.ids[start:]
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, tokens, strict=False)))
        self.cache.truncate(min(self.cache.cursor, start + same))
        del self.ids[start:]
        self.work = self.decoder.open()
        self.extend(tokens)
        self.settle()

    def cut(self, length: int) -> None:
        """Ends the text after so many tokens of it, if it is longer."""
        if len(self.ids) >= length:
            del self.ids[length:]
            self.is_ended = True
            self.settle()

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends verified tokens up to the first that stops the text, that one included, and ends there."""
        stops = self.decoder.stop_ids
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), None)
        self.ids += tokens[:end]
        self.is_ended = end is not None


@dataclass(frozen=True)
class Mark:
    """What a failed step puts back: the text's length, whether it had ended, the strategy's work, draws made."""

    length: int
    is_ended: bool
    work: Any
    drawn: int


class Decoder(Protocol):
    """A decoding strategy.

    stop_ids: tokens that end the text. lag: tokens at the end of `ids` whose keys the next draft brings (1 for
    strategies that read the next token off its predecessor's row, 0 for masks). reach: most rows of one draft.
    """

    stop_ids: frozenset[int]
    lag: int

    @property
    def reach(self) -> int: ...

    def open(self) -> Any:
        """Fresh work; a dataclass of plain values, `type(work)(**asdict(work))` is its copy."""

    def propose(self, stream: TextStream) -> Rows:
        """Rows for the next forward; the cache holds all of `ids` but the last `lag`."""

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        """Extends `ids` by what the logits [n, V] verified. The rows behind them leave the cache by themselves."""


def decode(model: CausalLM, streams: Sequence[TextStream]) -> list[list[int]]:
    """One forward for all streams (and more where prompts wait); returns each one's new tokens, perhaps none.

    If it fails every stream is as before, but for what `fill` brought into its cache.
    """
    fill(model, streams)
    marks = [stream.mark() for stream in streams]
    try:
        logits = feed(model, [stream.decoder.propose(stream) for stream in streams])
        for stream, rows in zip(streams, logits, strict=True):
            stream.decoder.accept(stream, rows)
    except BaseException:
        for stream, mark in zip(streams, marks, strict=True):
            stream.back(mark)
        raise
    finally:
        for stream in streams:
            stream.settle()
    return [stream.ids[mark.length :] for stream, mark in zip(streams, marks, strict=True)]


def fill(model: CausalLM, streams: Sequence[TextStream]) -> None:
    """Brings every cache up to its text, but for the last `lag` tokens, `PREFILL` tokens at a time."""
    while calls := [rows for stream in streams if (rows := _unfed(stream)) is not None]:
        feed(model, calls)


def _unfed(stream: TextStream) -> Rows | None:
    stop = len(stream.ids) - stream.decoder.lag
    start = stream.cache.cursor
    return Rows(stream.cache, stream.ids[start : min(stop, start + PREFILL)], logits=0) if start < stop else None


def text_cache(model: CausalLM, capacity: int) -> KVCache:
    """An empty cache for texts of up to `capacity` tokens, drafts included; keys are rotated."""
    return KVCache(_spec(model, capacity), Full(capacity), model.dtype, model.device)


def cache_bytes(model: CausalLM, capacity: int) -> int:
    """Of such a cache."""
    page = _spec(model, capacity).page
    return model.config.kv_bytes(-(-capacity // page) * page, model.dtype)


def _spec(model: CausalLM, capacity: int) -> CacheSpec:
    sizes = model.config
    shape = (sizes.num_hidden_layers, sizes.num_key_value_heads, sizes.head_dim)
    return CacheSpec("text", *shape, "rotated", page=min(capacity, 256))


@dataclass
class NoWork:
    """Nothing to remember."""


class Autoregressive:
    """One token a forward: the most probable, or one drawn at `temperature`, then filtered."""

    lag = 1
    reach = 1

    def __init__(
        self, stop_ids: frozenset[int] = frozenset(), temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0
    ) -> None:
        self.stop_ids, self.temperature, self.top_k, self.top_p = stop_ids, temperature, top_k, top_p

    def open(self) -> NoWork:
        return NoWork()

    def propose(self, stream: TextStream) -> Rows:
        return Rows(stream.cache, stream.ids[-1:])

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        if self.temperature == 0:
            return stream.extend([int(logits[0].argmax())])
        share = torch.softmax(filtered(logits / self.temperature, self.top_k, self.top_p), -1)[0]
        stream.extend([stream.chance.sample(share)])
