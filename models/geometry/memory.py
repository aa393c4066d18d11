"""What a frame attends to: its session's caches in a stream, the frames before it in a clip (infinitevggt.md §5, §6).

N frames, one of each session or all of one clip; P tokens a frame, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.kernels.attention import attention
from riverrun.kernels.cache import KVCache, calling
from riverrun.kernels.policies import DiverseKeys


@dataclass
class GeometryStream:
    """One session's memory.

    tokens: keys (rotated) and values of the global blocks; under `DiverseKeys` its scores, float32 [layers] on the
    host, share out the rows. poses: keys and values of the camera head's trunk, one row an iteration of each frame.
    """

    tokens: KVCache
    poses: KVCache
    scores: Tensor

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.poses.nbytes + self.scores.nbytes


class CacheMemory:
    """A frame of each session over that session's own cache: the new rows are written, then all are attended to."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = caches

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for row, cache in enumerate(self.caches):
            own = slice(row, row + 1)
            cache.write(layer, k[own], v[own])
            keys = self.kept(layer, row)
            outs.append(attention(q[own], keys, cache.values(layer)))
        return torch.cat(outs)

    def kept(self, layer: int, row: int) -> Tensor:
        """The keys that the queries of a session see: all there are."""
        return self.caches[row].keys(layer)


class RollingMemory(CacheMemory):
    """Rows are chosen by `DiverseKeys` once a layer's new keys are there; scores wait on the device till the end."""

    def __init__(self, streams: Sequence[GeometryStream]) -> None:
        super().__init__([stream.tokens for stream in streams])
        self.policies = [_policy(stream) for stream in streams]
        self.budgets = [policy.budgets(s.scores) for policy, s in zip(self.policies, streams, strict=True)]
        self.scores: list[dict[int, Tensor]] = [{} for _ in streams]

    def kept(self, layer: int, row: int) -> Tensor:
        """The keys that stay."""
        cache, policy = self.caches[row], self.policies[row]
        keys = cache.keys(layer)
        found = policy.select(keys, self.budgets[row][layer])
        if found is None:
            return keys
        slots, self.scores[row][layer] = found
        cache.keep(layer, slots)
        return cache.keys(layer)


def _policy(stream: GeometryStream) -> DiverseKeys:
    policy = stream.tokens.policy
    if not isinstance(policy, DiverseKeys):
        raise TypeError(f"a stream with scores needs DiverseKeys, got {policy}")
    return policy


@contextmanager
def token_memory(streams: Sequence[GeometryStream], tokens: int) -> Iterator[CacheMemory]:
    """The global blocks' memory for one frame of `tokens` tokens of each stream; committed at the end."""
    is_rolling = isinstance(streams[0].tokens.policy, DiverseKeys)
    caches = [stream.tokens for stream in streams]
    memory = RollingMemory(streams) if is_rolling else CacheMemory(caches)
    with calling(caches, [cache.cursor for cache in caches], tokens):
        yield memory
    if isinstance(memory, RollingMemory):
        for stream, new in zip(streams, memory.scores, strict=True):
            if new:  # one copy to the host a frame
                scores = stream.scores.clone()  # a mark may hold the old ones
                scores[list(new)] = torch.stack(list(new.values())).float().cpu()
                stream.scores = scores


@contextmanager
def pose_memory(streams: Sequence[GeometryStream]) -> Iterator[CacheMemory]:
    """The camera trunk's memory for one iteration."""
    caches = [stream.poses for stream in streams]
    with calling(caches, [cache.cursor for cache in caches], 1):
        yield CacheMemory(caches)


class ClipMemory:
    """N frames of one clip at once: each sees itself and the frames before it, and nothing is kept."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames = [
            attention(q[t : t + 1], k[: t + 1].flatten(0, 1)[None], v[: t + 1].flatten(0, 1)[None])
            for t in range(len(q))
        ]
        return torch.cat(frames)
