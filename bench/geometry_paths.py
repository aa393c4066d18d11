"""Unseen sequences of the tiny world with exact truth, of any length: filmed in pieces, never held whole.

T frames, H x W pixels. Poses are camera-to-world. Every path is a function of its name and seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from riverrun.train.geometry_frames import FARTHEST, yard
from riverrun.train.scenes import MOTIONS, Scene, Thing, sample_scene
from riverrun.train.world import camera_pose, film, looking

FIRST_SEED = 5_000_000  # of scenes for the benchmark: none that training ever drew
CAPTIONS = tuple(motion for motion in MOTIONS if motion != "still")
PATHS = (*CAPTIONS, "revisits", "walks on")
ROUND = 240  # frames of a turn on the path that revisits
PIECE = 40


@dataclass(frozen=True)
class Piece:
    """frames uint8 [T, H, W, 3]; depth float32 [T, H, W], inf where there is none to be told; poses [T, 4, 4]."""

    frames: Tensor
    depth: Tensor
    poses: Tensor


def pieces(path: str, seed: int, frames: int, side: int, first: int = 0) -> Iterator[Piece]:
    """The path's frames from `first` on, PIECE at a time; a lap that comes again is not filmed again."""
    for start in range(first, first + frames, PIECE):
        at = start % ROUND if path == "revisits" else start
        yield _piece(path, seed, at, min(PIECE, first + frames - start), side)


def whole(path: str, seed: int, frames: int, side: int) -> Piece:
    """A short sequence in one."""
    parts = list(pieces(path, seed, frames, side))
    return Piece(*(torch.cat([getattr(p, name) for p in parts]) for name in ("frames", "depth", "poses")))


@lru_cache(maxsize=ROUND // PIECE)
def _piece(path: str, seed: int, first: int, count: int, side: int) -> Piece:
    rng = random.Random((FIRST_SEED + seed) * 7873)
    times = range(first, first + count)
    if path in CAPTIONS:
        scene = sample_scene(rng, held_out=True)
        camera = replace(scene.camera, motion=path)
        poses = torch.stack([camera_pose(camera, t) for t in times])
    elif path == "revisits":
        scene = yard(rng, held_out=True, reach=1.6)
        poses = torch.stack([_around(t) for t in times])
    elif path == "walks on":
        poses = torch.stack([_along(t) for t in times])
        scene = _street(seed, float(poses[:, 0, 3].mean()))
    else:
        raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
    footage = film(scene, poses, side, side)
    depth = torch.where(footage.depth < FARTHEST, footage.depth, torch.inf)
    return Piece(footage.frames, depth, poses)


def _around(t: float) -> Tensor:
    turn = 2 * math.pi * t / ROUND
    distance, height = 4.8 + 0.4 * math.sin(2 * turn), 1.7 + 0.3 * math.cos(turn)
    return looking((distance * math.sin(turn), height, distance * math.cos(turn)), (0.0, 0.8, 0.0))


def _along(t: float) -> Tensor:
    x = 0.06 * t
    sway = math.sin(2 * math.pi * t / 160)
    return looking((x, 1.7 + 0.2 * sway, 4.4), (x + 1.2 * sway, 0.8, 0.0))


def _street(seed: int, x: float, reach: float = 7.5) -> Scene:
    """Objects that stand along the x axis for ever; those within `reach`."""
    base = yard(random.Random((FIRST_SEED + seed) * 7867), held_out=True)
    things: list[Thing] = []
    for place in range(math.floor((x - reach) / 1.7), math.ceil((x + reach) / 1.7)):
        rng = random.Random((FIRST_SEED + seed) * 7867 + 31 * place)
        thing = rng.choice(yard(rng).things)
        things.append(replace(thing, x=1.7 * place + rng.uniform(-0.4, 0.4), z=rng.uniform(-1.6, 1.2)))
    return replace(base, things=tuple(things))
