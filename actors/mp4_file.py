"""An MP4 that outlives its writer: encoded in parts of a fixed length, joined at the end without encoding again.

A part is a file of its own with its first frame's number, renamed when it is whole and on disk. Where a part begins
depends on the frame's number alone, so a film that was written by several has the bytes of one that was not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

OPTIONS = {"preset": "veryfast", "crf": "18", "bf": "0", "threads": "1", "mbtree": "0"}
"""No B-frames: packets leave in order, so parts can be joined. The rest is for equal bytes: x264's depend on its number
of threads (more are no quicker here), and with its macroblock tree now and then differ where AVX-512 is."""

MOST_FRAMES, LEAST_FRAMES = 24, 4
PART_BYTES = 64 << 20
"""Of a part's frames before they are encoded: whoever made them keeps them until the part is whole."""


def part_frames(shape: tuple[int, int]) -> int:
    """Frames in a part, of pictures of (H, W)."""
    return max(LEAST_FRAMES, min(MOST_FRAMES, PART_BYTES // (3 * shape[0] * shape[1])))


class Mp4File:
    """H.264, yuv420p. key: names the film's parts beside it; whoever comes with the same goes on. Raises OSError."""

    def __init__(self, path: Path, fps: float, shape: tuple[int, int], key: str) -> None:
        self._path, self._shape = path, shape
        self._rate = Fraction(fps).limit_denominator(1001)
        self._each = part_frames(shape)
        self._parts = path.with_name(f".{path.stem}.{key}.parts")
        self._parts.mkdir(parents=True, exist_ok=True)
        self.durable = sum(1 for _ in self._whole()) * self._each
        self._next = self.durable
        self._open: _Part | None = None

    def add(self, number: int, pixels: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3]. Raises ValueError for another one."""
        if number != self._next:
            raise ValueError(f"frame {number} came where {self._next} was due")
        if self._open is None:
            self._open = _Part(self._parts / f"{number:09d}.mp4", self._rate, self._shape)
        self._open.add(pixels)
        self._next += 1
        if self._next % self._each == 0:
            self._end_part()

    def close(self, whole: bool) -> None:
        """whole: the film is put where it was asked for; else nothing stays."""
        try:
            if whole:
                self._end_part()
                self._join()
        finally:
            self.leave()
            shutil.rmtree(self._parts, ignore_errors=True)

    def leave(self) -> None:
        """Another goes on with the parts that are whole."""
        if self._open:
            self._open.drop()
            self._open = None

    def _end_part(self) -> None:
        if self._open:
            self._open.end()
            self.durable, self._open = self._next, None

    def _whole(self) -> Iterator[Path]:
        """The parts that are there, from the first on without a gap."""
        first = 0
        while (part := self._parts / f"{first:09d}.mp4").exists():
            yield part
            first += self._each

    def _join(self) -> None:
        partial = self._path.with_name(f".{self._path.stem}.{os.urandom(4).hex()}.mp4")
        try:
            with av.open(str(partial), "w", options={"movflags": "+faststart"}) as film:
                stream = None
                for number, part in enumerate(self._whole()):
                    with av.open(str(part)) as read:
                        source = read.streams.video[0]
                        stream = stream or film.add_stream_from_template(source)
                        begins = int(number * self._each / self._rate / source.time_base)
                        for packet in read.demux(source):
                            if packet.dts is not None:
                                packet.pts, packet.dts = packet.pts + begins, packet.dts + begins
                                packet.stream = stream
                                film.mux(packet)
            _sync(partial)
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)


class _Part:
    """Under another name until it is whole, as a second writer may be at the same part."""

    def __init__(self, path: Path, rate: Fraction, shape: tuple[int, int]) -> None:
        self._path, self._partial = path, path.with_name(f"{path.stem}.{os.urandom(4).hex()}.tmp")
        self._container = av.open(str(self._partial), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate, options=OPTIONS)
        self._stream.height, self._stream.width = shape
        self._stream.pix_fmt = "yuv420p"

    def add(self, pixels: np.ndarray) -> None:
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))

    def end(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()
        _sync(self._partial)
        self._partial.replace(self._path)

    def drop(self) -> None:
        self._container.close()
        self._partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
