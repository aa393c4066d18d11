"""A film made of another one's frames: with that one's times, rate, rotation, colours and sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace

from riverrun.client.export import ExportError, even, is_picture
from riverrun.client.sources import Look, Picture
from riverrun.client.types import Frame

SUFFIXES = (".mp4", ".mov", ".mkv")
_BT709 = 1  # of FFmpeg's AVCOL_SPC_*


class FilmWriter:
    """H.264 in yuv420p, as a `Writer`; each frame gets the time of the picture it was made of.

    It is told of each picture that goes in (`expect`), since frames come out in that order, one for each. sound: the
    film whose audio packets are copied; where not all of its pictures go in (`is_cut`), those until the last frame.
    A film has one size: frames of another go on in `name-2.mp4`, with the sound of their time. Written beside its path
    and put there by `close`, so a path never holds half a film.
    """

    def __init__(self, path: Path, look: Look, sound: Path | None = None) -> None:
        if path.suffix not in SUFFIXES:
            raise ExportError(f"a film's name ends in {', '.join(SUFFIXES)}, got {path.name!r}")
        self.path, self.frames, self.written, self.is_cut = path, 0, list[Path](), False
        self._look, self._sound = look, Sound(sound) if sound else None
        self._times: dict[int, tuple[int, Fraction]] = {}
        self.expected = 0
        self._part: _Part | None = None
        if self._sound and self._sound.codec:
            check_codec(path, self._sound.codec)

    def expect(self, picture: Picture) -> None:
        """Frame number n is made of the picture that was the n-th here."""
        self._times[self.expected] = (picture.pts, picture.time_base)
        self.expected += 1

    def add(self, frame: Frame) -> None:
        """Raises ExportError for what is no picture."""
        array = frame.array
        if not is_picture(array):
            raise ExportError(f"port {frame.port!r} carries {array.dtype} {list(array.shape)}, not pictures")
        if frame.number not in self._times:
            raise ExportError(f"frame {frame.number} of port {frame.port!r} came, {self.expected} went in")
        pts, time_base = self._times.pop(frame.number)
        if self._part is None or self._part.size != array.shape[:2]:
            self._next(array.shape[:2], time_base)
        assert self._part is not None
        self._part.add(array, pts, float(pts * time_base))
        self.frames += 1

    def close(self) -> None:
        """Completes the film. Without a frame there is none."""
        if self._part is not None:
            self._part.close(rest=not self.is_cut)
            self.written.append(self._part.path)
            self._part = None
        if self._sound:
            self._sound.close()

    def _next(self, size: tuple[int, ...], time_base: Fraction) -> None:
        if self._part is not None:
            self._part.close(rest=False)
            self.written.append(self._part.path)
        count = len(self.written) + 1
        path = self.path if count == 1 else self.path.with_stem(f"{self.path.stem}-{count}")
        self._part = _Part(path, self._look, (size[0], size[1]), time_base, self._sound)


class Sound:
    """The audio packets of a film, in order of time; those of its first audio stream. codec: "" if it has none."""

    def __init__(self, path: Path) -> None:
        self._container = av.open(str(path))
        streams = self._container.streams.audio
        self.stream = streams[0] if streams else None
        self.codec = self.stream.codec_context.name if self.stream else ""
        self._packets = self._read()
        self._next = next(self._packets, None)

    def until(self, seconds: float | None) -> Iterator[av.Packet]:
        """The packets not yet given that begin before then; None: all that are left."""
        while self._next is not None and (seconds is None or float(self._next.dts * self._next.time_base) < seconds):
            yield self._next
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._container.close()

    def _read(self) -> Iterator[av.Packet]:
        if self.stream is not None:
            packets = self._container.demux(self.stream)
            while (packet := _next_packet(packets)) is not None:
                if packet.dts is not None:
                    yield packet


class _Part:
    """One file: frames of one size."""

    def __init__(self, path: Path, look: Look, size: tuple[int, int], time_base: Fraction, sound: Sound | None) -> None:
        self.path, self.size = path, size
        self._file, self._time_base, self._sound = path.with_name(path.name + ".part"), time_base, sound
        self._last_s = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._file), "w", format=_form(path))
        self._video = self._container.add_stream(
            "libx264", rate=look.fps.limit_denominator(100_000), options={"crf": "18", "preset": "veryfast"}
        )
        self._describe(look)
        self._audio = self._container.add_stream_from_template(sound.stream) if sound and sound.stream else None

    def _describe(self, look: Look) -> None:
        codec: Any = self._video.codec_context
        self._video.height, self._video.width, self._video.pix_fmt = *_evened(self.size), "yuv420p"
        codec.time_base = self._time_base
        if look.aspect:
            codec.sample_aspect_ratio = look.aspect
        if look.colours:
            codec.colorspace, _, codec.color_primaries, codec.color_trc = look.colours
        self._matrix = Colorspace.ITU709 if look.colours and look.colours[0] == _BT709 else Colorspace.ITU601
        if look.rotation:
            self._video.set_display_rotation(look.rotation)

    def add(self, array: np.ndarray, pts: int, seconds: float) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even(array)), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=self._matrix)
        frame.pts, frame.time_base = pts, self._time_base
        self._encode(frame)
        self._copy_sound(seconds)
        self._last_s = seconds

    def close(self, rest: bool) -> None:
        """rest: all the sound that is left belongs to this file."""
        self._encode(None)
        self._copy_sound(None if rest else self._last_s)
        self._container.close()
        os.replace(self._file, self.path)

    def _encode(self, frame: av.VideoFrame | None) -> None:
        for packet in self._video.encode(frame):
            self._container.mux(packet)

    def _copy_sound(self, until: float | None) -> None:
        if self._audio is None or self._sound is None:
            return
        for packet in self._sound.until(until):
            packet.stream = self._audio
            self._container.mux(packet)


def check_codec(path: Path, codec: str) -> None:
    """Raises ExportError if a file of this kind can't hold such sound."""
    with av.open(os.devnull, "w", format=_form(path)) as container:
        if codec not in container.supported_codecs:
            kinds = ", ".join(SUFFIXES)
            raise ExportError(f"{path.suffix} can't hold the input's sound ({codec}); take another of {kinds}")


def _form(path: Path) -> str:
    return {".mkv": "matroska"}.get(path.suffix, path.suffix[1:])


def _next_packet(packets: Iterator[av.Packet]) -> av.Packet | None:
    """None also where a damaged film ends."""
    try:
        return next(packets, None)
    except av.FFmpegError:
        return None


def _evened(size: tuple[int, int]) -> tuple[int, int]:
    """yuv420p has half as many colour samples along each side."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2
