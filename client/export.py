"""Frames into files: MP4 (H.264) and folders of PNGs."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import numpy as np
from PIL import Image

from riverrun.client.types import TICKS_PER_SECOND, Frame

READABLE = 256
"""Pixels the longer side of a picture should have for a person; smaller ones are enlarged by a whole factor."""


class ExportError(ValueError):
    """These frames can't be written so; the message says why."""


class Writer(Protocol):
    """Takes the frames of one port. `close` makes the file complete. frames: how many were written."""

    path: Path

    @property
    def frames(self) -> int: ...

    def add(self, frame: Frame) -> None: ...

    def close(self) -> None: ...


def written(writer: Writer) -> list[Path]:
    """What a writer has made: what it says itself, where that is not the one file or folder at its path."""
    return getattr(writer, "written", [writer.path])


def is_picture(array: np.ndarray) -> bool:
    """Whether it is uint8 [H, W, 3]."""
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


class Both:
    """Two writers of one port. path, frames: the first one's; `written`: what both have made."""

    def __init__(self, first: Writer, second: Writer) -> None:
        self.path, self._first, self._second = first.path, first, second

    @property
    def frames(self) -> int:
        return self._first.frames

    @property
    def written(self) -> list[Path]:
        return [path for each in (self._first, self._second) for path in written(each)]

    def add(self, frame: Frame) -> None:
        self._first.add(frame)
        self._second.add(frame)

    def close(self) -> None:
        self._first.close()
        self._second.close()


def writer_for(path: Path, fps: float) -> Writer:
    """An MP4 for a path that ends in .mp4, a folder of PNGs for one without a suffix. Raises ExportError."""
    if path.suffix == ".mp4":
        return Mp4Writer(path, fps)
    if path.suffix:
        raise ExportError(f"--out must end in .mp4, or be a folder for PNGs, got {path.name!r}")
    return PngFolder(path)


def zoom(height: int, width: int) -> int:
    """The whole factor that brings a small picture to about `READABLE` pixels; 1 for one that is large enough."""
    return max(1, READABLE // max(height, width))


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [H * factor, W * factor, 3], Lanczos (nearest would show the pixels, not the scene)."""
    if factor == 1:
        return picture
    height, width = picture.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width * factor, height * factor), Image.Resampling.LANCZOS))


class Mp4Writer:
    """H.264 in yuv420p with the frames' own times, the first at 0; small pictures are enlarged so that one sees them.

    The file is written beside its path and put there by `close`, so a path never holds half a film. fps is what
    players are told; what counts are the frames' times. `frames` counts what was written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.frames = path, 0
        self._part = path.with_name(path.name + ".part")
        self._fps = Fraction(fps).limit_denominator(1001)
        self._start = 0
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add(self, frame: Frame) -> None:
        """Raises ExportError for what is no picture, or one of another size than the first."""
        if not is_picture(frame.array):
            raise ExportError(
                f"port {frame.port!r} carries {frame.array.dtype} {list(frame.array.shape)}, not pictures;"
                " give a folder, its arrays are written as .npy"
            )
        picture = even(enlarge(frame.array, zoom(*frame.array.shape[:2])))
        ticks = round(frame.seconds * TICKS_PER_SECOND)
        if self._stream is None:
            self._start = ticks
            self._open(*picture.shape[:2])
        assert self._stream is not None
        if picture.shape[:2] != (self._stream.height, self._stream.width):
            raise ExportError(f"frame {frame.number} of port {frame.port!r} has another size than those before")
        encoded = av.VideoFrame.from_ndarray(picture, format="rgb24")
        encoded.pts, encoded.time_base = ticks - self._start, Fraction(1, TICKS_PER_SECOND)
        self._mux(encoded)
        self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds. Without a frame there is no file."""
        if self._container is None:
            return
        self._mux(None)
        self._container.close()
        self._container = None
        os.replace(self._part, self.path)

    def _open(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(
            "libx264", rate=self._fps, options={"crf": "18", "preset": "veryfast"}
        )
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        assert self._container is not None
        assert self._stream is not None
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


class Segments:
    """MP4s of `frames_each` frames (`demo-00001.mp4` …) of an endless film; the newest `keep` stay: `written`."""

    def __init__(self, path: Path, fps: float, frames_each: int, keep: int) -> None:
        self.path, self.frames = path, 0
        self._fps, self._frames_each, self._keep = fps, frames_each, keep
        self._current: Mp4Writer | None = None
        self.written: list[Path] = []

    def add(self, frame: Frame) -> None:
        if self._current is None:
            name = f"{self.path.stem}-{self.frames // self._frames_each + 1:05d}{self.path.suffix}"
            self._current = Mp4Writer(self.path.with_name(name), self._fps)
        self._current.add(frame)
        self.frames += 1
        if self._current.frames == self._frames_each:
            self.close()

    def close(self) -> None:
        if self._current is None:
            return
        self._current.close()
        self.written.append(self._current.path)
        self._current = None
        while len(self.written) > self._keep:
            self.written.pop(0).unlink(missing_ok=True)


class PngFolder:
    """One file a frame, named by its number: PNG for pictures at their own size, .npy for any other array."""

    def __init__(self, path: Path) -> None:
        self.path, self.frames = path, 0

    def add(self, frame: Frame) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        name = self.path / f"{frame.number:06d}"
        if frame.array.dtype == np.uint8 and frame.array.ndim == 3:
            Image.fromarray(frame.array).save(name.with_suffix(".png"), compress_level=1)
        else:
            np.save(name.with_suffix(".npy"), frame.array)
        self.frames += 1

    def close(self) -> None:
        """Nothing is left to do: every file was complete when it was written."""


def even(picture: np.ndarray) -> np.ndarray:
    """yuv420p has half as many colour samples: an odd side repeats its last row or column."""
    height, width = picture.shape[:2]
    return (
        np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else picture
    )
