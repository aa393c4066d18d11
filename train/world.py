"""Renderer of the tiny world: analytic ray casting in batched torch, with depth and poses from the same rays.

Legend: T frames, H and W pixels, h = H * supersample, w = W * supersample. Camera axes are OpenCV's (x right, y down,
z forward); a pixel's centre is at (column + 0.5, row + 0.5), so K has cx = W / 2 and cy = H / 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.train.scenes import FLOORS, OBJECT_COLOURS, SIZES, SKIES, Camera, Scene, Thing

FIELD_OF_VIEW = math.radians(45.0)
SUN = (0.42, 0.80, 0.43)  # unit vector towards the light
AMBIENT = 0.66
FAR = 60.0  # the floor ends here, in fog


@dataclass(frozen=True)
class Footage:
    """``frames`` uint8 [T, H, W, 3]; ``depth`` float32 [T, H, W] along the camera's z axis, ``inf`` in the sky;
    ``intrinsics`` K float32 [3, 3]; ``camera_to_world`` float32 [T, 4, 4]; ``objects`` uint8 [T, H, W]: 0 background,
    n the n-th object of the scene."""

    frames: Tensor
    depth: Tensor
    intrinsics: Tensor
    camera_to_world: Tensor
    objects: Tensor


@dataclass(frozen=True)
class _Rays:
    """Origin and direction of every ray by component; directions have z = 1 in camera axes, so length is depth."""

    ox: Tensor  # (T, 1, 1)
    oy: Tensor
    oz: Tensor
    dx: Tensor  # (T, h, w)
    dy: Tensor
    dz: Tensor


@dataclass(frozen=True)
class _Hit:
    """Depth of the first hit (inf where none) and the normal's components there, all (T, h, w)."""

    depth: Tensor
    nx: Tensor
    ny: Tensor
    nz: Tensor


def render(
    scene: Scene, frames: int | Sequence[float], height: int = 64, width: int = 64, supersample: int = 2
) -> Footage:
    """Film ``scene``: ``frames`` is a count (times 0, 1, ...) or the times themselves, in frames, in any order.

    Colours are averaged over ``supersample`` squared rays a pixel; depth and objects come from the centred ray.
    """
    times = [float(t) for t in (range(frames) if isinstance(frames, int) else frames)]
    return film(scene, torch.stack([camera_pose(scene.camera, t) for t in times]), height, width, supersample)


def film(scene: Scene, poses: Tensor, height: int = 64, width: int = 64, supersample: int = 2) -> Footage:
    """As :func:`render`, from cameras of one's own: camera-to-world float32 [T, 4, 4], above the floor."""
    k = intrinsics(height, width)
    colour = _shade(scene, _rays(poses, k, height, width, supersample))  # (T, 3, h, w)
    if supersample > 1:
        colour = F.avg_pool2d(colour, supersample)
    pixels = (colour.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    depth, objects = _geometry(scene, _rays(poses, k, height, width, 1))
    return Footage(pixels, depth, k, poses, objects)


def pictures(
    scene: Scene, frames: int | Sequence[float], height: int = 64, width: int = 64, supersample: int = 2
) -> Tensor:
    """Only the colours of :func:`render`: float32 [T, 3, H, W] in 0..1 (cheaper: no second set of rays)."""
    times = [float(t) for t in (range(frames) if isinstance(frames, int) else frames)]
    poses = torch.stack([camera_pose(scene.camera, t) for t in times])
    colour = _shade(scene, _rays(poses, intrinsics(height, width), height, width, supersample))
    return (F.avg_pool2d(colour, supersample) if supersample > 1 else colour).clamp(0, 1)


def intrinsics(height: int, width: int) -> Tensor:
    """K float32 [3, 3]; the shorter side spans the field of view, pixels are square."""
    focal = min(height, width) / 2 / math.tan(FIELD_OF_VIEW / 2)
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def camera_pose(camera: Camera, t: float) -> Tensor:
    """Camera-to-world matrix float32 [4, 4] at frame ``t``."""
    return looking(camera.position(t), (0.0, camera.target, 0.0))


def looking(at: Sequence[float], towards: Sequence[float]) -> Tensor:
    """Camera-to-world matrix float32 [4, 4] of an upright camera ``at`` a point that looks ``towards`` another."""
    position = torch.tensor(at, dtype=torch.float64)
    forward = F.normalize(torch.tensor(towards, dtype=torch.float64) - position, dim=0)
    right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)), dim=0)
    down = torch.linalg.cross(forward, right)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([right, down, forward, position], dim=1)
    return pose.float()


def world_points(depth: Tensor, k: Tensor, camera_to_world: Tensor) -> Tensor:
    """World points of a depth map, float32 [T, H, W, 3], not finite in the sky.

    depth [T, H, W], k [3, 3], camera_to_world [T, 4, 4], as in :class:`Footage`.
    """
    height, width = depth.shape[1:]
    u = (torch.arange(width) + 0.5 - k[0, 2]) / k[0, 0]
    v = (torch.arange(height) + 0.5 - k[1, 2]) / k[1, 1]
    x, y = depth * u, depth * v[:, None]
    camera = torch.stack([x, y, depth], dim=-1)  # (T, H, W, 3)
    return torch.einsum("tij,thwj->thwi", camera_to_world[:, :3, :3], camera) + camera_to_world[:, None, None, :3, 3]


def _rays(poses: Tensor, k: Tensor, height: int, width: int, supersample: int) -> _Rays:
    u = ((torch.arange(width * supersample) + 0.5) / supersample - k[0, 2]) / k[0, 0]  # (w,)
    v = ((torch.arange(height * supersample) + 0.5) / supersample - k[1, 2]) / k[1, 1]  # (h,)
    r = poses[:, :3, :3, None, None]  # (T, 3, 3, 1, 1)
    d = [r[:, i, 0] * u + r[:, i, 1] * v[:, None] + r[:, i, 2] for i in range(3)]
    o = [poses[:, i, 3, None, None] for i in range(3)]
    return _Rays(o[0], o[1], o[2], d[0], d[1], d[2])


def _shade(scene: Scene, rays: _Rays) -> Tensor:
    """Linear mix of sky, fogged floor and lit objects: (T, 3, h, w)."""
    sky, light = SKIES[scene.sky], SKIES[scene.sky].light
    length = torch.sqrt(rays.dx**2 + rays.dy**2 + rays.dz**2)
    elevation = (rays.dy / length / 0.45).clamp(0, 1).sqrt()
    floor_depth = torch.where(rays.dy < 0, -rays.oy / rays.dy.clamp(max=-1e-6), torch.inf)
    near = floor_depth.clamp(max=FAR)
    px, pz = rays.ox + near * rays.dx, rays.oz + near * rays.dz  # where the ray meets the floor
    fog = ((near - 4.0) / 16.0).clamp(0, 1)
    checks = torch.tanh(6 * torch.sin(1.6 * px) * torch.sin(1.6 * pz)) * 0.15 * (1 - fog)
    brightness = (1.0 + checks) * _contact_shadow(scene, px, pz)
    hits = [_intersect(thing, rays) for thing in scene.things]
    channels = []
    for c in range(3):
        above = sky.horizon[c] + (sky.zenith[c] - sky.horizon[c]) * elevation
        ground = FLOORS[scene.floor][c] * light[c] * brightness * (1 - fog) + sky.horizon[c] * fog
        channels.append(torch.where(floor_depth < FAR, ground, above))
    nearest = floor_depth
    for thing, hit in zip(scene.things, hits, strict=True):
        front = hit.depth < nearest
        nearest = torch.where(front, hit.depth, nearest)
        lambert = (hit.nx * SUN[0] + hit.ny * SUN[1] + hit.nz * SUN[2]).clamp(min=0)
        lit = AMBIENT + (1 - AMBIENT) * lambert
        for c in range(3):
            channels[c] = torch.where(front, OBJECT_COLOURS[thing.colour][c] * light[c] * lit, channels[c])
    return torch.stack(channels, dim=1)


def _geometry(scene: Scene, rays: _Rays) -> tuple[Tensor, Tensor]:
    depth = torch.where(rays.dy < 0, -rays.oy / rays.dy.clamp(max=-1e-6), torch.inf)
    depth = torch.where(depth < FAR, depth, torch.inf)
    objects = torch.zeros_like(depth, dtype=torch.uint8)
    for number, thing in enumerate(scene.things, start=1):
        hit = _intersect(thing, rays).depth
        objects = torch.where(hit < depth, number, objects).to(torch.uint8)
        depth = torch.minimum(depth, hit)
    return depth, objects


def _contact_shadow(scene: Scene, px: Tensor, pz: Tensor) -> Tensor:
    shadow = torch.ones_like(px)
    for thing in scene.things:
        radius = _footprint(thing)
        distance = torch.sqrt((px - thing.x) ** 2 + (pz - thing.z) ** 2)
        shadow = shadow * (1 - 0.42 * torch.sigmoid((radius * 1.12 - distance) * 6 / radius))
    return shadow


def _footprint(thing: Thing) -> float:
    return {"ball": 0.75, "cube": 0.98, "pillar": 0.66, "cone": 1.1}[thing.shape] * SIZES[thing.size]


def _intersect(thing: Thing, rays: _Rays) -> _Hit:
    """First hit of ``thing`` in its own axes (standing at the origin, yaw undone); normals back in world axes."""
    cos, sin, s = math.cos(thing.yaw), math.sin(thing.yaw), SIZES[thing.size]
    ox, oz = rays.ox - thing.x, rays.oz - thing.z
    local = _Rays(
        cos * ox - sin * oz, rays.oy, sin * ox + cos * oz,
        cos * rays.dx - sin * rays.dz, rays.dy, sin * rays.dx + cos * rays.dz,
    )  # fmt: skip
    if thing.shape == "ball":
        hit = _ball(local, radius=s)
    elif thing.shape == "cube":
        hit = _box(local, half=0.84 * s, height=1.68 * s)
    elif thing.shape == "pillar":
        hit = _cylinder(local, radius=0.66 * s, height=2.3 * s)
    elif thing.shape == "cone":
        hit = _cone(local, radius=1.1 * s, height=2.2 * s)
    else:
        raise ValueError(f"unknown shape {thing.shape!r}")
    return _Hit(hit.depth, cos * hit.nx + sin * hit.nz, hit.ny, -sin * hit.nx + cos * hit.nz)


def _ball(r: _Rays, radius: float) -> _Hit:
    oy = r.oy - radius
    a = r.dx**2 + r.dy**2 + r.dz**2
    b = r.ox * r.dx + oy * r.dy + r.oz * r.dz
    disc = b * b - a * (r.ox**2 + oy**2 + r.oz**2 - radius**2)
    t = (-b - torch.sqrt(disc.clamp(min=0))) / a
    depth = torch.where((disc > 0) & (t > 0), t, torch.inf)
    t = t.clamp(0, FAR)
    return _Hit(depth, (r.ox + t * r.dx) / radius, (oy + t * r.dy) / radius, (r.oz + t * r.dz) / radius)


def _box(r: _Rays, half: float, height: float) -> _Hit:
    near, far, normals = [], [], []
    for o, d, low, high in ((r.ox, r.dx, -half, half), (r.oy, r.dy, 0.0, height), (r.oz, r.dz, -half, half)):
        inverse = 1 / torch.where(d.abs() < 1e-6, 1e-6, d)
        t0, t1 = (low - o) * inverse, (high - o) * inverse
        near.append(torch.minimum(t0, t1))
        far.append(torch.maximum(t0, t1))
        normals.append(-torch.sign(d))
    enter = torch.maximum(torch.maximum(near[0], near[1]), near[2])
    leave = torch.minimum(torch.minimum(far[0], far[1]), far[2])
    depth = torch.where((enter < leave) & (enter > 0), enter, torch.inf)
    n = [torch.where(near[i] == enter, normals[i], 0.0) for i in range(3)]
    return _Hit(depth, n[0], n[1], n[2])


def _cylinder(r: _Rays, radius: float, height: float) -> _Hit:
    a = r.dx**2 + r.dz**2
    b = r.ox * r.dx + r.oz * r.dz
    disc = b * b - a * (r.ox**2 + r.oz**2 - radius**2)
    t = (-b - torch.sqrt(disc.clamp(min=0))) / a
    y = r.oy + t * r.dy
    side = torch.where((disc > 0) & (t > 0) & (y > 0) & (y < height), t, torch.inf)
    top_t = (height - r.oy) / torch.where(r.dy.abs() < 1e-6, 1e-6, r.dy)
    x, z = r.ox + top_t * r.dx, r.oz + top_t * r.dz
    top = torch.where((top_t > 0) & (x * x + z * z < radius**2), top_t, torch.inf)
    depth = torch.minimum(side, top)
    on_top = top < side
    t = depth.clamp(0, FAR)
    nx = torch.where(on_top, 0.0, (r.ox + t * r.dx) / radius)
    nz = torch.where(on_top, 0.0, (r.oz + t * r.dz) / radius)
    return _Hit(depth, nx, on_top.float(), nz)


def _cone(r: _Rays, radius: float, height: float) -> _Hit:
    k2 = (radius / height) ** 2
    q = height - r.oy
    a = r.dx**2 + r.dz**2 - k2 * r.dy**2
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b = r.ox * r.dx + r.oz * r.dz + k2 * q * r.dy
    disc = b * b - a * (r.ox**2 + r.oz**2 - k2 * q * q)
    root = torch.sqrt(disc.clamp(min=0))
    depth = torch.full_like(a, torch.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        y = r.oy + t * r.dy
        depth = torch.minimum(depth, torch.where((disc > 0) & (t > 0) & (y > 0) & (y < height), t, torch.inf))
    t = depth.clamp(0, FAR)
    x, z, slope = r.ox + t * r.dx, r.oz + t * r.dz, math.sqrt(k2)
    norm = torch.sqrt(x * x + z * z).clamp(min=1e-6) * math.sqrt(1 + k2)
    return _Hit(depth, x / norm, torch.full_like(x, slope / math.sqrt(1 + k2)), z / norm)
