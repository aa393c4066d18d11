"""Chunk-by-chunk denoising over caches that every step shares, and the training loss (ca2vdm.md §5, §7).

N sessions in one batch, G guidance rows each (null caption, caption), C latent channels, T frames. Sessions in one
call have the same G; their positions, captions, guidance and cache fills may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from riverrun.kernels.shared import TextEntry
from riverrun.models.base import BadRequest
from riverrun.models.generation.ca2vdm_memory import CachedFrames, FrameCaches, WholeClip
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2
from riverrun.models.generation.iddpm import IDDPM, Loss

Draw = Callable[[int], Tensor]
"""Noise [N, C, T, h, w] of a chunk: draw 0 is where it starts, then one for each step, then the perturbation."""
Method = Literal["ddpm", "ddim"]
Predict = Callable[[Tensor, int], Tensor]
"""(x [N, C, T, h, w], original timestep) -> [N, 2 C, T, h, w], guided."""


@dataclass
class ClipStream:
    """One session's latent side. text: one entry a guidance row, empty for a model without text. guidance: its scale,
    used where there are two rows. past: the newest `keep` frames as they were written [C, T, h, w], None before."""

    caches: FrameCaches
    text: tuple[TextEntry, ...] = field(default=())
    guidance: float = 1.0
    past: Tensor | None = None
    keep: int = 0


class ChunkSampler:
    """Many-step causal generator. Stateless: streams are arguments.

    perturb: the respaced step to which written frames are noised (their timestep stays 0), None: not at all.
    """

    def __init__(
        self, model: CausalSTDiT2, diffusion: IDDPM, perturb: int | None = None, method: Method = "ddpm"
    ) -> None:
        self.model, self.diffusion, self.perturb, self.method = model, diffusion, perturb, method

    @property
    def draws(self) -> int:
        """Draws a chunk takes."""
        return 1 + self.diffusion.steps + (self.perturb is not None)

    def chunk(self, streams: Sequence[ClipStream], draw: Draw) -> Tensor:
        """The next frames of every stream, [N, C, T, h, w], denoised; then written into the caches."""
        z = self.denoise(lambda x, t: self.predict(streams, x, t), draw)
        self.write(streams, z, draw(1 + self.diffusion.steps) if self.perturb is not None else None)
        return z

    def denoise(self, predict: Predict, draw: Draw) -> Tensor:
        """From noise to clean frames, whatever predicts."""
        x = draw(0)
        for number, step in enumerate(reversed(range(self.diffusion.steps))):
            out = predict(x, self.diffusion.timestep_map[step])
            x = self.diffusion.ddim(x, out, step) if self.method == "ddim" else self._drawn(x, out, step, number, draw)
        return x

    def _drawn(self, x: Tensor, out: Tensor, step: int, number: int, draw: Draw) -> Tensor:
        return self.diffusion.ddpm(x, out, step, draw(1 + number) if step else torch.zeros_like(x))

    def predict(self, streams: Sequence[ClipStream], x: Tensor, t: int) -> Tensor:
        """One pass over the frames that follow each stream; they stay out of its past."""
        rows = x.repeat_interleave(_guidance_rows(streams), dim=0)  # (N*G, C, T, h, w)
        return guide(self._call(streams, rows, t, clean=False), [s.guidance for s in streams])

    def write(self, streams: Sequence[ClipStream], z: Tensor, noise: Tensor | None = None) -> None:
        """Appends clean frames z [N, C, T, h, w] to every stream's past. noise: of z's shape, if they are perturbed."""
        if self.perturb is not None:
            if noise is None:
                raise ValueError("written frames are perturbed: noise is needed")
            z = self.diffusion.q_sample(z, self.perturb, noise)
        self._append(streams, z)
        for stream, frames in zip(streams, z, strict=True):
            if stream.keep:
                known = [frames] if stream.past is None else [stream.past, frames]
                stream.past = torch.cat(known, dim=1)[:, -stream.keep :].clone()

    def rewrite(self, stream: ClipStream, chunk: int) -> None:
        """Fills the empty caches of a stream from its past, `chunk` frames at a time as they were written.

        The older frames only warm up: what the oldest of them attended to is gone, so keys come near what they were,
        and equal it while the past reaches back to the stream's beginning and the caption is the same.
        """
        caches, past = stream.caches, stream.past
        if past is None:
            return
        written, frames = caches.frames, past.shape[1]
        # Under RoPE only distances count, and keys are numbered from the oldest there is: as in a stream's beginning.
        caches.frames = caches.temporal.cursor = 0 if self.model.config.position == "rope" else written - frames
        for piece in torch.split(past, [frames % chunk] * bool(frames % chunk) + [chunk] * (frames // chunk), dim=1):
            self._append([stream], piece[None])
        caches.frames = caches.temporal.cursor = written

    def _append(self, streams: Sequence[ClipStream], z: Tensor) -> None:
        self._call(streams, z.repeat_interleave(_guidance_rows(streams), dim=0), 0, clean=True)

    def _call(self, streams: Sequence[ClipStream], rows: Tensor, t: int, clean: bool) -> Tensor:
        times = torch.full((len(rows),), t, device=rows.device)
        memory = CachedFrames(self.model.config, [s.caches for s in streams], rows.shape[2], clean)
        with memory:
            out = self.model(rows, times, memory, captions(streams), write_only=clean)
        return rows if out is None else out

    def recompute(
        self,
        past: Tensor,
        x: Tensor,
        t: int,
        first: int = 0,
        text: Sequence[TextEntry] = (),
        guidance: float = 1.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As `predict`, without caches: clean frames past [N, C, P, h, w] are computed again beside x.

        first: the stream's number of past's first frame. text: captions of the guidance rows, the same for all N.
        mask: see `WholeClip`. The way of models that are not causal, and what the caches are measured against.
        """
        guidance_rows = max(1, len(text))
        clip = torch.cat([past, x], dim=2).repeat_interleave(guidance_rows, dim=0)
        given, frames = past.shape[2], clip.shape[2]
        times = clip_times(torch.full((len(clip),), t, device=x.device), frames, given)
        memory = WholeClip(self.model.config, len(clip), frames, given, first, mask)
        out = self.model(clip, times, memory, [*text] * len(x) or None)
        return guide(out[:, :, given:], [guidance] * len(x))


def training_loss(
    model: CausalSTDiT2,
    x0: Tensor,
    step: Tensor,
    noise: Tensor,
    given: int,
    perturb: tuple[int, Tensor] | None = None,
    text: Sequence[TextEntry] | None = None,
    first: int = 0,
) -> Loss:
    """Of the frames after the first `given`, which are clean, at timestep 0 and carry no loss.

    x0, noise [N, C, T, h, w]; step [N] of 1000. perturb: (step, noise [N, C, T, h, w]) put on the given frames.
    first: table row of the first frame; in training drawn from 0..table_len-1 where the clip is as long as the table.
    """
    diffusion, frames = IDDPM(1000), x0.shape[2]
    is_given = (torch.arange(frames, device=x0.device) < given).view(1, 1, -1, 1, 1)
    start = x0 if perturb is None else diffusion.q_sample(x0, *perturb)
    xt = torch.where(is_given, start, diffusion.q_sample(x0, step, noise))
    memory = WholeClip(model.config, len(x0), frames, given, first)
    out = model(xt, clip_times(step, frames, given), memory, text)
    mask = ~is_given.view(1, -1).expand(len(x0), -1)
    return diffusion.loss(x0, xt, out, noise, step, mask)


def guide(out: Tensor, scales: Sequence[float]) -> Tensor:
    """out [N*G, 2 C, T, h, w] -> [N, ...]: noise of both rows by each session's scale, variance of the second."""
    if len(out) == len(scales):
        return out
    without, caption = out.unflatten(0, (len(scales), 2)).unbind(1)
    scale = torch.tensor(scales, device=out.device, dtype=out.dtype).view(-1, 1, 1, 1, 1)
    free, (eps, value) = without.chunk(2, dim=1)[0], caption.chunk(2, dim=1)
    return torch.cat([free + scale * (eps - free), value], dim=1)


def captions(streams: Sequence[ClipStream]) -> list[TextEntry] | None:
    """Of every row of the batch."""
    return [entry for stream in streams for entry in stream.text] or None


def clip_times(t: Tensor, frames: int, given: int) -> Tensor:
    """Timesteps [N, T] of a clip: t [N] on its noisy frames, 0 on those given."""
    return torch.where(torch.arange(frames, device=t.device) < given, 0, t[:, None])


def _guidance_rows(streams: Sequence[ClipStream]) -> int:
    counts = {max(1, len(stream.text)) for stream in streams}
    if len(counts) != 1:
        raise BadRequest("sessions with and without guidance can't share a step")
    return counts.pop()
