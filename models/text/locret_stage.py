"""Locret as a stage: prompts of any length and talks without end, in the memory of a budget (locret.md).

As `stage.LanguageModel`, whose strategies all work here; a step reads a piece of a prompt, or writes. Budgets hold for
all sessions. Later turns, and answers longer than the slack, are ours: the official code knows one prompt.

State of a session: as there, but the cache has raw keys and a score a row (`locret.py` gives its bytes), policy
`RetainingHeads`. Token ids older than any row are let go of at each turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from riverrun.kernels.retain import ScoredCache
from riverrun.models.base import BadRequest, Chunk, Corrupt, parse_params
from riverrun.models.text.decoding import TextStream, decode
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.lm_weights import lm_keys
from riverrun.models.text.locret import HEAD, RetainingLM, Retention, begin, read, scored, trim
from riverrun.models.text.stage import LanguageModel, TextState
from riverrun.models.weights import load_frozen
from riverrun.models.weights import read as read_tensors


class LocretModel(LanguageModel):
    """Weights of one model and its retaining heads."""

    model: RetainingLM

    def __init__(
        self,
        weights: str,
        heads: str | None = None,
        *,
        config: str | None = None,
        tokenizer: str | None = None,
        rate: int = 25,
        dtype: str = "float32",
        device: str | None = None,
        **retention: Any,
    ) -> None:
        """heads: the file of the retaining heads, if they aren't among `weights`. retention: the fields of
        `Retention`. The rest as for `LanguageModel`.
        """
        self.heads, self.retention = heads, parse_params(Retention, retention)
        room = self.retention.capacity(reach=1)
        options: dict[str, Any] = {"config": config, "tokenizer": tokenizer, "rate": rate}
        super().__init__(weights, **options, capacity=room, dtype=dtype, device=device)

    def step(self, states: Sequence[TextState]) -> list[list[Chunk]]:
        """For each session a piece of its prompt (no tokens yet) or a forward of its answer.

        A forward that fails leaves every text as it was. Raises Corrupt for a session whose rows a failure scattered.
        """
        if broken := [state for state in states if scored(state.stream).is_poisoned]:
            raise Corrupt(f"{len(broken)} session(s) failed in an earlier step; restore a snapshot")
        return super().step(states)

    def snapshot_kinds(self) -> tuple[str, ...]:
        """Which rows were kept follows from rows that are gone."""
        return ("exact",)

    def _load(self, weights: str, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> RetainingLM:
        return load_retaining(weights, self.heads, config, dtype=dtype, device=device)

    def _cache(self, reach: int) -> ScoredCache:
        capacity, longest = self.retention.capacity(reach), self.model.config.max_position_embeddings
        if capacity > longest:
            raise BadRequest(f"budget, slack and drafts need {capacity} positions, the model has {longest}")
        return self.retention.cache(self.model, reach)

    def _session_bytes(self, reach: int) -> int:
        return self.retention.session_bytes(self.model, reach)

    def _room(self, state: TextState) -> None:
        """There is no end to a text."""

    def _begin(self, stream: TextStream, prompt: list[int]) -> None:
        begin(stream, prompt, self.retention)

    def _go_on(self, streams: list[TextStream]) -> list[list[int]]:
        """Reads first: if it fails nothing was written that would be lost with the step."""
        if reading := [stream for stream in streams if self.retention.next_piece(stream) is not None]:
            read(self.model, reading, self.retention)
        writing = [stream for stream in streams if not any(stream is other for other in reading)]
        for stream in writing:
            trim(stream, self.retention)
        new = decode(self.model, writing) if writing else []
        by_stream = dict(zip(map(id, writing), new, strict=True))
        return [by_stream.get(id(stream), []) for stream in streams]


def load_retaining(
    source: str, heads: str | None, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device | str
) -> RetainingLM:
    """The model and its heads, from two files or one, on `device`; the heads' width is read from their shapes.

    Raises BadRequest if they don't fit the config or there are no heads.
    """
    sizes = LMConfig.read(config)
    tensors = lm_keys(read_tensors(source), sizes)
    if heads is not None:
        found = lm_keys(read_tensors(heads), sizes)
        tensors |= {key: tensor for key, tensor in found.items() if HEAD in key}
    first = tensors.get("model.layers.0.self_attn.fc1.weight")
    if first is None:
        raise BadRequest(f"{heads or source} holds no retaining heads (model.layers.0.self_attn.fc1.weight)")
    with torch.device("meta"):
        model = RetainingLM(sizes, len(first)).eval()
    load_frozen(model, tensors, device, dtype)
    return model
