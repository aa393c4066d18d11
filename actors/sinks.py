"""Where a job's frames go: an MP4 file, or a folder of PNGs."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlparse

import numpy as np
from PIL import Image

from riverrun.actors.mp4_file import Mp4File
from riverrun.graphs.items import Frame
from riverrun.models.base import BadRequest

NOTED = 16
"""Pictures between two notes of how many there are: what made them keeps as many."""


class Writer(Protocol):
    """One port's file or folder. Called from one thread at a time. durable: frames that are on disk, whatever happens;
    a writer of the same key begins after them."""

    durable: int

    def add(self, number: int, pixels: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3]."""

    def close(self, whole: bool) -> None:
        """Done; with `whole` the result is put where it was asked for, else what is unfinished is removed."""

    def leave(self) -> None:
        """Done here; another writer goes on."""


def writer_for(uri: str, fps: float, shape: tuple[int, int] | None, jobs_dir: str = "", key: str = "") -> Writer:
    """A writer of frames of (H, W). key: of the job, under which another goes on with what is there; "": nobody will.

    Raises BadRequest for a URI it can't write to or frames it can't hold.
    """
    key = key or os.urandom(6).hex()
    path, is_folder = sink_path(uri, jobs_dir)
    if shape is None:
        raise BadRequest(f"sink {uri}: only ports that carry frames can be written to files")
    if not is_folder and (shape[0] % 2 or shape[1] % 2):
        raise BadRequest(f"sink {uri}: H.264 needs even height and width, got {shape[0]} x {shape[1]}; use a folder")
    try:
        return PngFolder(path, key) if is_folder else Mp4File(path, fps, shape, key)
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


class PngFolder:
    """frame_000000.png and so on; those of an unfinished job stay. key: names the count of those that are on disk."""

    def __init__(self, folder: Path, key: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._note = folder, folder / f".{key}.frames"
        self.durable = int(self._note.read_text()) if self._note.exists() else 0
        self._next = self.durable

    def add(self, number: int, pixels: np.ndarray) -> None:
        """The next frame. Raises ValueError for another one."""
        if number != self._next:
            raise ValueError(f"frame {number} came where {self._next} was due")
        image = io.BytesIO()
        Image.fromarray(pixels).save(image, "png", compress_level=1)
        _write(self._folder / f"frame_{number:06d}.png", image.getvalue())
        self._next += 1
        if self._next % NOTED == 0:
            self._note_all()

    def close(self, whole: bool) -> None:
        """Each picture is a file of its own, so only the count goes."""
        self._note.unlink(missing_ok=True)

    def leave(self) -> None:
        """Another goes on, and maybe has done so: nothing is written any more."""

    def _note_all(self) -> None:
        """Raises FileNotFoundError where another has gone on, and is done."""
        if self.durable:
            self._note.stat()
        _write(self._note, str(self._next).encode())
        self.durable = self._next


def _write(path: Path, data: bytes) -> None:
    """Whole and on disk, or not at all."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class FileSink:
    """The `Sink` of a job: each port's frames to its writer, in a thread, since encoding takes its time.

    frames: written so far, by port, those included that an earlier writer has left on disk.
    """

    def __init__(self, writers: Mapping[str, Writer], pool: Executor) -> None:
        self._writers, self._pool = writers, pool
        self.frames: dict[str, int] = {port: writer.durable for port, writer in writers.items()}

    async def write(self, frame: Frame) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, self._writers[frame.port].add, frame.number, frame.array)
        self.frames[frame.port] += 1

    def durable(self, port: str) -> int:
        """So many frames of a port are on disk, and need not be made again."""
        return self._writers[port].durable

    async def close(self, whole: bool) -> None:
        """Closes every writer, even if one fails."""
        await self._each([partial(writer.close, whole) for writer in self._writers.values()])

    async def leave(self) -> None:
        """As `close`, for another to go on with."""
        await self._each([writer.leave for writer in self._writers.values()])

    async def _each(self, works: Sequence[Callable[[], None]]) -> None:
        loop = asyncio.get_running_loop()
        ends = [loop.run_in_executor(self._pool, work) for work in works]
        for result in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
