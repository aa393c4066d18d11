"""Geometry to look at: depth in colours, a cloud with the camera's path, and one row of a chain's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from riverrun.client.geometry.cameras import Camera
from riverrun.client.geometry.cloud import Points

PAPER, INK, PATH = (255, 255, 255), (26, 26, 26), (217, 72, 15)
_RAMP = np.array(  # near to far
    [(253, 231, 37), (122, 209, 81), (34, 168, 132), (42, 120, 142), (65, 68, 135), (68, 1, 84)], np.float64
)


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """depth float [H, W] -> uint8 [H, W, 3], near is yellow and far is violet. Outliers don't flatten the rest."""
    inverse = 1 / np.maximum(np.nan_to_num(depth.astype(np.float64), nan=np.inf), 1e-9)
    near, far = np.percentile(inverse, 98), np.percentile(inverse, 2)
    share = np.clip((near - inverse) / max(near - far, 1e-12), 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(share.astype(int), len(_RAMP) - 2)
    part = (share - low)[..., None]
    return ((1 - part) * _RAMP[low] + part * _RAMP[low + 1]).round().astype(np.uint8)


def cloud_picture(
    points: Points, path: Sequence[Camera], height: int = 384, width: int = 512, tilt: float = 35.0, turn: float = -25.0
) -> np.ndarray:
    """uint8 [height, width, 3]: the cloud from behind and above the first camera, the path in orange with its
    beginning as a ring. tilt, turn: of the view, in degrees."""
    canvas = np.full((height, width, 3), 255, np.uint8)
    stands = np.array([camera.camera_to_world[:3, 3] for camera in path]).reshape(-1, 3)
    if not len(points):
        return canvas
    centre = np.median(points.xyz, axis=0)
    spread = np.percentile(np.abs(points.xyz - centre), 97, axis=0)
    seen = (np.abs(points.xyz - centre) <= 1.6 * spread + 1e-9).all(axis=1)  # a few strays would make it all small
    view = _rotation(tilt, turn)
    xyz, rgb = (points.xyz[seen] - centre) @ view.T, points.rgb[seen]
    lines = (stands - centre) @ view.T
    both = np.concatenate([xyz[:, :2], lines[:, :2]])
    low, high = both.min(axis=0), both.max(axis=0)
    scale = 0.92 * min(width / max(high[0] - low[0], 1e-9), height / max(high[1] - low[1], 1e-9))
    middle = (low + high) / 2

    def place(at: np.ndarray) -> np.ndarray:
        return (at[:, :2] - middle) * scale + (width / 2, height / 2)

    order = np.argsort(-xyz[:, 2])  # far ones first, near ones over them
    spots = place(xyz)[order].round().astype(int)
    size = max(1, round(0.7 * (height * width / max(len(spots), 1)) ** 0.5 / 2))
    for down in range(-size + 1, size + 1):
        for right in range(-size + 1, size + 1):
            x, y = spots[:, 0] + right, spots[:, 1] + down
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            canvas[y[inside], x[inside]] = rgb[order][inside]
    picture = Image.fromarray(canvas)
    if len(lines):
        draw = ImageDraw.Draw(picture)
        track = [tuple(spot) for spot in place(lines)]
        if len(track) > 1:
            draw.line(track, fill=PATH, width=3)
        (x, y), r = track[0], 6
        draw.ellipse((x - r, y - r, x + r, y + r), outline=PATH, width=3)
    return np.asarray(picture)


def chain_picture(parts: Mapping[str, np.ndarray], height: int = 256) -> Image.Image:
    """One row of pictures, uint8 [H, W, 3], each under its name; small ones are enlarged without smoothing."""
    font, pad, head = ImageFont.load_default(16), 10, 30
    shown = []
    for name, array in parts.items():
        picture = Image.fromarray(array)
        size = round(picture.width * height / picture.height), height
        how = Image.Resampling.NEAREST if height >= picture.height else Image.Resampling.BOX
        shown.append((name, picture.resize(size, how)))
    width = sum(picture.width + pad for _, picture in shown) + pad
    sheet = Image.new("RGB", (width, height + head + pad), PAPER)
    draw, x = ImageDraw.Draw(sheet), pad
    for name, picture in shown:
        draw.text((x, 6), name, INK, font)
        sheet.paste(picture, (x, head))
        x += picture.width + pad
    return sheet


def _rotation(tilt: float, turn: float) -> np.ndarray:
    """From OpenCV's world axes to those of a view from above: float64 [3, 3]."""
    a, b = np.deg2rad(tilt), np.deg2rad(turn)
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    return about_x @ about_y
