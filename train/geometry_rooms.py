"""Rooms for the second lesson: a box with boxes and balls in it, all covered with canvases, and a camera that moves.

Axes as in OpenCV (y down). T frames, H x W pixels. Texture is looked up by place and never repeats.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.train.geometry_flat import canvas, turning
from riverrun.train.geometry_frames import Clip

MOVES = ("orbit", "pan", "dolly", "truck", "mixed", "still")
LIGHT = torch.tensor([0.48, -0.64, 0.60])


def room(number: int, canvases: range, frames: int, side: int, field_of_view: float, move: str | None = None) -> Clip:
    """Clip ``number``: a function of its arguments. move: one of MOVES, default by lot."""
    rng = random.Random(number * 6007 + 11)
    walls = torch.tensor([rng.uniform(2.2, 3.5), rng.uniform(1.4, 2.0), rng.uniform(2.6, 4.0)])
    poses = _path(rng, move or rng.choice(MOVES), frames, walls)
    origins, rays = _rays(poses, side, field_of_view)
    colour, depth = _walls(origins, rays, walls, rng, canvases)
    for _ in range(rng.randint(4, 9)):
        size = rng.uniform(0.2, 0.6)
        centre = torch.tensor([rng.uniform(-0.8, 0.8) * float(walls[0]), rng.uniform(0.2, 0.8) * float(walls[1]),
                               rng.uniform(-0.35, 0.9) * float(walls[2])])  # fmt: skip
        thing = _ball if rng.random() < 0.4 else _box
        shade, near = thing(origins - centre, rays, size, rng, canvases)
        is_front = near < depth
        depth = torch.where(is_front, near, depth)
        colour = torch.where(is_front[..., None], shade, colour)
    pixels = (colour.clamp(0, 1) * 255).to(torch.uint8).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return Clip(pixels.contiguous(), depth.unflatten(1, (side, side)), poses)


def _path(rng: random.Random, move: str, frames: int, walls: Tensor) -> Tensor:
    """Camera-to-world [T, 4, 4], evenly spaced along one motion."""
    distance = rng.uniform(1.6, 2.6)
    turn = math.radians(rng.uniform(8, 24)) * rng.choice((-1, 1))
    step = distance * rng.uniform(0.12, 0.4) * rng.choice((-1, 1))
    tilt = turn * rng.uniform(-0.4, 0.4)
    base = turning(*torch.tensor([[rng.uniform(-0.5, 0.5)], [rng.uniform(-0.15, 0.1)], [rng.uniform(-0.05, 0.05)]]))[
        0
    ].T
    start = torch.tensor([rng.uniform(-0.25, 0.25), rng.uniform(-0.3, 0.1), rng.uniform(-0.75, -0.55)]) * walls
    poses = []
    for t in torch.linspace(0, 1, frames).tolist():
        yaw = pitch = 0.0
        shift = torch.zeros(3)
        if move in ("orbit", "pan", "mixed"):
            yaw, pitch = turn * t, tilt * t
        if move in ("dolly", "mixed"):
            shift = shift + torch.tensor([0.0, 0.0, step * t])
        if move in ("truck", "mixed"):
            shift = shift + torch.tensor([step * t, 0.4 * step * t, 0.0])
        look = turning(*torch.tensor([[yaw], [pitch], [0.0]]))[0]
        if move == "orbit":
            ahead = torch.tensor([0.0, 0.0, distance])
            shift = ahead - look @ ahead
        pose = torch.eye(4)
        pose[:3, :3], pose[:3, 3] = base @ look, start + base @ shift
        pose[:3, 3] = torch.minimum(torch.maximum(pose[:3, 3], -0.95 * walls), 0.95 * walls)
        poses.append(pose)
    return torch.stack(poses)


def _rays(poses: Tensor, side: int, field_of_view: float) -> tuple[Tensor, Tensor]:
    """Origins [T, 1, 3] and directions [T, H * W, 3] whose z is 1 in camera axes, so that length is depth."""
    at = ((torch.arange(side) + 0.5) / side * 2 - 1) * math.tan(field_of_view / 2)
    v, u = torch.meshgrid(at, at, indexing="ij")
    local = torch.stack([u, v, torch.ones_like(u)], -1).flatten(0, 1)
    return poses[:, None, :3, 3], local @ poses[:, :3, :3].transpose(1, 2)


def _walls(origins: Tensor, rays: Tensor, walls: Tensor, rng: random.Random, canvases: range) -> tuple[Tensor, Tensor]:
    away = (walls * rays.sign() - origins) / _not_zero(rays)
    depth, axis = away.min(dim=-1)
    places = (origins + depth[..., None] * rays) / walls.max()
    normal = -F.one_hot(axis, 3) * rays.sign()
    return _textured(places, normal, rng, canvases), depth


def _box(origins: Tensor, rays: Tensor, size: float, rng: random.Random, canvases: range) -> tuple[Tensor, Tensor]:
    half = torch.tensor([size, size * rng.uniform(0.6, 1.6), size])
    yaw = turning(*torch.tensor([[rng.uniform(0, 3)], [0.0], [0.0]]))[0]
    origins, rays = origins @ yaw.T, rays @ yaw.T
    safe = _not_zero(rays)
    one, two = (-half - origins) / safe, (half - origins) / safe
    enter, axis = torch.minimum(one, two).max(dim=-1)
    leave = torch.maximum(one, two).min(dim=-1).values
    depth = torch.where((enter < leave) & (enter > 0), enter, torch.inf)
    normal = -F.one_hot(axis, 3) * rays.sign()
    places = (origins + enter[..., None].clamp(0, 20) * rays) / half.max()
    return _textured(places, normal, rng, canvases), depth


def _ball(origins: Tensor, rays: Tensor, size: float, rng: random.Random, canvases: range) -> tuple[Tensor, Tensor]:
    a, b = rays.square().sum(-1), (origins * rays).sum(-1)
    disc = b * b - a * (origins.square().sum(-1) - size**2)
    near = (-b - disc.clamp(min=0).sqrt()) / a
    depth = torch.where((disc > 0) & (near > 0), near, torch.inf)
    normal = (origins + near[..., None].clamp(0, 20) * rays) / size
    return _textured(normal, normal, rng, canvases), depth


def _textured(places: Tensor, normal: Tensor, rng: random.Random, canvases: range) -> Tensor:
    """Colours at places within -1..1, [T, N, 3] each: by the two axes across the strongest of the normal."""
    first, second = (canvas(canvases[rng.randrange(len(canvases))]).float() / 255 for _ in range(2))
    axis = normal.abs().argmax(-1, keepdim=True)
    u = places.gather(-1, (axis + 1) % 3)
    v = places.gather(-1, (axis + 2) % 3)
    grid = torch.cat([u, v], -1).clamp(-1, 1)[:, :, None]  # (T, N, 1, 2)
    looked = [F.grid_sample(c.expand(len(grid), -1, -1, -1), grid, align_corners=False)[..., 0].transpose(1, 2)
              for c in (first, second)]  # fmt: skip
    is_far = normal.gather(-1, axis) > 0  # opposite faces differ
    tint = torch.tensor([rng.uniform(0, 1) for _ in range(3)])
    light = 0.8 + 0.2 * (normal * LIGHT).sum(-1, keepdim=True)
    return (0.65 * torch.where(is_far, looked[0], looked[1]) + 0.35 * tint) * light


def _not_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-6, 1e-6, x)
