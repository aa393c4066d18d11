"""Clips with exact truth, and batches of them as the network is to see them: relative to their first camera.

T frames of a clip, B clips and S frames of a batch, H x W pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.models.geometry.poses import quaternion_of
from riverrun.train.scenes import (
    FLOORS,
    OBJECT_COLOURS,
    SHAPES,
    SIZES,
    SKIES,
    Camera,
    Scene,
    Thing,
    dress,
    is_held_out,
    sample_scene,
)
from riverrun.train.scenes import MOTIONS as CAPTION_MOTIONS
from riverrun.train.world import camera_pose, film, looking

SMALL = 64  # pixels of the world's own video
FARTHEST = 20.0  # beyond it the tiny world is fog alone: no depth could be told from it


@dataclass(frozen=True)
class Clip:
    """images uint8 [T, 3, H, W]; depth float32 [T, H, W], inf where nothing is; poses camera-to-world [T, 4, 4]."""

    images: Tensor
    depth: Tensor
    poses: Tensor


@dataclass(frozen=True)
class Batch:
    """images float32 [B, S, 3, H, W] in 0..1; extrinsics [B, S, 3, 4] from the first camera's axes; depth [B, S, H, W]
    and points [B, S, H, W, 3] in its scale, both 0 where `is_valid` is not. Without depth: those three are None."""

    images: Tensor
    extrinsics: Tensor
    depth: Tensor | None = None
    points: Tensor | None = None
    is_valid: Tensor | None = None

    @property
    def quaternions(self) -> Tensor:
        return quaternion_of(self.extrinsics[..., :3])


def caption_clip(
    number: int, frames: int, side: int, held_out: bool = False, gap: int | None = None, motion: str | None = None,
    smear: bool = False,
) -> Clip:  # fmt: skip
    """A scene of the captions, filmed by its own camera at times some frames apart. gap: by lot where not given."""
    rng = random.Random(number * 7907 + 29)
    scene = sample_scene(rng, held_out)
    azimuth = scene.camera.azimuth if rng.random() < 0.5 else rng.uniform(-math.pi, math.pi)
    camera = Camera(motion or rng.choice(CAPTION_MOTIONS[1:] if rng.random() < 0.9 else CAPTION_MOTIONS), azimuth,
                    scene.camera.distance, scene.camera.height)  # fmt: skip
    times, t = [], float(rng.randrange(300))
    step = gap or rng.choice((1, 1, 2, 2, 3, 4, 6))
    for _ in range(frames):
        times.append(t)
        t += step
    poses = torch.stack([camera_pose(camera, t) for t in times])
    return _filmed(Scene(scene.things, scene.floor, scene.sky, camera), poses, side, rng, smear)


def yard_clip(number: int, frames: int, side: int, held_out: bool = False) -> Clip:
    """Several objects and a camera that walks past or around them: strong parallax."""
    rng = random.Random(number * 7901 + 31)
    scene = yard(rng, held_out)
    path = rng.choice((_walk, _round))(rng)
    poses = torch.stack([looking(*path(s)) for s in torch.linspace(0, 1, frames).tolist()])
    return _filmed(replace(scene, things=_clear(scene.things, poses)), poses, side, rng)


def stroll_clip(number: int, frames: int, side: int, held_out: bool = False) -> Clip:
    """As a yard, over an arc of up to half a turn or a long walk past it."""
    rng = random.Random(number * 7877 + 37)
    scene = yard(rng, held_out, reach=rng.choice((1.2, 1.6, 2.2)))
    path = _round(rng, rng.uniform(0.7, 3.5)) if rng.random() < 0.6 else _stroll(rng)
    poses = torch.stack([looking(*path(s)) for s in torch.linspace(0, 1, frames).tolist()])
    return _filmed(replace(scene, things=_clear(scene.things, poses)), poses, side, rng, smear=True)


Path = Callable[[float], tuple[list[float], list[float]]]
"""Where the camera stands and what it looks at, over 0..1."""


def _walk(rng: random.Random) -> Path:
    azimuth, distance, height = rng.uniform(-math.pi, math.pi), rng.uniform(3.2, 6.0), rng.uniform(0.9, 2.6)
    at = [distance * math.sin(azimuth), height, distance * math.cos(azimuth)]
    towards = [rng.uniform(-0.9, 0.9), rng.uniform(0.4, 1.1), rng.uniform(-0.9, 0.9)]
    walk = [rng.uniform(-1.4, 1.4), rng.uniform(-0.5, 0.5) * min(1.0, height), rng.uniform(-1.4, 1.4)]
    turn = [rng.uniform(-0.8, 0.8), rng.uniform(-0.2, 0.2), rng.uniform(-0.8, 0.8)]
    return lambda s: ([a + s * w for a, w in zip(at, walk, strict=True)],
                      [b + s * u for b, u in zip(towards, turn, strict=True)])  # fmt: skip


def _stroll(rng: random.Random) -> Path:
    """Along a line past the middle, the look swaying."""
    length, side, away, height = (
        rng.uniform(1.0, 4.5),
        rng.choice((-1, 1)),
        rng.uniform(3.8, 5.0),
        rng.uniform(1.4, 2.1),
    )
    start, turn, phase = rng.uniform(-0.7, 0) * length, rng.uniform(0.3, 1.4), rng.uniform(0, 2 * math.pi)
    sway, up, face = rng.uniform(0, 1.3), rng.uniform(0, 0.25), rng.uniform(-math.pi, math.pi)

    def spun(x: float, y: float, z: float) -> list[float]:
        return [math.cos(face) * x + math.sin(face) * z, y, math.cos(face) * z - math.sin(face) * x]

    def at(s: float) -> tuple[list[float], list[float]]:
        x, wave = side * (start + s * length), math.sin(2 * math.pi * turn * s + phase)
        return spun(x, height + up * wave, away), spun(x + sway * wave, 0.8, 0.0)

    return at


def _round(rng: random.Random, most: float | None = None) -> Path:
    """most: the arc in radians; by lot where not given."""
    azimuth, distance, height = rng.uniform(-math.pi, math.pi), rng.uniform(3.6, 5.6), rng.uniform(1.2, 2.2)
    arc = (most or rng.choice((0.3, 0.6, 1.2, 2.0))) * rng.uniform(-1, 1)
    away, up, towards = rng.uniform(-0.2, 0.2), rng.uniform(-0.3, 0.3), [rng.uniform(-0.2, 0.2), 0.8, 0.0]

    def at(s: float) -> list[float]:
        turn, far = azimuth + s * arc, distance * (1 + s * away)
        return [far * math.sin(turn), height + s * up, far * math.cos(turn)]

    return lambda s: (at(s), towards)


def _clear(things: Sequence[Thing], poses: Tensor) -> tuple[Thing, ...]:
    """Those that leave the camera room; the nearest to the middle if none does."""
    path = poses[:, [0, 2], 3]
    far = [t for t in things if float((path - torch.tensor([t.x, t.z])).norm(dim=1).min()) > 1.9]
    return tuple(far or sorted(things, key=lambda t: math.hypot(t.x, t.z))[:1])


def yard(rng: random.Random, held_out: bool = False, reach: float = 2.2) -> Scene:
    """2 to 6 objects within `reach`; held out: the first one is of a combination never trained on."""
    floor = rng.choice(list(FLOORS))
    things: list[Thing] = []
    wanted = rng.randint(2, 6)
    if held_out:
        first = dress(rng, Camera("still"), held_out=True)
        floor, things = first.floor, [*first.things]
    while len(things) < wanted:
        thing = Thing(
            rng.choice(list(OBJECT_COLOURS)), rng.choice(SHAPES), rng.choice(list(SIZES)),
            rng.uniform(-reach, reach), rng.uniform(-reach, reach), rng.uniform(0, 3),
        )  # fmt: skip
        if not is_held_out(thing, floor):
            things.append(thing)
    return Scene(tuple(things), floor, rng.choice(list(SKIES)), Camera("still"))


def _filmed(scene: Scene, poses: Tensor, side: int, rng: random.Random, smear: bool = False) -> Clip:
    """smear: some of the clips look as if generated."""
    footage = film(scene, poses, side, side)
    images = footage.frames.permute(0, 3, 1, 2)
    if rng.random() < 0.5:  # as the world's own video comes: 64 pixels, enlarged
        small = F.interpolate(images.float(), size=(SMALL, SMALL), mode="bilinear", antialias=True)
        if smear and rng.random() < 0.6:
            small = _smeared(small, footage.objects, rng)
        large = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)
        images = large.clamp(0, 255).round().to(torch.uint8)
    depth = torch.where(footage.depth < FARTHEST, footage.depth, torch.inf)
    return Clip(images.contiguous(), depth, footage.camera_to_world)


def _smeared(small: Tensor, objects: Tensor, rng: random.Random) -> Tensor:
    """What the generator gets wrong: the floor's checks are blurred away, outlines wobble from frame to frame.

    small [T, 3, SMALL, SMALL] of any range; objects [T, H, W], 0 where none is.
    """
    size = (SMALL, SMALL)
    thing = F.interpolate((objects > 0)[:, None].float(), size=size, mode="bilinear", antialias=True)
    ground = torch.cat([small * (1 - thing), 1 - thing], dim=1)
    ground = F.interpolate(ground, scale_factor=rng.uniform(0.15, 0.5), mode="bilinear", antialias=True)
    ground = F.interpolate(ground, size=size, mode="bilinear")
    mixed = thing * small + (1 - thing) * ground[:, :3] / ground[:, 3:].clamp(min=1e-3)
    lots = torch.Generator().manual_seed(rng.getrandbits(62))
    wobble = rng.uniform(0, 0.02) * torch.randn(len(small), 2, 6, 6, generator=lots)
    still = F.affine_grid(torch.eye(2, 3).expand(len(small), 2, 3), list(mixed.shape), align_corners=False)
    bent = still + F.interpolate(wobble, size=size, mode="bicubic").permute(0, 2, 3, 1)
    return F.grid_sample(mixed, bent, padding_mode="border", align_corners=False)


def batch_of(clips: Sequence[Clip], chosen: Sequence[Sequence[int]], field_of_view: float) -> Batch:
    """The `chosen` frames of each clip, the first of them as the world's origin and scale."""
    pick = [torch.tensor(frames) for frames in chosen]
    images = torch.stack([clip.images[at] for clip, at in zip(clips, pick, strict=True)]).float() / 255
    depth = torch.stack([clip.depth[at] for clip, at in zip(clips, pick, strict=True)])
    poses = torch.stack([clip.poses[at] for clip, at in zip(clips, pick, strict=True)])
    relative = torch.linalg.inv(poses[:, :1]) @ poses  # camera to first camera
    is_valid = depth.isfinite()
    depth = torch.where(is_valid, depth, 0.0)
    rays = _directions(depth.shape[-1], field_of_view)
    local = depth[..., None] * rays
    scale = _scale(local[:, 0], is_valid[:, 0])  # (B)
    points = torch.einsum("bsij,bshwj->bshwi", relative[..., :3, :3], local) + relative[..., None, None, :3, 3]
    extrinsics = torch.linalg.inv(relative)[..., :3, :]
    extrinsics[..., 3] /= scale[:, None, None]
    return Batch(
        images, extrinsics, depth / scale[:, None, None, None], points / scale[:, None, None, None, None], is_valid
    )


def _directions(side: int, field_of_view: float) -> Tensor:
    at = ((torch.arange(side) + 0.5) / side * 2 - 1) * math.tan(field_of_view / 2)
    v, u = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], -1)


def _scale(points: Tensor, is_valid: Tensor) -> Tensor:
    """Mean distance of the first frame's points: what a unit is, known from that frame on."""
    distance = points.norm(dim=-1)
    return (distance * is_valid).flatten(1).sum(1) / is_valid.flatten(1).sum(1).clamp(min=1)
