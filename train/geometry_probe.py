"""Can poses be learned from these weights? A measurement of seconds that stands for minutes of training.

Linear regression of the true turn from the camera token, and how far the attended places move with it. B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.models.geometry.vggt import VGGT
from riverrun.train.geometry_clip import Growing


@dataclass(frozen=True)
class Probe:
    """token: R2 of (yaw, pitch) held out, from the camera token. matching: by global block, the best head's
    correlation of the mean attended displacement with (yaw, pitch)."""

    token: tuple[float, float]
    matching: tuple[tuple[float, float], ...]


@torch.no_grad()
def probe(model: VGGT, images: Tensor, extrinsics: Tensor, ridge: float = 10.0) -> Probe:
    """images [B, 2, 3, H, W], extrinsics of the second camera [B, 3, 4]. Half of the pairs are fitted."""
    watched = _Watching(model, images.shape[3] // model.config.patch)
    last = model.config.depth - 1
    tokens = []
    for part in images.split(64):
        watched.begin()
        for t in range(2):
            later = torch.full((len(part),), t)
            pairs = model.aggregator(part[:, t], later, watched, {last})
        tokens.append(pairs[last][:, 0])
    truth = torch.stack([extrinsics[:, 0, 2], extrinsics[:, 1, 2]], dim=1)  # sines of yaw and pitch
    matching = []
    for moved in watched.displacements():  # (B, H, 2)
        found = [max(abs(_correlation(moved[:, h, a], truth[:, a])) for h in range(moved.shape[1])) for a in (0, 1)]
        matching.append((found[0], found[1]))
    yaw, pitch = _held_out_r2(torch.cat(tokens).double(), truth.double(), ridge)
    return Probe((yaw, pitch), tuple(matching))


class _Watching(Growing):
    """Notes where the second frame's patches look in the first."""

    def __init__(self, model: VGGT, side: int):
        super().__init__()
        self.special, self.side = model.config.special, side
        self.seen: list[dict[int, Tensor]] = []

    def begin(self) -> None:
        self.keys.clear()
        self.values.clear()
        self.seen.append({})

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in self.keys:
            patches, before = q[:, self.special :], self.keys[layer][:, self.special :]
            scores = torch.einsum("bqhd,bkhd->bhqk", patches, before) * q.shape[-1] ** -0.5
            at = torch.arange(self.side).float()
            row, column = torch.meshgrid(at, at, indexing="ij")
            place = torch.stack([column.flatten(), row.flatten()], -1)  # (P, 2)
            self.seen[-1][layer] = (scores.softmax(-1) @ place - place).mean(2)  # (B, H, 2)
        return super().attend(layer, q, k, v)

    def displacements(self) -> list[Tensor]:
        return [torch.cat([part[layer] for part in self.seen]) for layer in sorted(self.seen[0])]


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def _held_out_r2(x: Tensor, y: Tensor, ridge: float) -> tuple[float, float]:
    half = len(x) // 2
    mean, std = x[:half].mean(0), x[:half].std(0) + 1e-9
    x = torch.cat([(x - mean) / std, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    gram = x[:half].T @ x[:half] + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    off = x[half:] @ torch.linalg.solve(gram, x[:half].T @ y[:half]) - y[half:]
    spread = y[half:] - y[half:].mean(0)
    r2 = 1 - off.square().sum(0) / spread.square().sum(0)
    return float(r2[0]), float(r2[1])
