"""What the cache saves: the same transformer with it, without it, and over the whole clip at once."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from riverrun.bench.cache import FUSED
from riverrun.kernels.shared import TextEntry
from riverrun.models.super_resolution.infvsr import InfVSR
from riverrun.models.super_resolution.restorer import Restorer
from riverrun.models.wan.dit import ClipMemory
from riverrun.models.wan.stream import TextMemories

CHUNK, FRAMES_A_LATENT = 3, 4
SIDE = 32
"""Latents along each side: pictures of 256 x 256."""


@dataclass(frozen=True)
class Speed:
    """One way over a clip of so many frames. seconds: CPU time on one thread; flops: 2 x multiply-accumulates."""

    frames: int
    way: str
    seconds: float
    flops: int


@torch.no_grad()
def speeds(model: InfVSR, lengths: tuple[int, ...]) -> list[Speed]:
    """lengths: of clips, in chunks of 12 frames. The transformer alone: encoder and decoder are the same for all."""
    config = model.model.config
    context = torch.zeros(1, config.text_len, config.text_dim)
    text = TextEntry(*model.model.text_keys_values(model.model.embed_text(context)))
    made = []
    for chunks in lengths:
        draws = torch.Generator().manual_seed(1)
        z = torch.randn(1, CHUNK * chunks, config.in_dim, SIDE, SIDE, generator=draws)
        for way in (cached, again, whole):
            with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
                way(model.restorer, text, z)  # which also warms up
            start = time.process_time()
            way(model.restorer, text, z)
            seconds = time.process_time() - start
            name = (way.__doc__ or "").rstrip(".")
            made.append(Speed(z.shape[1] * FRAMES_A_LATENT, name, seconds, counter.get_total_flops()))
    return made


def cached(restorer: Restorer, text: TextEntry, z: Tensor) -> None:
    """cache of the chunk before."""
    scene = restorer.open(z.shape[3:])
    for chunk in z.split(CHUNK, dim=1):
        restorer.call([scene], [text], chunk)


def again(restorer: Restorer, text: TextEntry, z: Tensor) -> None:
    """the chunk before computed again."""
    for at in range(0, z.shape[1], CHUNK):
        _at_once(restorer, text, z[:, max(0, at - CHUNK) : at + CHUNK])


def whole(restorer: Restorer, text: TextEntry, z: Tensor) -> None:
    """the whole clip at once."""
    _at_once(restorer, text, z)


def _at_once(restorer: Restorer, text: TextEntry, z: Tensor) -> None:
    memory = ClipMemory(restorer.model.config, z.shape[1], *z.shape[3:])
    times = torch.full(z.shape[:2], restorer.timestep)
    restorer.model(z.transpose(1, 2), times, memory, TextMemories([text]))
