"""The network over clips as a stream runs it, frame after frame, but with gradients and many clips at once.

B clips, S frames each, H x W pixels. The camera head sees all iterations of all frames before, as in a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.kernels.attention import attention
from riverrun.models.geometry.vggt import VGGT


class Growing:
    """A memory of every row ever written. `forgetting`: share of rows between the first and the newest frame that a
    query doesn't see, other ones in each layer, as under a budget."""

    def __init__(self, forgetting: float = 0.0) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.forgetting = forgetting

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in self.keys:
            k, v = torch.cat([self.keys[layer], k], dim=1), torch.cat([self.values[layer], v], dim=1)
        self.keys[layer], self.values[layer] = k, v
        new, held = q.shape[1], k.shape[1]
        if self.forgetting and held > 2 * new:
            stays = torch.rand(held - 2 * new) >= self.forgetting
            is_seen = torch.cat([torch.ones(new, dtype=torch.bool), stays, torch.ones(new, dtype=torch.bool)])
            k, v = k[:, is_seen], v[:, is_seen]
        return attention(q, k, v)


@dataclass(frozen=True)
class Seen:
    """poses [iterations, B, S, 9]; patches: by DPT layer [B, S, h * w, D], for `dense`."""

    poses: Tensor
    patches: list[Tensor]


def watch(model: VGGT, images: Tensor, forgetting: float = 0.0) -> Seen:
    """images [B, S, 3, H, W] in 0..1."""
    config = model.config
    tokens, trunk = Growing(forgetting), Growing()
    wanted = {*config.dpt_layers, config.depth - 1}

    @contextmanager
    def memory() -> Iterator[Growing]:
        yield trunk

    poses, patches = [], []
    for t in range(images.shape[1]):
        later = torch.full((len(images),), min(t, 1))
        pairs = model.aggregator(images[:, t], later, tokens, wanted)
        poses.append(model.camera_head(pairs[config.depth - 1][:, 0], memory))
        patches.append([pairs[layer][:, config.special :] for layer in config.dpt_layers])
    by_layer = [torch.stack(frames, dim=1) for frames in zip(*patches, strict=True)]
    return Seen(torch.stack(poses, dim=2), by_layer)
