"""Where a job's frames go: an MP4 file, or a folder of PNGs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from fractions import Fraction
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlparse

import av
import numpy as np
from PIL import Image

from riverrun.graphs.items import Frame
from riverrun.models.base import BadRequest


class Writer(Protocol):
    """One port's file or folder. Called from one thread at a time."""

    def add(self, number: int, pixels: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3]."""

    def close(self, whole: bool) -> None:
        """Done; with `whole` the result is put where it was asked for, else what is unfinished is removed."""


def writer_for(uri: str, fps: float, shape: tuple[int, int] | None, jobs_dir: str = "") -> Writer:
    """A writer of frames of (H, W). Raises BadRequest for a URI it can't write to or frames it can't hold."""
    path, is_folder = sink_path(uri, jobs_dir)
    if shape is None:
        raise BadRequest(f"sink {uri}: only ports that carry frames can be written to files")
    if not is_folder and (shape[0] % 2 or shape[1] % 2):
        raise BadRequest(f"sink {uri}: H.264 needs even height and width, got {shape[0]} x {shape[1]}; use a folder")
    try:
        return PngFolder(path) if is_folder else Mp4File(path, fps, shape)
    except OSError as error:
        raise BadRequest(f"sink {uri}: {error.strerror or error}") from error


def sink_path(uri: str, jobs_dir: str = "") -> tuple[Path, bool]:
    """The path of a sink and whether it is a folder.

    Raises BadRequest unless it is an absolute .mp4 or folder, below `jobs_dir` if there is one.
    """
    try:
        parsed = urlparse(uri)
    except ValueError as error:
        raise BadRequest(f"sink {uri!r}: {error}") from None
    path = unquote(parsed.path)
    if "\0" in path or parsed.scheme != "file" or parsed.netloc not in ("", "localhost") or not path.startswith("/"):
        raise BadRequest(f"sink {uri!r} must be file:///path/name.mp4, or file:///path/ for a folder of PNGs")
    if not path.endswith(("/", ".mp4")):
        raise BadRequest(f"sink {uri!r} must end in .mp4, or in / for a folder of PNGs")
    is_folder = path.endswith("/")
    return (_below(jobs_dir, Path(path), is_folder, uri) if jobs_dir else Path(path)), is_folder


def _below(jobs_dir: str, path: Path, is_folder: bool, uri: str) -> Path:
    """The path without links. Raises BadRequest where it leads out of `jobs_dir`."""
    root = Path(jobs_dir).expanduser().resolve()
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # links that lead in circles
        real = Path("/")
    if ".." in path.parts or not (root in real.parents or (is_folder and real == root)):
        raise BadRequest(
            f"sink {uri!r} must be below file://{quote(str(root))}/ (jobs_dir), with no '..' and no link out of it"
        )
    return real


class Mp4File:
    """H.264, yuv420p. Written beside its final name and renamed when whole."""

    def __init__(self, path: Path, fps: float, shape: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._partial = path, path.with_name(f".{path.stem}.{os.urandom(4).hex()}.mp4")
        self._container = av.open(str(self._partial), "w", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "18"})
        self._stream.height, self._stream.width = shape
        self._stream.pix_fmt = "yuv420p"

    def add(self, number: int, pixels: np.ndarray) -> None:
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))

    def close(self, whole: bool) -> None:
        try:
            if whole:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()
        if whole:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)


class PngFolder:
    """frame_000000.png and so on; those of an unfinished job stay."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def add(self, number: int, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(self._folder / f"frame_{number:06d}.png", compress_level=1)

    def close(self, whole: bool) -> None:
        """Each picture is a file of its own, so there is nothing to do."""


class FileSink:
    """The `Sink` of a job: each port's frames to its writer, in a thread, since encoding takes its time."""

    def __init__(self, writers: Mapping[str, Writer], pool: Executor) -> None:
        self._writers, self._pool = writers, pool
        self.frames: dict[str, int] = dict.fromkeys(writers, 0)

    async def write(self, frame: Frame) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, self._writers[frame.port].add, frame.number, frame.array)
        self.frames[frame.port] += 1

    async def close(self, whole: bool) -> None:
        """Closes every writer, even if one fails."""
        loop = asyncio.get_running_loop()
        closes = [loop.run_in_executor(self._pool, writer.close, whole) for writer in self._writers.values()]
        for result in await asyncio.gather(*closes, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
