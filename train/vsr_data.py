"""Pairs of sharp and small clips for super-resolution: Big Buck Bunny and rendered scenes, cropped by lot.

Legend: B clips, T frames, h w of the small pictures, H W of the sharp ones (4 times as large).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.train.clips import TRAINED_ON, clip
from riverrun.train.data import store
from riverrun.train.scenes import sample_scene
from riverrun.train.world import pictures

SCALE = 4
FILM_HEIGHTS = {720: 0.1, 360: 0.35, 240: 0.35, 180: 0.2}
"""The film at these heights, and each one's share: small ones have crisp pixels, as small cameras' clips have."""
FILM_KEPT = 20
"""Its last frames, never trained on: for watching the run."""
WORLD_SHARE, WORLD_FRAMES = 0.3, 21
WORLD_HEIGHTS = (256, 192, 128)


@dataclass(frozen=True)
class Pool:
    """Sharp clips, uint8 [T, 3, H, W], each with its share of the draws."""

    clips: tuple[Tensor, ...]
    shares: tuple[float, ...]

    def draw(self, rng: random.Random, batch: int, frames: int, size: int) -> Tensor:
        """uint8 [batch, frames, 3, size, size]: of two random places the one with more in it, turned, mirrored, played
        backwards, at double speed or with exchanged colours."""
        return torch.stack([self._one(rng, frames, size) for _ in range(batch)])

    def _one(self, rng: random.Random, frames: int, size: int) -> Tensor:
        video = rng.choices(self.clips, self.shares)[0]
        crops = [_crop(video, rng, frames, size) for _ in range(2)]
        return _varied(max(crops, key=_detail), rng)


def _crop(video: Tensor, rng: random.Random, frames: int, size: int) -> Tensor:
    step = 2 if len(video) >= 2 * frames and rng.random() < 0.25 else 1
    start = rng.randint(0, len(video) - step * (frames - 1) - 1)
    top, left = (rng.randint(0, side - size) for side in video.shape[2:])
    return video[start : start + step * (frames - 1) + 1 : step, :, top : top + size, left : left + size]


def _detail(crop: Tensor) -> float:
    luma = crop[len(crop) // 2].float().mean(0)
    return float((luma[1:] - luma[:-1]).abs().mean() + (luma[:, 1:] - luma[:, :-1]).abs().mean())


def _varied(crop: Tensor, rng: random.Random) -> Tensor:
    crop = crop.flip(0) if rng.random() < 0.5 else crop
    crop = crop.flip(3) if rng.random() < 0.5 else crop
    crop = crop.rot90(rng.randrange(4), (2, 3))
    return crop[:, rng.sample(range(3), 3)] if rng.random() < 0.3 else crop


def shrunk(sharp: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> uint8 [..., 3, H/4, W/4]: antialiased bicubic, rounded to 8 bits."""
    size = (sharp.shape[-2] // SCALE, sharp.shape[-1] // SCALE)
    flat = resized(sharp.flatten(0, -4).float(), size)
    return flat.round().clamp(0, 255).to(torch.uint8).unflatten(0, sharp.shape[:-3])


def resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """float [T, 3, ., .] at `size`, antialiased bicubic."""
    return F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)


def levels(frames: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return frames.float() / 127.5 - 1


def load_pools(folder: Path, seed: int = 0, scenes: int = 90) -> tuple[Pool, Pool]:
    """(what is trained on, what the run is watched by). Rendered scenes are kept in `folder`. Raises Absent."""
    film = torch.from_numpy(clip(TRAINED_ON)).permute(0, 3, 1, 2)
    sizes = {height: _at_height(film, height) for height in FILM_HEIGHTS}
    worlds = _worlds(folder, seed, scenes)
    kept = len(worlds) // 10
    share = WORLD_SHARE / (len(worlds) - kept)
    film_shares = [(1 - WORLD_SHARE) * part for part in FILM_HEIGHTS.values()]
    train = Pool(
        (*(video[:-FILM_KEPT] for video in sizes.values()), *worlds[kept:]),
        (*film_shares, *[share] * (len(worlds) - kept)),
    )
    watch = Pool((sizes[360][-FILM_KEPT:], sizes[240][-FILM_KEPT:], *worlds[:kept]), (1, 1, *[1 / kept] * kept))
    return train, watch


def _at_height(film: Tensor, height: int) -> Tensor:
    if height == film.shape[2]:
        return film
    width = round(film.shape[3] * height / film.shape[2])
    parts = [resized(part.float(), (height, width)) for part in film.split(12)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def _worlds(folder: Path, seed: int, count: int) -> list[Tensor]:
    path = folder / "vsr-worlds.pt"
    if not path.exists():
        rng = random.Random(seed * 1_000_003 + 41)
        store([_world(rng, WORLD_HEIGHTS[i % len(WORLD_HEIGHTS)]) for i in range(count)], path)
    return torch.load(path, weights_only=True)


def _world(rng: random.Random, height: int) -> Tensor:
    start = rng.randint(0, 600)
    film = pictures(sample_scene(rng), range(start, start + WORLD_FRAMES), height, height)
    return (film * 255).round().to(torch.uint8)
