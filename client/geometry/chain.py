"""A chain at one moment: the picture of each stage, and what geometry makes of them up to there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from riverrun.client.geometry.cameras import Camera
from riverrun.client.geometry.cloud import VoxelCloud
from riverrun.client.geometry.picture import chain_picture, cloud_picture, depth_picture
from riverrun.client.geometry.views import Views
from riverrun.client.types import Frame

EVERY = 4
"""Of so many frames one goes into the cloud: neighbours show the same."""


class ChainShot:
    """Takes the frames of all ports, and draws the newest one that has passed the whole chain.

    pictures: what is written above the frames of each port. What waits for its geometry is bounded as in `Views`.
    """

    def __init__(self, pictures: Mapping[str, str]) -> None:
        self._pictures = pictures
        self._views, self._cloud = Views(), VoxelCloud()
        self._path: list[Camera] = []
        self._waiting: dict[int, dict[str, np.ndarray]] = {}
        self._shown: dict[str, np.ndarray] = {}

    def add(self, frame: Frame) -> None:
        if frame.port in self._pictures:
            self._waiting.setdefault(frame.number, {})[self._pictures[frame.port]] = frame.array
        view = self._views.add(frame)
        if view is None:
            return
        shown = self._waiting.pop(view.number, {})
        self._waiting = {number: parts for number, parts in self._waiting.items() if number > view.number}
        if len(shown) == len(self._pictures):
            self._shown = {**shown, "depth": depth_picture(view.depth)}
        if view.number % EVERY == 0:
            self._path.append(view.camera)
            self._cloud.add(view)

    def draw(self) -> Image.Image | None:
        """None before a frame has passed the whole chain."""
        if not self._shown:
            return None
        cloud = cloud_picture(self._cloud.points(), self._path)
        return chain_picture({**self._shown, "points and camera path": cloud})
