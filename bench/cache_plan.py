"""What `bench/cache.py` times: ways to make the same chunk, at several lengths of stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Plan:
    """repeats: runs of each way. width, depth: of the networks, in units of 32 channels and in layers. steps: of
    denoising. chunks: lengths of stream, in chunks that came before the one that is timed."""

    repeats: int
    width: int
    depth: int
    steps: int
    chunks: tuple[int, ...]

    @property
    def dim(self) -> int:
        return 32 * self.width


@dataclass(frozen=True)
class Way:
    """run(fresh()) makes the chunk and returns how often it went through the network. held: bytes it keeps."""

    name: str
    run: Callable[[Any], int]
    fresh: Callable[[], Any] = lambda: None
    held: int = 0


@dataclass(frozen=True)
class Case:
    """One length of stream; the first way is the method's own."""

    method: str
    at: str
    ways: tuple[Way, ...]


def random_network(module: nn.Module) -> Any:
    """With values in every layer, those too that a training run starts at zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05)
    return module.eval().requires_grad_(False)
