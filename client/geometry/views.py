"""What a geometry stage says of one frame, put together from the ports it comes on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from riverrun.client.geometry.cameras import Camera, Intrinsics
from riverrun.client.types import Frame

PORTS = ("image", "depth", "points", "camera", "confidence")
"""Of a stage of geometry; a graph may give its outputs other names."""

MOST_OPEN = 4096


@dataclass(frozen=True, eq=False)
class View:
    """One frame's geometry; the world's axes are those of the first camera, and its unit is unknown.

    image: uint8 [H, W, 3], as the network saw it. depth: float32 [H, W], along the camera's z. points: float32
    [H, W, 3] of the world. confidence: float32 [H, W], above 1. seconds: media time. original: uint8, the picture
    before the stage made it its own size, where somebody tells it.
    """

    number: int
    seconds: float
    image: np.ndarray
    depth: np.ndarray
    points: np.ndarray
    camera: Camera
    confidence: np.ndarray
    original: np.ndarray | None = None

    @property
    def intrinsics(self) -> Intrinsics:
        """Of `image`."""
        return self.camera.intrinsics(*self.depth.shape)


class Views:
    """Joins ports by frame number. What lies here is bounded: a port that stays behind by `MOST_OPEN` is an error."""

    def __init__(self, ports: Collection[str] = PORTS, originals: str | None = None) -> None:
        """ports: the names under which the graph gives them out, in the order of `PORTS`. originals: the port of
        pictures before they were made the stage's own size; a view waits for its own."""
        self._names = dict(zip(ports, PORTS, strict=True))
        if originals is not None:
            self._names[originals] = "original"
        self._open: dict[int, dict[str, np.ndarray]] = {}

    def original(self, number: int, picture: np.ndarray) -> None:
        """The picture that was sent as that frame. Told before its geometry comes."""
        self._open.setdefault(number, {})["original"] = picture

    def add(self, frame: Frame) -> View | None:
        """The view that is complete with this frame. Frames of other ports are none of its business."""
        name = self._names.get(frame.port)
        if name is None:
            return None
        parts = self._open.setdefault(frame.number, {})
        parts[name] = frame.array
        if all(wanted in parts for wanted in self._names.values()):
            del self._open[frame.number]
            camera = Camera(parts.pop("camera"))
            return View(frame.number, frame.seconds, camera=camera, **parts)
        if len(self._open) > MOST_OPEN:
            missing = sorted(set(self._names.values()) - set(next(iter(self._open.values()))))
            raise ValueError(f"{MOST_OPEN} frames wait for {', '.join(missing)}: the stream does not receive them")
        return None
