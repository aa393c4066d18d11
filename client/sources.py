"""Frames to put into a graph: films, folders of pictures and cameras, one at a time and with their own times."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from riverrun.client.types import TICKS_PER_SECOND

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
CAMERA = "camera:"
DEFAULT_FPS = 25.0


class SourceError(ValueError):
    """There is nothing to read, or not what it says; the message names the file and the frame."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One frame. array: uint8 [H, W, 3] RGB, as it is stored (a film's rotation is not applied).

    pts, time_base: its time as the source has it, rising. seconds: since the first frame.
    """

    array: np.ndarray
    pts: int
    time_base: Fraction
    seconds: float


@dataclass(frozen=True)
class Look:
    """How a film wants to be shown, so that another can be like it. rotation: degrees counter-clockwise.

    aspect: of a pixel, None for squares. colours: matrix, range, primaries and transfer, by FFmpeg's numbers.
    """

    fps: Fraction
    rotation: int = 0
    aspect: Fraction | None = None
    colours: tuple[int, int, int, int] | None = None


class Source(Protocol):
    """Iterated once. path: a film whose sound belongs to the frames; None: there is none. size: (H, W) of the first
    frame. is_live: frames that nobody took in time are of no use any more. total: frames, if that is known."""

    path: Path | None
    look: Look
    size: tuple[int, int]
    is_live: bool
    total: int | None

    def __iter__(self) -> Iterator[Picture]: ...

    def close(self) -> None: ...


def open_source(text: str, fps: float = DEFAULT_FPS) -> Source:
    """A film's path, a folder of pictures (at `fps`), `camera:/dev/video0`, or a URL (live). Raises SourceError."""
    if text.startswith(CAMERA):
        return FilmSource(text.removeprefix(CAMERA), is_live=True, form="v4l2")
    if "://" in text:
        return FilmSource(text, is_live=True)
    if Path(text).is_dir():
        return FolderSource(Path(text), fps)
    if not Path(text).is_file():
        raise SourceError(f"there is no file {text}")
    return FilmSource(text)


class FilmSource:
    """A film, or anything else that FFmpeg reads. form: its demuxer's name, where FFmpeg can't tell."""

    def __init__(self, text: str, is_live: bool = False, form: str | None = None) -> None:
        self.name, self.is_live = Path(text).name, is_live
        self._frames = self._decoded(text, form)
        first = next(self._frames, None)
        if first is None:
            self.close()
            raise SourceError(f"{self.name} has no frames")
        self._ahead: Iterator[av.VideoFrame] = iter([first])
        self.path = None if is_live else Path(text)
        self.size = (first.height, first.width)
        self.total = self._stream.frames or None
        self.look = self._look(first)

    def __iter__(self) -> Iterator[Picture]:
        """Raises SourceError where a frame can't be read; those before it were given."""
        clock = _Clock(self._stream.time_base or Fraction(1, TICKS_PER_SECOND), self.look.fps)
        for frame in chain(self._ahead, self._frames):
            yield clock.picture(frame.to_ndarray(format="rgb24"), frame.pts)

    def close(self) -> None:
        self._container.close()

    def _decoded(self, text: str, form: str | None) -> Iterator[av.VideoFrame]:
        try:
            self._container = av.open(text, format=form, timeout=10.0 if self.is_live else None)
        except (av.FFmpegError, OSError) as error:
            raise SourceError(f"{self.name} can't be read: {_why(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{self.name} has no video")
        self._stream = self._container.streams.video[0]
        return self._each()

    def _each(self) -> Iterator[av.VideoFrame]:
        number = packets = 0
        try:
            for packet in self._container.demux(self._stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    yield frame
                    number += 1
        except (av.FFmpegError, OSError) as error:
            raise SourceError(f"{self.name}: frame {number} can't be read: {_why(error)}") from None
        if packets < (told := self._stream.frames):  # a film that was cut off ends like a whole one else
            raise SourceError(f"{self.name}: frame {number} can't be read: the file ends there, it says {told} frames")

    def _look(self, first: av.VideoFrame) -> Look:
        stream, codec = self._stream, self._stream.codec_context
        aspect = stream.sample_aspect_ratio
        colours = (int(codec.colorspace), int(codec.color_range), int(codec.color_primaries), int(codec.color_trc))
        fps = stream.average_rate or stream.base_rate or Fraction(DEFAULT_FPS)
        return Look(fps, first.rotation, aspect if aspect and aspect != 1 else None, colours)


class FolderSource:
    """A folder's pictures in the order of their names, numbers in them counted as such; at `fps`."""

    def __init__(self, folder: Path, fps: float) -> None:
        found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
        if not found:
            raise SourceError(f"{folder} has no pictures ({', '.join(PICTURES)})")
        if not 0 < fps <= 1000:
            raise SourceError(f"fps must be above 0 and at most 1000, got {fps:g}")
        self._files = sorted(found, key=by_number)
        self.path: Path | None = None
        self.total: int | None = len(found)
        self.is_live = False
        self.look = Look(Fraction(fps).limit_denominator(1001))
        with _opened(self._files[0], 0) as image:
            self.size = (image.height, image.width)

    def __iter__(self) -> Iterator[Picture]:
        clock = _Clock(1 / self.look.fps, self.look.fps)
        for number, path in enumerate(self._files):
            try:
                with _opened(path, number) as image:
                    array = np.array(image.convert("RGB"))
            except (OSError, SyntaxError, ValueError) as error:
                raise error if isinstance(error, SourceError) else _unreadable(path, number, error) from None
            yield clock.picture(array, number)

    def close(self) -> None:
        """Nothing is open between two pictures."""


class Newest:
    """A live source, read in a thread as fast as it comes: whoever takes a frame gets the newest there is, and those
    in between are dropped, before they have a number. dropped: how many."""

    def __init__(self, source: Source) -> None:
        self.dropped = 0
        self._news = threading.Condition()
        self._frame: Picture | None = None
        self._end: BaseException | None = None
        self._is_over = False
        threading.Thread(target=self._read, args=(source,), name="camera", daemon=True).start()

    def __iter__(self) -> Iterator[Picture]:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._frame is not None or self._is_over)
                frame, self._frame = self._frame, None
            if frame is None:
                if self._end is not None:
                    raise self._end
                return
            yield frame

    def _read(self, source: Iterable[Picture]) -> None:
        try:
            for frame in source:
                with self._news:
                    self.dropped += self._frame is not None
                    self._frame = frame
                    self._news.notify()
        except Exception as error:  # noqa: BLE001 - it is raised where frames are taken
            self._end = error
        with self._news:
            self._is_over = True
            self._news.notify()


class _Clock:
    """Makes a source's times rise, on its own clock and on the service's coarser one: files have frames without a time,
    and some with the time of the one before."""

    def __init__(self, time_base: Fraction, fps: Fraction) -> None:
        self._base = time_base
        self._step = max(1, round(1 / (fps * time_base)))
        self._least = max(1, -(-1 // (time_base * TICKS_PER_SECOND)))  # a tick of the service
        self._first: int | None = None
        self._last = 0

    def picture(self, array: np.ndarray, pts: int | None) -> Picture:
        if self._first is None:
            self._first = self._last = pts or 0
        else:
            wanted = self._last + self._step if pts is None else pts
            self._last = max(wanted, self._last + self._least)
        return Picture(array, self._last, self._base, float((self._last - self._first) * self._base))


def _opened(path: Path, number: int) -> Any:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(path, number, error) from None


def _unreadable(path: Path, number: int, error: BaseException) -> SourceError:
    return SourceError(f"{path.parent.name}: frame {number} ({path.name}) can't be read: {_why(error)}")


def by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
