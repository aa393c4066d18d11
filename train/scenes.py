"""Scenes of the tiny world: what is in them, how their camera moves, and how they are drawn by lot.

World axes: x and z span the floor, y points up, the floor is y = 0, one unit is roughly half an object. Time t is
counted in frames (16 a second) and may be any real number: every motion is closed form, so a scene can be entered
anywhere and goes on for ever.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

OBJECT_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.10),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.95, 0.88, 0.10),
    "green": (0.12, 0.72, 0.18),
    "cyan": (0.08, 0.80, 0.85),
    "blue": (0.14, 0.26, 0.92),
    "purple": (0.62, 0.16, 0.85),
}
SHAPES = ("ball", "cube", "pillar", "cone")
SIZES: dict[str, float] = {"large": 1.0, "small": 0.76}
# Floors and skies are pale or dark, objects saturated (see `measure.label_pixels`): a picture alone shows which pixels
# are the object's.
FLOORS: dict[str, tuple[float, float, float]] = {
    "grass": (0.42, 0.58, 0.36),
    "sand": (0.80, 0.72, 0.57),
    "snow": (0.83, 0.86, 0.90),
    "stone": (0.46, 0.46, 0.49),
}
MOTIONS = ("still", "orbit left", "orbit right", "in and out", "up and down")


@dataclass(frozen=True)
class Sky:
    """Colour at the zenith, at the horizon, and the light (RGB factors) that falls on everything."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    light: tuple[float, float, float]


SKIES: dict[str, Sky] = {
    "day": Sky((0.56, 0.69, 0.80), (0.82, 0.88, 0.93), (1.0, 1.0, 1.0)),
    "sunset": Sky((0.62, 0.46, 0.58), (0.95, 0.76, 0.72), (0.95, 0.86, 0.84)),
    "night": Sky((0.07, 0.08, 0.20), (0.20, 0.22, 0.38), (0.82, 0.84, 0.90)),
}


@dataclass(frozen=True)
class Thing:
    """One object standing on the floor at (x, z), turned by ``yaw`` radians."""

    colour: str
    shape: str
    size: str = "large"
    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0


@dataclass(frozen=True)
class Camera:
    """A camera that looks at ``target`` above the origin; ``motion`` is one of MOTIONS.

    ``azimuth`` (radians) is where it stands at t = 0, ``phase`` (radians) where a cyclic motion begins.
    """

    motion: str
    azimuth: float = 0.0
    distance: float = 4.3
    height: float = 1.7
    target: float = 0.85
    phase: float = 0.0

    def position(self, t: float) -> tuple[float, float, float]:
        """Where the camera stands at frame ``t``."""
        azimuth, distance, height = self.azimuth, self.distance, self.height
        swing = math.sin(2 * math.pi * t / CYCLE_FRAMES + self.phase)
        if self.motion == "orbit left":
            azimuth -= ORBIT_STEP * t
        elif self.motion == "orbit right":
            azimuth += ORBIT_STEP * t
        elif self.motion == "in and out":
            distance *= 1.0 - 0.2 * swing
        elif self.motion == "up and down":
            height *= 1.0 + 0.55 * swing
        return distance * math.sin(azimuth), height, distance * math.cos(azimuth)


ORBIT_STEP = math.radians(1.5)
CYCLE_FRAMES = 96.0


@dataclass(frozen=True)
class Scene:
    """Everything a picture depends on, besides time, resolution and lens."""

    things: tuple[Thing, ...]
    floor: str
    sky: str
    camera: Camera


def is_held_out(thing: Thing, floor: str) -> bool:
    """Whether this (colour, shape, floor) is kept for measuring: 1 in 7, at most one floor for a colour and shape."""
    colour = list(OBJECT_COLOURS).index(thing.colour)
    return (colour + 2 * SHAPES.index(thing.shape) + 3 * list(FLOORS).index(floor)) % 7 == 0


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """One scene with one object, from the training split or from the held-out combinations.

    Every scene begins from about the same side, and cyclic motions at their middle: what a prompt leaves open is kept
    small, so that a few steps of a small model give one sharp picture and not the mean of many.
    """
    camera = Camera(
        motion=rng.choice(MOTIONS),
        azimuth=rng.uniform(-0.2, 0.2),
        distance=rng.uniform(4.2, 4.4),
        height=rng.uniform(1.65, 1.8),
    )
    return dress(rng, camera, held_out)


def dress(rng: random.Random, camera: Camera, held_out: bool = False) -> Scene:
    """A scene around a given camera path: object, floor and sky drawn by lot (see :func:`sample_scene`)."""
    while True:
        thing = Thing(
            colour=rng.choice(list(OBJECT_COLOURS)),
            shape=rng.choice(SHAPES),
            size=rng.choice(list(SIZES)),
            x=rng.uniform(-0.08, 0.08),
            z=rng.uniform(-0.08, 0.08),
            yaw=rng.uniform(0.4, 0.7),
        )
        scene = Scene((thing,), rng.choice(list(FLOORS)), rng.choice(list(SKIES)), camera)
        if is_held_out(thing, scene.floor) == held_out:
            return scene


def twin(rng: random.Random, scene: Scene) -> Scene:
    """Another scene filmed by the same camera at the same phase: what a prompt switch asks for.

    Half the time only the object changes, else floor and sky are drawn anew too; place and yaw are kept.
    """
    old = scene.things[0]
    while True:
        other = dress(rng, scene.camera)
        thing = replace(other.things[0], x=old.x, z=old.z, yaw=old.yaw)
        keep = rng.random() < 0.5
        floor, sky = (scene.floor, scene.sky) if keep else (other.floor, other.sky)
        if thing.colour != old.colour and not is_held_out(thing, floor):
            return Scene((thing,), floor, sky, scene.camera)
