"""A language model as a stage: token ids in, token ids out, by any decoding strategy (jacobi_forcing.md, wedlm.md).

Sessions with different strategies, prompts and lengths share each forward.

State of a session: the cache (keys rotated, `Full`: a text has an end, `capacity`), its ids, the strategy's drafts, the
count of random draws. Released size, bfloat16, 4,096 tokens: Qwen2.5-7B 224 MiB, Qwen3-8B 576 MiB; float32,
SmolLM2-135M 180 MiB. Weights: JacobiForcing Coder and Math 7B, WeDLM 7B and 8B, Qwen, SmolLM2: Apache-2.0; Llama:
Meta's licence.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riverrun.kernels.cache import CachePoisoned, KVCache
from riverrun.kernels.export import Rows
from riverrun.models.base import (
    TICKS_PER_SECOND,
    BadRequest,
    Chunk,
    Control,
    Corrupt,
    Description,
    Kind,
    Port,
    Snapshot,
    StreamModel,
)
from riverrun.models.room import room
from riverrun.models.snapshot import Snapshotting, below, to_tensors
from riverrun.models.state import Rewindable, check_kind, reading
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.decoding import TextStream, cache_bytes, decode, fill, text_cache
from riverrun.models.text.lm_weights import load_lm, read_config, stop_ids
from riverrun.models.text.sampling import SeededChance
from riverrun.models.text.strategies import TextParams, strategy
from riverrun.models.text.umt5 import load_tokenizer
from riverrun.models.weights import default_device, float_dtype

SNAPSHOT_VERSION = 1
CAPACITY = 4096


@dataclass
class TextState(Snapshotting, Rewindable):
    """One session.

    waiting: prompts not begun yet, oldest first. emitted: tokens sent. revision: the last control's. decided: what the
    last step decided, if nothing was taken since; forced: what the next one must. kinds: of snapshots it can give.
    """

    params: TextParams
    seed: int
    stream: TextStream
    waiting: list[list[int]] = field(default_factory=list)
    emitted: int = 0
    revision: int = 0
    decided: dict[str, Any] | None = None
    forced: dict[str, Any] | None = None
    kinds: tuple[str, ...] = ("exact",)

    @property
    def nbytes(self) -> int:
        return self.stream.cache.nbytes + 8 * self.tokens

    @property
    def tokens(self) -> int:
        """Of the text and of the prompts that wait."""
        return len(self.stream.ids) + sum(len(prompt) for prompt in self.waiting)

    def parts(self, kind: str) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """Exact: the cache's slots, ids, the strategy's drafts, draws made, prompts that wait. Recache: without the
        cache; keys follow from the ids.

        Raises Corrupt for a session whose cache a failed step has left half-written.
        """
        check_kind(kind, self.kinds)
        stream = self.stream
        try:
            cache_meta, cache = stream.cache.snapshot() if kind == "exact" else stream.cache.snapshot_head(0)
        except CachePoisoned as error:
            raise Corrupt("the session failed in a step; only an earlier snapshot can be restored") from error
        tensors: dict[str, Tensor | Rows] = {"ids": torch.tensor(stream.ids, dtype=torch.int64)}
        tensors |= {f"cache/{name}": tensor for name, tensor in cache.items()}
        meta = {
            "version": SNAPSHOT_VERSION,
            "cache": cache_meta,
            "work": asdict(stream.work),
            "stream": {"turn": stream.turn, "is_ended": stream.is_ended},
            "drawn": stream.chance.drawn,
            "seed": self.seed,
            "state": {"waiting": list(self.waiting), "emitted": self.emitted, "revision": self.revision},
        }
        return meta, tensors


class LanguageModel(StreamModel):
    """Weights of one model; every session's state is an argument."""

    Params = TextParams

    def __init__(
        self,
        weights: str,
        *,
        config: str | None = None,
        tokenizer: str | None = None,
        capacity: int = CAPACITY,
        rate: int = 25,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        """weights: a folder, file or hub name of a Llama, Qwen2, Qwen3 or Phi-3 checkpoint. config: its config.json,
        default the one beside it. tokenizer: lets sessions be prompted in words. capacity: tokens a session may hold,
        drafts included. rate: tokens a second of media time. device: default CUDA where there is one.
        """
        place = default_device(device)
        stated = read_config(weights, config)
        self.dtype, self.device = float_dtype(dtype), place
        self.model = self._load(weights, stated, self.dtype, place)
        self.stop_ids = stop_ids(weights, stated)
        self.tokenizer = None if tokenizer is None else load_tokenizer(tokenizer)
        longest = self.model.config.max_position_embeddings
        if not 0 < capacity <= longest:
            raise BadRequest(f"capacity must be 1..{longest} tokens (the model's positions), got {capacity}")
        self.capacity, self.ticks = capacity, TICKS_PER_SECOND // rate

    # -- sessions --------------------------------------------------------------------------------------------

    def describe(self, params: TextParams) -> Description:
        reach = strategy(params, self.model.config, self.stop_ids).reach
        return Description(
            inputs=(Port("prompt", Kind.TEXT),),
            outputs=(Port("tokens", Kind.TEXT),),
            chunk_frames=min(reach, params.max_tokens),
            latency_frames=1,
            fps=TICKS_PER_SECOND / self.ticks,
            controls=("prompt",) if self.tokenizer else (),
            retained_bytes=self._session_bytes(reach),
        )

    def open(self, params: TextParams, seed: int) -> TextState:
        decoder = strategy(params, self.model.config, self.stop_ids)
        if decoder.reach >= self.capacity:
            raise BadRequest(f"drafts of {decoder.reach} tokens don't fit a session of {self.capacity}")
        with room(self.model.device):
            cache = self._cache(decoder.reach)
        stream = TextStream(cache, SeededChance(seed), decoder, [], decoder.open(), is_ended=True)
        return TextState(params, seed, stream, kinds=self.snapshot_kinds())

    def push(self, state: TextState, chunk: Chunk) -> None:
        state.decided = None
        if chunk.port != "prompt":
            raise BadRequest(f"the input port is 'prompt', got a chunk on {chunk.port!r}")
        self._take(state, np.asarray(chunk.data))

    def control(self, state: TextState, control: Control) -> None:
        state.decided = None
        if control.kind != "prompt" or self.tokenizer is None:
            takes = "prompts" if self.tokenizer else "no control (it has no tokenizer)"
            raise BadRequest(f"this model takes {takes}, got a control of kind {control.kind!r}")
        if not isinstance(control.value, str) or not control.value.strip():
            raise BadRequest(f"the prompt must be a text that isn't empty, got {control.value!r}")
        self._take(state, np.asarray(self.tokenizer(control.value)["input_ids"]))
        state.revision = control.revision

    def ready(self, state: TextState) -> bool:
        return not state.stream.is_ended or bool(state.waiting)

    def batch_key(self, state: TextState) -> Any:
        return "text"  # a forward takes rows of any session

    def step(self, states: Sequence[TextState]) -> list[list[Chunk]]:
        """One forward for all; none to some dozens of tokens each. A failed step leaves every text as it was."""
        for state in states:
            if state.stream.is_ended and state.waiting:
                self._begin(state.stream, state.waiting.pop(0))
        tokens = self._go_on([state.stream for state in states])
        return [self._emit(state, self._settled(state, len(new))) for state, new in zip(states, tokens, strict=True)]

    def snapshot_kinds(self) -> tuple[str, ...]:
        return ("exact", "recache")

    def decisions(self, state: TextState) -> dict[str, Any] | None:
        """{"ids": the tokens that were added, "drawn": random draws made since the beginning}."""
        return state.decided

    def force(self, state: TextState, decisions: dict[str, Any] | None) -> None:
        state.forced = decisions

    def restore(self, params: TextParams, snapshot: Snapshot) -> TextState:
        return self.refill(self.open(params, seed=0), snapshot)

    def refill(self, state: TextState, snapshot: Snapshot) -> TextState:
        with reading(snapshot, SNAPSHOT_VERSION) as meta:
            self._fill(state, meta, to_tensors(snapshot.tensors, meta["dtypes"], "cpu", ("cache/",)))
        if snapshot.kind == "recache":
            state.stream.cache.cursor = 0
            fill(self.model, [state.stream])
        return state

    def _fill(self, state: TextState, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        stream = state.stream
        stream.cache.restore(meta["cache"], below(tensors, "cache/"))
        try:
            stream.work = type(stream.work)(**copy.deepcopy(meta["work"]))  # two States may be made of one snapshot
        except TypeError as error:
            raise ValueError("its drafts are another strategy's") from error
        state.seed, stream.chance = meta["seed"], SeededChance(meta["seed"])
        stream.ids, stream.chance.drawn = tensors["ids"].tolist(), meta["drawn"]
        for owner, values in ((stream, meta["stream"]), (state, meta["state"])):
            for name, value in values.items():
                setattr(owner, name, copy.copy(value))

    # -- what a model with another memory does otherwise (Locret) --------------------------------------------

    def _load(self, weights: str, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> CausalLM:
        return load_lm(weights, config, dtype=dtype, device=device)

    def _cache(self, reach: int) -> KVCache:
        return text_cache(self.model, self.capacity)

    def _session_bytes(self, reach: int) -> int:
        return cache_bytes(self.model, self.capacity) + 8 * self.capacity

    def _room(self, state: TextState) -> int | None:
        """Tokens the session can still hold beside a draft; None if there is no end to it."""
        return self.capacity - state.stream.decoder.reach - state.tokens

    def _begin(self, stream: TextStream, prompt: list[int]) -> None:
        stream.prompt(prompt)

    def _go_on(self, streams: list[TextStream]) -> list[list[int]]:
        """One step of every stream; the new tokens of each."""
        return decode(self.model, streams)

    def _settled(self, state: TextState, new: int) -> int:
        """How many tokens the step added, once those it was told to add are in the place of those it chose."""
        stream, forced, start = state.stream, state.forced, len(state.stream.ids) - new
        if forced is not None:
            if stream.ids[start:] != forced["ids"]:
                stream.overrule(start, forced["ids"])
                fill(self.model, [stream])
            stream.chance.drawn = forced["drawn"]
        state.decided = {"ids": stream.ids[start:], "drawn": stream.chance.drawn}
        state.forced = None
        return len(stream.ids) - start

    # -- parts -----------------------------------------------------------------------------------------------

    def _take(self, state: TextState, ids: np.ndarray) -> None:
        vocab = self.model.config.vocab_size
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab:
            raise BadRequest(f"a prompt is one or more token ids below {vocab}, got {ids.dtype} {list(ids.shape)}")
        if (room := self._room(state)) is not None and len(ids) > room:
            raise BadRequest(f"the session has room for {max(room, 0)} more tokens of prompt, got {len(ids)}")
        state.waiting.append(ids.tolist())

    def _emit(self, state: TextState, new: int) -> list[Chunk]:
        """The answer ends at its most tokens, and where the next draft would not fit the cache."""
        stream, start = state.stream, len(state.stream.ids) - new
        stream.cut(stream.turn + state.params.max_tokens)
        kept = stream.ids[start:]
        room = self._room(state)
        stream.is_ended |= room is not None and room < 0
        if not kept:
            return []
        at = state.emitted
        state.emitted += len(kept)
        data = np.array(kept, np.int64)
        chunk = Chunk("tokens", data, at * self.ticks, self.ticks, len(kept), at, revision=state.revision)
        return [chunk]
