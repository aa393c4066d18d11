"""A frame's time over the paged cache, and over caches that are concatenated each frame (the usual way), in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from riverrun.bench.geometry_watch import stream_of
from riverrun.kernels.attention import attention
from riverrun.kernels.policies import DiverseKeys, adaptive_budgets, diverse_rows
from riverrun.models.geometry import vggt
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.memory import GeometryStream


class Concatenated:
    """The usual way: a list of tensors, made anew by `cat` and `gather` at every frame. Same choice of rows."""

    def __init__(self, layers: int, total: int, frame: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.scores, self.total, self.frame = torch.zeros(layers), total, frame
        self.budgets: list[int] = []

    def begin(self) -> None:
        self.budgets = adaptive_budgets(self.scores, self.total)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        old_k, old_v = self.keys[layer], self.values[layer]
        if old_k is not None and old_v is not None:
            k, v = torch.cat([old_k, k], dim=1), torch.cat([old_v, v], dim=1)
        if k.shape[1] > self.budgets[layer]:
            kept, likeness = diverse_rows(k, self.frame, self.budgets[layer])
            self.scores[layer] = likeness.mean()
            index = kept.transpose(-1, -2)[..., None].expand(-1, -1, -1, k.shape[-1])
            k, v = k.gather(1, index), v.gather(1, index)
        self.keys[layer], self.values[layer] = k, v
        return attention(q, k, v)


@torch.no_grad()
def speeds(model: InfiniteVGGT, budgets: Sequence[int], frames: int) -> list[dict[str, Any]]:
    """A row for each budget in frames: process milliseconds a frame once the memory is full, medians, in turns."""
    side, config = model.config.image, model.config
    rows = []
    for budget in budgets:
        stream = stream_of(model, "diverse_keys", budget)
        assert isinstance(stream.tokens.policy, DiverseKeys)
        twin = stream_of(model, "diverse_keys", budget)
        usual = Concatenated(config.depth, stream.tokens.policy.total, config.tokens(side, side))
        ours_ms, usual_ms, off = [], [], 0.0
        torch.manual_seed(0)
        for t in range(2 * budget + frames):
            image = torch.rand(1, 3, side, side)
            one, ms = _timed(model, image, stream, None)
            other, usual_took = _timed(model, image, twin, usual)
            off = max(off, float((one - other).abs().max()))
            if t >= 2 * budget:
                ours_ms.append(ms)
                usual_ms.append(usual_took)
        paged, concatenated = statistics.median(ours_ms), statistics.median(usual_ms)
        rows.append({"budget": budget, "rows": sum(stream.tokens.lengths), "ours": paged, "usual": concatenated,
                     "ratio": paged / concatenated, "difference": off})  # fmt: skip
    return rows


def _timed(
    model: InfiniteVGGT, image: Tensor, stream: GeometryStream, memory: Concatenated | None
) -> tuple[Tensor, float]:
    begun = time.process_time()
    if memory is None:
        said = model.model.frame(image, [stream])
    else:
        memory.begin()
        with mock.patch.object(vggt, "token_memory", _given(memory)):
            said = model.model.frame(image, [stream])
        stream.tokens.cursor = 1  # later frames take the second token; its own cache stays empty
    return said.depth, 1000 * (time.process_time() - begun)


def _given(memory: Concatenated) -> Any:
    @contextmanager
    def given(streams: Sequence[GeometryStream], tokens: int) -> Iterator[Concatenated]:
        yield memory

    return given
