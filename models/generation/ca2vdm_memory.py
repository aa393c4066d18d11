"""What a call of CausalSTDiT2 sees of other frames: the caches of its sessions, or the clip itself (ca2vdm.md §3, §4).

B batch rows (sessions x guidance rows G), T frames of a call, S places of a frame, H heads, D head dim, P prefix
frames. Cached: linear layers run on the whole batch, attention session by session on a view of its own cache, so that
sessions with different fills and positions share a call without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.kernels.attention import attention, causal_mask
from riverrun.kernels.cache import CacheCall, CacheSpec, KVCache
from riverrun.kernels.policies import Full, PlannedPolicy
from riverrun.kernels.rope import angles, rotate, rotation
from riverrun.models.base import BadRequest
from riverrun.models.generation.ca2vdm_net import STDiTConfig


@dataclass
class FrameCaches:
    """The caches of one session, shared by all steps of a chunk.

    temporal: raw keys, a slot is a frame, rows are guidance rows x places. prefix: keys of the last P frames written,
    P*S slots; None where the model has no prefix attention. frames: clean frames written since the stream began.
    """

    temporal: KVCache
    prefix: KVCache | None
    frames: int = 0

    @classmethod
    def empty(
        cls,
        config: STDiTConfig,
        policy: PlannedPolicy,
        guidance_rows: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> FrameCaches:
        """Caches before the first frame. policy: in frames, of the temporal one."""
        shape = (config.depth, config.num_heads, config.head_dim)
        temporal = CacheSpec("temporal", *shape, keys="raw", page=1, rows=guidance_rows * config.places)
        prefix = None
        if config.prefix_frames:
            spec = CacheSpec("prefix", *shape, keys="raw", page=config.places, rows=guidance_rows)
            prefix = KVCache(spec, Full(config.prefix_frames * config.places), dtype, device)
        return cls(KVCache(temporal, policy, dtype, device), prefix)

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.all())

    def all(self) -> list[KVCache]:
        """Those there are."""
        return [self.temporal] if self.prefix is None else [self.temporal, self.prefix]


class CachedFrames(CacheCall):
    """One call over the caches of several sessions.

    clean: the call writes clean frames, which become part of the past; else it denoises the frames that follow, whose
    keys stand in the cache only until the next call overwrites them.
    """

    def __init__(self, config: STDiTConfig, sessions: Sequence[FrameCaches], frames: int, clean: bool) -> None:
        if config.causality == "full":
            raise BadRequest("a model with attention in both directions has no cache")
        self.config, self.sessions, self.frames, self.is_clean = config, sessions, frames, clean
        self.is_causal = clean or config.causality == "causal"
        guidance_rows = [s.temporal.spec.rows // config.places for s in sessions]
        self.spans = _spans(guidance_rows)  # rows of the batch, by session
        rows = [absolute_rows(config, s.frames, frames) for s in sessions]
        self.rows = torch.stack([r for r, n in zip(rows, guidance_rows, strict=True) for _ in range(n)])
        self.clean = torch.full_like(self.rows, clean, dtype=torch.bool)

    def caches_used(self) -> list[KVCache]:
        return [cache for session in self.sessions for cache in session.all()]

    def begin(self) -> None:
        for session in self.sessions:
            if not self.is_clean and not session.frames:
                raise BadRequest("a stream starts with clean frames; none have been written yet")
            session.temporal.begin(session.frames, self.frames)
            if self.is_clean and session.prefix is not None:
                session.prefix.begin(0, self.config.prefix_frames * self.config.places)

    def commit(self) -> None:
        for session in self.sessions:
            session.temporal.commit()
            if self.is_clean:
                session.frames += self.frames
                if session.prefix is not None:
                    session.prefix.commit()

    def temporal(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for session, span in zip(self.sessions, self.spans, strict=True):
            own = slice(span.start * self.config.places, span.stop * self.config.places)
            session.temporal.write(layer, k[own], v[own])
            keys, queries = session.temporal.keys(layer), q[own]
            if self.config.position == "rope":
                queries, keys = self._turned(session, queries, keys)
            outs.append(attention(queries, keys, session.temporal.values(layer), causal=self.is_causal))
        return torch.cat(outs)

    def _turned(self, session: FrameCaches, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys stand at 0.., queries at the end of the stream so far, or of the table once it is longer (§4)."""
        end = min(session.frames + self.frames, self.config.table_len)
        return _turn(queries, end - self.frames), _turn(keys, 0)

    def prefix(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = [
            self._written(layer, cache, *(x[span.start * self.frames : span.stop * self.frames] for x in (q, k, v)))
            if self.is_clean
            else self._read(layer, cache, q[span.start * self.frames : span.stop * self.frames])
            for cache, span in zip((s.prefix for s in self.sessions), self.spans, strict=True)
            if cache is not None
        ]
        return torch.cat(outs)

    def _written(self, layer: int, cache: KVCache, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A clean frame sees itself alone; the last P are kept, each repeated where the chunk has fewer."""
        wanted = self.config.prefix_frames
        kept = []
        for x in (k, v):
            frames = x.unflatten(0, (-1, self.frames))  # (G, T, S, H, D)
            if self.frames < wanted:
                frames = frames.repeat_interleave(wanted // self.frames + 1, dim=1)[:, :wanted]
            kept.append(frames[:, -wanted:].flatten(1, 2))
        cache.write(layer, *kept)
        return attention(q, k, v)

    def _read(self, layer: int, cache: KVCache, q: Tensor) -> Tensor:
        queries = q.unflatten(0, (-1, self.frames)).flatten(1, 2)  # (G, T*S, H, D): all frames have one context
        return attention(queries, cache.slots("k", layer), cache.slots("v", layer)).reshape(q.shape)


class WholeClip:
    """A call without caches: `given` clean frames, then noisy ones, all in one clip.

    first: the stream's number of the clip's first frame. mask: bool [T, T], what each frame sees over time; default
    what the model's causality says. Rows of the batch are alike.
    """

    def __init__(
        self,
        config: STDiTConfig,
        batch: int,
        frames: int,
        given: int,
        first: int = 0,
        mask: Tensor | None = None,
    ) -> None:
        self.config, self.frames, self.given = config, frames, given
        self.rows = absolute_rows(config, first, frames).expand(batch, -1)
        self.clean = (torch.arange(frames) < given).expand(batch, -1)
        self.mask = clip_mask(config, frames, given) if mask is None else mask

    def temporal(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.config.position == "rope":
            q, k = _turn(q, 0), _turn(k, 0)
        return attention(q, k, v, mask=None if self.mask is None else self.mask.to(q.device))

    def prefix(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (-1, self.frames)) for x in (q, k, v))  # (B, T, S, H, D)
        clean = (x[:, : self.given].flatten(0, 1) for x in (q, k, v))
        seen = torch.arange(self.given - self.config.prefix_frames, self.given).clamp(min=0)
        context = (x[:, seen].flatten(1, 2) for x in (k, v))  # (B, P*S, H, D)
        noisy = q[:, self.given :]
        outs = [attention(*clean).unflatten(0, (len(q), -1))]
        if noisy.shape[1]:
            outs.append(attention(noisy.flatten(1, 2), *context).view_as(noisy))
        return torch.cat(outs, dim=1).flatten(0, 1)


def clip_mask(config: STDiTConfig, frames: int, given: int) -> Tensor | None:
    """bool [T, T]: what each frame of a clip sees over time, its first `given` frames being clean; None: everything."""
    if config.causality == "full":
        return None
    mask = causal_mask(frames, frames)
    if config.causality == "partial":
        mask[given:] = True
    return mask


def band_mask(starts: Sequence[int], past: int) -> Tensor:
    """bool [T, T]: what a stream's caches amount to in one pass over all its frames (ca2vdm.md §5).

    starts: for each frame the first frame of the chunk it came in. past: frames of the queue.
    """
    frame = torch.arange(len(starts))
    oldest = (torch.tensor(starts) - past).clamp(min=0)
    return (frame[None] <= frame[:, None]) & (frame[None] >= oldest[:, None])


def absolute_rows(config: STDiTConfig, first: int, frames: int) -> Tensor:
    """Rows [T] of the position table for frames [first, first + T). Raises BadRequest past an absolute table's end."""
    rows = torch.arange(first, first + frames)
    if config.position == "absolute" and first + frames > config.table_len:
        raise BadRequest(f"this model's streams end after {config.table_len} frames, frame {first + frames} was asked")
    return rows % config.table_len


def _turn(x: Tensor, first: int) -> Tensor:
    """RoPE over time: x [N, T, H, D] at positions first.."""
    return rotate(x, rotation(angles(torch.arange(first, first + x.shape[1], device=x.device), x.shape[-1])))


def _spans(counts: Sequence[int]) -> list[slice]:
    stops = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
