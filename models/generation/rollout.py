"""Block-by-block denoising over a KV cache: LongLive's sampler and prompt switch (longlive.md §6, §7).

B sessions in one batch, F latent frames a block, C latent channels, S tokens a frame. Several sessions may stand at
different frames, with different prompts and cache fills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.kernels.cache import KVCache
from riverrun.kernels.shared import TextEntry
from riverrun.models.wan.dit import WanModel
from riverrun.models.wan.schedule import FlowSchedule
from riverrun.models.wan.stream import CachedMemory, RopeForm, TextMemories

Draw = Callable[[int], Tensor]
"""Gaussian noise [B, F, C, H, W] of a block: draw 0 is where it starts, draw i re-noises before step i."""


@dataclass
class LatentStream:
    """One session's latent side.

    cache: self attention. text: the prompt in force. recent: the newest clean latents [n, C, H, W], as many as the
    cache can hold (a prompt switch recomputes those), or `keep` if that is more. start: latent frames done.
    switched: `start` when a prompt switch last recomputed the window. keep_sink: a prompt switch leaves the sink's old
    keys (official `global_sink: true`).
    """

    cache: KVCache
    text: TextEntry
    recent: Tensor
    start: int = 0
    switched: int = 0
    keep_sink: bool = True
    keep: int = 0

    @property
    def sink(self) -> int:
        """Slots of a layer that hold the sink, once it is there."""
        return getattr(self.cache.policy, "sink", 0)


@dataclass(frozen=True)
class Prediction:
    """flow and x0, each [B, F, C, H, W]."""

    flow: Tensor
    x0: Tensor


class BlockSampler:
    """A few-step causal generator. Stateless: streams are arguments.

    timesteps: of the denoising steps, as fed to the model. context_noise: timestep of the clean pass and of recache
    (no noise is added for it).
    """

    def __init__(
        self,
        model: WanModel,
        schedule: FlowSchedule,
        timesteps: Tensor,
        rope: RopeForm = "infinite",
        context_noise: float = 0.0,
    ) -> None:
        self.model, self.schedule, self.timesteps = model, schedule, timesteps
        self.rope, self.context_noise = rope, context_noise

    def block(self, streams: Sequence[LatentStream], draw: Draw) -> Tensor:
        """The next F clean latents of each stream, [B, F, C, H, W]; the streams move on by F frames."""
        x = draw(0)
        x0 = x
        for i, t in enumerate(self.timesteps.tolist()):
            if i:
                x = self.schedule.add_noise(x0, draw(i), torch.full(x.shape[:2], t, device=x.device))
            x0 = self.call(streams, x, t).x0
        self.call(streams, x0, self.context_noise)  # clean pass: the cache keeps clean keys, the output is thrown away
        for stream, clean in zip(streams, x0, strict=True):
            stream.start += x0.shape[1]
            stream.recent = torch.cat([stream.recent, clean])[-max(stream.keep, self._window(stream)) :]
        return x0

    def call(
        self,
        streams: Sequence[LatentStream],
        x: Tensor,
        t: float | Tensor,
        *,
        at: int | None = None,
        rewrite_sink: bool = False,
    ) -> Prediction:
        """One pass of the model on x [B, F, C, H, W] at timestep t (one, or [B, F]), writing the caches.

        at: stream frame of x's first frame, default where each stream stands. rewrite_sink: see `Full`, `SinkWindow`.
        """
        frames, (height, width) = x.shape[1], x.shape[3:]
        _, q, r = self.model.config.patch_size
        starts = [stream.start if at is None else at for stream in streams]
        memory = CachedMemory(
            self.model.config,
            [stream.cache for stream in streams],
            starts,
            frames,
            (height // q, width // r),
            self.rope,
            rewrite_sink,
        )
        times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(x.shape[:2])  # (B, F)
        with memory:
            text = TextMemories([stream.text for stream in streams])
            flow = self.model(x.transpose(1, 2), times, memory, text).transpose(1, 2)
        return Prediction(flow, self.schedule.flow_to_x0(flow, x, times))

    def switch(self, stream: LatentStream, text: TextEntry, recache: bool = True) -> None:
        """Puts a new prompt in force at a block boundary.

        recache recomputes the cached frames under it, all at once: they see each other in both directions. While the
        stream is shorter than the window that includes the sink, kept or not (longlive.md §7.4, §15.5).
        """
        if recache and not stream.keep_sink:
            stream.cache.clear()
        stream.text = text
        if recache and len(stream.recent):
            self._rewrite(stream, stream.recent[-self._window(stream) :])
            stream.switched = stream.start

    def recompute(self, stream: LatentStream, block: int) -> None:
        """Fills a cache that holds the sink alone from the clean latents: as the last prompt switch did, if they reach
        back so far, and from there block by block as their clean passes did.

        block: latent frames of one. The older latents only warm up: what the oldest of them attended to is gone, so
        keys come near what they were. They equal it from a switch on, or from the stream's beginning.
        """
        cache, window = stream.cache, self._window(stream)
        tokens = self.model.config.tokens_per_frame(*stream.recent.shape[-2:])
        end, oldest = stream.start, stream.start - len(stream.recent)
        seen = min(stream.switched, window)
        if seen and stream.switched - seen >= oldest:
            stream.start, cache.lengths = stream.switched, [seen * tokens] * len(cache.lengths)
            cache.cursor = stream.start * tokens
            self._rewrite(stream, stream.recent[stream.start - seen - oldest : stream.start - oldest])
        else:
            stream.start = max(-(-oldest // block) * block, max(cache.lengths) // tokens)
            cache.cursor = stream.start * tokens
        while stream.start < end:
            stop = (stream.start // block + 1) * block
            self.call([stream], stream.recent[None, stream.start - oldest : stop - oldest], self.context_noise)
            stream.start = stop

    def _rewrite(self, stream: LatentStream, window: Tensor) -> None:
        """Computes the newest frames [n, C, H, W] of the cache again, all at once."""
        at, rewrite_sink = stream.start - len(window), not stream.keep_sink
        self.call([stream], window[None], self.context_noise, at=at, rewrite_sink=rewrite_sink)

    def _window(self, stream: LatentStream) -> int:
        tokens = self.model.config.tokens_per_frame(*stream.recent.shape[-2:])
        return stream.cache.policy.capacity // tokens
