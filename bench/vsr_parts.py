"""What each part of the model adds: the stage with one of them switched off.

Without latents: zeros in their place. Without the transformer: the encoder's, as they are. Without low-resolution
frames: the decoder sees black ones, and adds what the latents alone tell it to the bicubic enlargement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from riverrun.bench.vsr_quality import Ours, Source
from riverrun.kernels.histories import Histories
from riverrun.models.super_resolution.decoder import MemoryBlock, enlarged
from riverrun.models.super_resolution.infvsr import InfVSR
from riverrun.models.super_resolution.restorer import Scene
from riverrun.train.quality import psnr

WITHOUT = ("nothing", "latents", "transformer", "cache", "past frame", "low-resolution frames")


@dataclass(frozen=True)
class Part:
    """change: in dB, against all parts. moved: mean |difference| from the full output, in levels of 255."""

    source: str
    without: str
    psnr: float
    change: float
    moved: float


@torch.no_grad()
def parts(source: Source, model: InfVSR, frames: int) -> Iterator[Part]:
    """frames: of the clip's start, several chunks."""
    truth, small = source.truth[:frames], source.small[:frames]
    whole: Tensor | None = None
    base = 0.0
    for name in WITHOUT:
        with _without(name, model):
            made = Ours(model).upscale(small)
        db = psnr(made, truth)
        if whole is None:
            whole, base = made, db
        yield Part(source.name, name, db, db - base, float((made.float() - whole.float()).abs().mean()))


@contextmanager
def _without(name: str, model: InfVSR) -> Iterator[None]:
    assert model.decoder is not None
    decoder, call, block = model.decoder, model.restorer.call, MemoryBlock.forward
    forward = decoder.forward

    def latents(z: Tensor, x: Tensor, histories: Histories | None = None) -> Tensor:
        return forward(torch.zeros_like(z), x, histories)

    def transformer(scenes: list[Scene], contexts: list, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, torch.zeros_like(z)

    def cache(scenes: list[Scene], contexts: list, z: Tensor) -> tuple[Tensor, Tensor]:
        made = call(scenes, contexts, z)
        for scene in scenes:
            scene.cache.trim(0)
            scene.sizes = []
        return made

    def past(self: MemoryBlock, x: Tensor, histories: Histories | None) -> Tensor:
        b, t = x.shape[:2]
        return block(self, x.flatten(0, 1)[:, None], None).view(b, t, *x.shape[2:])

    def frames(z: Tensor, x: Tensor, histories: Histories | None = None) -> Tensor:
        return enlarged(x, decoder.config.scale) + decoder.detail(z, torch.zeros_like(x), histories)

    changes = {
        "latents": (decoder, "forward", latents),
        "transformer": (model.restorer, "call", transformer),
        "cache": (model.restorer, "call", cache),
        "past frame": (MemoryBlock, "forward", past),
        "low-resolution frames": (decoder, "forward", frames),
    }
    with ExitStack() as stack:
        if name in changes:
            stack.enter_context(patch.object(*changes[name]))
        yield
