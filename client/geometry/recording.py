"""A recording for the Rerun viewer: picture, depth, camera and cloud on one timeline (extra `viz`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from riverrun.client.export import ExportError
from riverrun.client.geometry.cloud import Points
from riverrun.client.geometry.views import View

MOST_POINTS = 5_000
"""Of one frame's own points, an even choice: the cloud has them all."""


class Recording:
    """An `.rrd` file, written as frames come. Timelines: `frame` by number and `media` in seconds."""

    def __init__(self, path: Path) -> None:
        try:
            import rerun
        except ImportError:
            raise ExportError("a recording needs the extra viz: pip install 'riverrun[viz]'") from None
        self._rr = rerun
        self._stream: Any = rerun.RecordingStream("riverrun")
        self._stream.save(str(path))
        self._stream.log("world", rerun.ViewCoordinates.RDF, static=True)

    def add(self, view: View) -> None:
        rr, stream = self._rr, self._stream
        stream.set_time("frame", sequence=view.number)
        stream.set_time("media", duration=view.seconds)
        pose, pinhole = view.camera.camera_to_world, view.intrinsics
        stream.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        resolution = [pinhole.width, pinhole.height]
        stream.log("world/camera/picture", rr.Pinhole(image_from_camera=pinhole.matrix, resolution=resolution))
        stream.log("world/camera/picture", rr.Image(view.image).compress(jpeg_quality=85))
        stream.log("world/camera/depth", rr.Pinhole(image_from_camera=pinhole.matrix, resolution=resolution))
        stream.log("world/camera/depth", rr.DepthImage(view.depth, meter=1.0))
        step = max(1, view.depth.size // MOST_POINTS)
        xyz, rgb = view.points.reshape(-1, 3)[::step], view.image.reshape(-1, 3)[::step]
        stream.log("world/seen", rr.Points3D(xyz, colors=rgb))

    def cloud(self, points: Points) -> None:
        """The whole cloud as it is at the last frame's time."""
        if len(points):
            self._stream.log("world/cloud", self._rr.Points3D(np.asarray(points.xyz), colors=points.rgb))

    def close(self) -> None:
        self._stream.disconnect()
