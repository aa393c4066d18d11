"""Flat pictures for the first lesson: pairs of views of a far canvas by a camera that only turns.

Every canvas is full of shapes that occur once, so that a match is never in doubt. B pairs, H x W pixels.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

CANVAS, SHAPES = 256, 80
REACH = 1.25  # a canvas spans -REACH..REACH at distance 1


@lru_cache(maxsize=1024)
def canvas(number: int) -> Tensor:
    """uint8 [3, 256, 256], a function of its number."""
    rng = random.Random(number * 7919 + 3)
    picture = Image.new("RGB", (CANVAS, CANVAS), _colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(SHAPES):
        x, y, size = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(8, 36)
        corners = rng.choice((0, 3, 4, 5))
        box = (x - size, y - size * rng.uniform(0.4, 1), x + size, y + size * rng.uniform(0.4, 1))
        if corners == 0:
            draw.ellipse(box, fill=_colour(rng))
            continue
        turn = rng.uniform(0, 2 * math.pi)
        points = [(x + size * math.cos(turn + 2 * math.pi * k / corners),
                   y + size * math.sin(turn + 2 * math.pi * k / corners)) for k in range(corners)]  # fmt: skip
        draw.polygon(points, fill=_colour(rng))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def turning(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """Rotations [N, 3, 3] about y, then x, then z, of angles [N] in radians."""
    c, s, one, zero = torch.cos, torch.sin, torch.ones_like(yaw), torch.zeros_like(yaw)
    about_y = [[c(yaw), zero, s(yaw)], [zero, one, zero], [-s(yaw), zero, c(yaw)]]
    about_x = [[one, zero, zero], [zero, c(pitch), -s(pitch)], [zero, s(pitch), c(pitch)]]
    about_z = [[c(roll), -s(roll), zero], [s(roll), c(roll), zero], [zero, zero, one]]
    y, x, z = (torch.stack([torch.stack(row, -1) for row in m], -2) for m in (about_y, about_x, about_z))
    return z @ x @ y


def pairs(
    count: int, rng: random.Random, canvases: range, side: int, field_of_view: float, most: float = 20.0
) -> tuple[Tensor, Tensor]:
    """(images float32 [B, 2, 3, side, side] in 0..1, extrinsics of the second camera [B, 3, 4]; the first's is 1).

    most: degrees of yaw; pitch is up to 0.7 of it, roll up to 6.
    """
    degree = math.radians(1)
    angles = []
    for _ in range(count):
        size = rng.uniform(4, most)
        angles.append((size * degree * rng.choice((-1, 1)), size * rng.uniform(-0.7, 0.7) * degree,
                       rng.uniform(-6, 6) * degree))  # fmt: skip
    rotation = turning(*torch.tensor(angles).unbind(1))  # world (first camera) to second camera
    # the two looks lie about the canvas' middle, so that both see it
    middle = turning(*(0.5 * torch.tensor(angles)).unbind(1)).transpose(1, 2)
    spin = turning(*(torch.zeros(count), torch.zeros(count), torch.tensor([rng.uniform(-3, 3) for _ in range(count)])))
    start = middle @ spin
    pictures = torch.stack([canvas(canvases[rng.randrange(len(canvases))]) for _ in range(count)]).float() / 255
    views = [_view(pictures, look, side, field_of_view) for look in (start, start @ rotation.transpose(1, 2))]
    extrinsics = torch.cat([rotation, torch.zeros(count, 3, 1)], dim=2)
    return torch.stack(views, dim=1), extrinsics


def _view(pictures: Tensor, look: Tensor, side: int, field_of_view: float) -> Tensor:
    """pictures [B, 3, h, w] at distance 1, seen by cameras of orientation look [B, 3, 3] (camera to canvas)."""
    half = math.tan(field_of_view / 2)
    at = ((torch.arange(side) + 0.5) / side * 2 - 1) * half
    v, u = torch.meshgrid(at, at, indexing="ij")
    rays = torch.einsum("bij,hwj->bhwi", look, torch.stack([u, v, torch.ones_like(u)], -1))
    grid = rays[..., :2] / rays[..., 2:].clamp(min=0.1) / REACH
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
