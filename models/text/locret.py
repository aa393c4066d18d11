"""Locret: a long text is read under a fixed budget of rows, chosen by trained heads (locret.md).

Paper: arXiv 2410.01805. A small net in each attention layer says, from a token's own q, k and v, how much any later
token will attend to it. A prompt is read in chunks, and after each one every key head keeps its best rows. What stays
has new positions, its slot numbers: however long the text, none lies beyond what the model was trained for.

Everything here works through the cache, so any decoding strategy goes on from it (`decoding.decode`).
State: a `ScoredCache` with raw keys, (2 D + 1) values a slot, layer and key head. Llama 3.1 8B, bfloat16, budget 16384:
2.0 GiB, and 0.5 GiB for the room of a chunk or of what is written. Weights: the base model's own; the released heads
(hyx21/Locret-llama-3.1-8B-instruct, hyx21/Locret-phi-3-mini-128K) state no licence.

B batch, T tokens, V vocabulary, C model dim, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.cache import CacheSpec
from riverrun.kernels.retain import RetainingHeads, ScoredCache
from riverrun.models.base import BadRequest
from riverrun.models.text.causal_lm import CausalLM, SelfMemory, WholeMemory
from riverrun.models.text.decoding import TextStream
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.packed import PackedMemory, Rows, feed

WIDTH = 1024
"""Of the released heads."""
HEAD = ".self_attn.fc"
"""What the names of the heads' weights contain, and no other's."""
PAGE = 256


class RetainingLM(CausalLM):
    """A language model whose attention layers each have a retaining head, `fc1` and `fc2` (the official keys)."""

    def __init__(self, config: LMConfig, width: int = WIDTH) -> None:
        super().__init__(config)
        heads = config.num_key_value_heads
        features = (config.num_attention_heads + 2 * heads) * config.head_dim
        for layer in range(config.num_hidden_layers):
            attention = self.model.get_submodule(f"layers.{layer}.self_attn")
            attention.add_module("fc1", nn.Linear(features, width, bias=False))
            attention.add_module("fc2", nn.Linear(width, heads, bias=False))

    def importance(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, D], k and v [B, T, K, D], before RoPE -> a score a token and key head, [B, T, K]."""
        fc1, fc2 = (self.model.get_submodule(f"layers.{layer}.self_attn.{name}") for name in ("fc1", "fc2"))
        features = torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1)  # (B, T, (H + 2 K) D)
        return fc2(F.silu(fc1(features)))

    def hidden(self, ids: Tensor, memory: SelfMemory) -> Tensor:
        return super().hidden(ids, Scoring(self, memory) if isinstance(memory, PackedMemory) else memory)

    def scores(self, ids: Tensor) -> Tensor:
        """Of whole texts, ids int64 [B, T] -> [layers, B, T, K]; for training the heads."""
        places = torch.arange(ids.shape[1], device=ids.device)
        memory = Recording(self, WholeMemory(self.config.rotary, places))
        self.model(ids, memory)
        return torch.stack(memory.scores)


class Scoring:
    """A packed memory, whose scored caches are given the scores of their new rows."""

    def __init__(self, model: RetainingLM, memory: PackedMemory) -> None:
        self.model, self.memory = model, memory

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = self.memory.attend(layer, q, k, v)
        scores = self.model.importance(layer, q, k, v)[0].split(self.memory.sizes)
        for call, own in zip(self.memory.calls, scores, strict=True):
            if isinstance(call.cache, ScoredCache):
                call.cache.score(layer, own)
        return out


class Recording:
    """Any memory; remembers the scores of the tokens that pass, [B, T, K] a layer."""

    def __init__(self, model: RetainingLM, memory: SelfMemory) -> None:
        self.model, self.memory = model, memory
        self.scores: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.scores.append(self.model.importance(layer, q, k, v))
        return self.memory.attend(layer, q, k, v)


@dataclass(frozen=True)
class Piece:
    """What of a prompt is fed next: `count` tokens. prunes: rows are chosen after it. is_final: no text follows that
    will be chosen from, so that no row is protected any more."""

    count: int
    prunes: bool
    is_final: bool = False


@dataclass(frozen=True)
class Retention:
    """How much of a text stays, in tokens; the defaults are the official package's.

    budget: rows each head keeps. chunk: tokens read between two choices. stabilisers: newest rows that stay until the
    next chunk is read. local: the prompt's last tokens, never chosen from while they are answered. slack: rows beyond
    the budget, local ones and written ones, before rows are chosen again (ours: officially never while decoding).
    """

    budget: int = 6000
    chunk: int = 3072
    stabilisers: int = 2500
    local: int = 100
    slack: int = 4096

    def __post_init__(self) -> None:
        for name in ("budget", "chunk", "local"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name} must be at least one token, got {getattr(self, name)}")
        if not 0 <= self.stabilisers <= self.budget:
            raise BadRequest(f"stabilisers must lie in 0..{self.budget} (the budget), got {self.stabilisers}")
        if self.slack < self.local:
            raise BadRequest(f"slack must hold the {self.local} local tokens, got {self.slack}")

    def capacity(self, reach: int) -> int:
        """Slots a layer needs, for drafts of up to `reach` rows."""
        return self.budget + max(self.chunk, self.slack + reach)

    def cache(self, model: CausalLM, reach: int) -> ScoredCache:
        """An empty cache for one session of `model`."""
        config, capacity = model.config, self.capacity(reach)
        sizes = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        spec = CacheSpec("text", *sizes, "raw", page=min(capacity, PAGE))
        return ScoredCache(spec, RetainingHeads(capacity, self.budget, self.stabilisers), model.dtype, model.device)

    def session_bytes(self, model: CausalLM, reach: int) -> int:
        """Of such a cache, and of the ids that go with it."""
        config, capacity = model.config, self.capacity(reach)
        page = min(capacity, PAGE)
        scores = capacity * config.num_hidden_layers * config.num_key_value_heads * model.dtype.itemsize
        return config.kv_bytes(-(-capacity // page) * page, model.dtype) + scores + 8 * capacity

    def next_piece(self, stream: TextStream) -> Piece | None:
        """None once only the tokens that the next draft brings are left."""
        start, end = stream.cache.cursor, len(stream.ids)
        last = end - self.local
        if start < last:
            return Piece(min(self.chunk, last - start), prunes=True, is_final=start + self.chunk >= last)
        rest = end - stream.decoder.lag - start
        return Piece(rest, prunes=False) if rest > 0 else None


def begin(stream: TextStream, prompt: Sequence[int], retention: Retention) -> None:
    """Appends a prompt; of what was said before, answers included, the budget's best rows stay (ours).

    Its newest rows are protected. Tokens so old that no row can be theirs are let go of, so that memory is bounded.
    """
    cache = scored(stream)
    if cache.lengths[0] > retention.budget:
        cache.prune(is_final=False)
    past = max(0, cache.cursor - cache.retaining.capacity)
    del stream.ids[:past]
    cache.forget(past)
    stream.prompt(prompt)


def trim(stream: TextStream, retention: Retention) -> None:
    """While an answer is written: chooses again once budget and slack are full; the newest rows are protected (ours).

    Until then an answer is the official one, and the same by any decoding strategy.
    """
    cache = scored(stream)
    if cache.lengths[0] > retention.budget + retention.slack:
        cache.prune(is_final=False)


def read(model: RetainingLM, streams: Sequence[TextStream], retention: Retention) -> None:
    """Reads the next piece of every stream's prompt in one forward, and chooses what stays.

    If the forward fails, every stream is as before. Raises ValueError for a stream that has nothing left to read.
    """
    pieces = [retention.next_piece(stream) for stream in streams]
    todo = [(stream, piece) for stream, piece in zip(streams, pieces, strict=True) if piece is not None]
    if len(todo) < len(streams):
        raise ValueError(f"{len(streams) - len(todo)} of {len(streams)} prompts are read already")
    feed(model, [Rows(s.cache, s.ids[s.cache.cursor : s.cache.cursor + piece.count], logits=0) for s, piece in todo])
    for stream, piece in todo:
        if piece.prunes:
            scored(stream).prune(piece.is_final)


def read_all(model: RetainingLM, streams: Sequence[TextStream], retention: Retention) -> None:
    """Reads every prompt to its end; `decoding.decode` goes on from there."""
    while unread := [stream for stream in streams if retention.next_piece(stream) is not None]:
        read(model, unread, retention)


def scored(stream: TextStream) -> ScoredCache:
    """The stream's cache, which must be one of scores."""
    if not isinstance(stream.cache, ScoredCache):
        raise TypeError(f"reading under a budget takes a cache of scores, got a {type(stream.cache).__name__}")
    return stream.cache


def infer_heads(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """(sizes, names and shapes) of the retaining heads of one model, as their shapes say; names without `model.`."""
    of_layers = [re.fullmatch(r"layers\.(\d+)\.self_attn\.fc[12]\.weight", name) for name in tensors]
    layers = 1 + max((int(found[1]) for found in of_layers if found), default=0)
    features = {tensor.shape[1] for name, tensor in tensors.items() if name.endswith("fc1.weight")}
    outs = {tuple(tensor.shape) for name, tensor in tensors.items() if name.endswith("fc2.weight")}
    heads, width = min(outs, default=(0, WIDTH))
    shapes = {"fc1": (width, min(features, default=0)), "fc2": (heads, width)}
    names = {f"layers.{i}.self_attn.{part}.weight": shape for i in range(layers) for part, shape in shapes.items()}
    return {"layers": layers, "heads": heads, "width": width, "features": shapes["fc1"][1]}, names
