"""Frames on the wire: an array becomes `FramePart`s of at most 1 MiB, and parts become an array again. Pure functions.

Used by the gateway and by the client, so it imports numpy, Pillow and the generated stubs and nothing else of ours.
RAW carries any array (little-endian, row-major); JPEG and PNG carry uint8 pictures [H, W, 3].
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from riverrun.protos import riverrun_pb2 as pb

MAX_PART_BYTES = 1 << 20
MAX_FRAME_BYTES = 256 << 20
"""The largest frame a `Joiner` takes, decoded: 64 Mi float32 values. A peer can't make it allocate more."""

MAX_AXES = 8
DEFAULT_QUALITY = 90
RAW, JPEG, PNG = pb.CODEC_RAW, pb.CODEC_JPEG, pb.CODEC_PNG
CODECS = {"raw": RAW, "jpeg": JPEG, "png": PNG}
"""The codecs by the names people type."""

_DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)  # what numpy reads without help, so nothing on the wire can name an object dtype
_LAYOUTS = ("", "C", "HW", "HWC")  # by number of axes, where the caller names none


class WireError(ValueError):
    """A frame can't be sent so, or parts don't make a frame; the message says which and why."""


@dataclass(frozen=True)
class Header:
    """What a frame says of itself besides its pixels; the fields of `FramePart` by the same names.

    frame: its number on the port. chunk, index_in_chunk: where it came from. pts: ticks of 1/90000 s.
    revision: the newest control in force for it.
    """

    port: str
    frame: int
    chunk: int
    index_in_chunk: int
    pts: int
    epoch: int
    revision: int


@dataclass(frozen=True)
class Joined:
    """One whole frame: its header and its array (own memory, writable)."""

    header: Header
    array: np.ndarray
    wire_bytes: int


def check_codec(codec: int, dtype: np.dtype | str, shape: tuple[int, ...]) -> None:
    """Raises WireError where `codec` can't carry arrays of this dtype and shape (one frame's)."""
    name = np.dtype(dtype).name
    if codec in (JPEG, PNG):
        if name != "uint8" or len(shape) != 3 or shape[2] != 3:
            raise WireError(f"codec {_codec_name(codec)} carries uint8 [H, W, 3], not {name} {list(shape)}; use RAW")
    elif codec not in (RAW, pb.CODEC_UNSPECIFIED):
        raise WireError(f"unknown codec {codec}; there are {', '.join(CODECS).upper()}")
    elif name not in _DTYPES:
        raise WireError(f"dtype {name} can't be sent; there are {', '.join(sorted(_DTYPES))}")


def check_quality(quality: int) -> None:
    """Raises WireError unless it is 1..100, or 0 for the default."""
    if not 0 <= quality <= 100:
        raise WireError(f"quality must be 1..100 (0 for {DEFAULT_QUALITY}), got {quality}")


@dataclass(frozen=True)
class Encoded:
    """One frame, ready to be sent in `parts` messages. data: its bytes, which may be the frame's own.

    A part is written when its message is sent, into that message: building them all at once costs a frame of a megabyte
    nine times as long (fresh memory for each, and a copy from message to message).
    """

    about: pb.FramePart
    data: memoryview

    @property
    def parts(self) -> int:
        return self.about.parts

    def write(self, part: int, message: pb.FramePart) -> None:
        """Makes an empty `message` part number `part`."""
        message.CopyFrom(self.about)
        message.part = part
        message.data = bytes(self.data[part * MAX_PART_BYTES : (part + 1) * MAX_PART_BYTES])


def encode(
    frame: np.ndarray, header: Header, codec: pb.Codec = RAW, quality: int = 0, layout: str | None = None
) -> Encoded:
    """One frame as it is sent; an empty array is one empty part. A raw one is not copied yet.

    codec: RAW, JPEG or PNG (unspecified is RAW). quality: 1..100 for JPEG, 0 for the default of 90.
    layout: axis letters; by default HWC, HW or C by the number of axes. Raises WireError.
    """
    check_codec(codec, frame.dtype, frame.shape)
    layout = _default_layout(frame) if layout is None else layout
    if len(layout) != frame.ndim:
        raise WireError(f"layout {layout!r} names {len(layout)} axes, the frame has {frame.ndim}")
    data = _bytes_of(frame, codec, quality)
    about = pb.FramePart(
        port=header.port,
        frame=header.frame,
        chunk=header.chunk,
        index_in_chunk=header.index_in_chunk,
        pts=header.pts,
        epoch=header.epoch,
        revision=header.revision,
        codec=codec or RAW,
        dtype=frame.dtype.name,
        shape=frame.shape,
        layout=layout,
        parts=max(1, math.ceil(len(data) / MAX_PART_BYTES)),
    )
    return Encoded(about, data)


def split(
    frame: np.ndarray, header: Header, codec: pb.Codec = RAW, quality: int = 0, layout: str | None = None
) -> list[pb.FramePart]:
    """The parts of one frame, in order; see `encode`."""
    encoded = encode(frame, header, codec, quality, layout)
    messages = [pb.FramePart() for _ in range(encoded.parts)]
    for part, message in enumerate(messages):
        encoded.write(part, message)
    return messages


class Joiner:
    """Puts the parts of one connection together. Parts of a frame follow one another, whatever their port."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._first = pb.FramePart()
        self._data: list[bytes] = []

    def add(self, part: pb.FramePart) -> Joined | None:
        """The frame that `part` completes, or None while parts are missing. Raises WireError and forgets the frame."""
        data = part.data  # each look at it makes a copy
        try:
            self._check(part, len(data))
            if not self._data:
                self._first = part
            self._data.append(data)
            if part.part + 1 < part.parts:
                return None
            joined = _join(self._first, self._data)
        except WireError:
            self._data = []
            raise
        self._data = []
        return joined

    def check_whole(self) -> None:
        """Raises WireError in the middle of a frame."""
        if self._data:
            first = self._first
            raise WireError(
                f"frame {first.frame} of port {first.port!r}: {len(self._data)} of {first.parts} parts came; send all"
            )

    def _check(self, part: pb.FramePart, size: int) -> None:
        where = f"frame {part.frame} of port {part.port!r}"
        if part.parts < 1:
            raise WireError(f"{where}: 0 parts, must be at least 1")
        if size > MAX_PART_BYTES:
            raise WireError(f"{where}: a part of {size} bytes, at most {MAX_PART_BYTES}")
        if part.part != len(self._data):
            raise WireError(f"{where}: part {part.part} of {part.parts} came where part {len(self._data)} was due")
        if self._data:
            first = self._first
            if _identity(part) != _identity(first):
                raise WireError(f"{where}: came before frame {first.frame} of port {first.port!r} was complete")
            return
        if part.dtype not in _DTYPES:
            raise WireError(f"{where}: unknown dtype {part.dtype!r}; there are {', '.join(sorted(_DTYPES))}")
        if len(part.shape) > MAX_AXES:
            raise WireError(f"{where}: a shape of {len(part.shape)} axes, at most {MAX_AXES}")
        whole = math.prod(max(1, axis) for axis in part.shape) * np.dtype(part.dtype).itemsize  # empty ones too
        if whole > self._max_frame_bytes or part.parts > self._max_frame_bytes // MAX_PART_BYTES + 1:
            raise WireError(
                f"{where}: {whole} bytes, {part.parts} part(s); at most {self._max_frame_bytes} bytes a frame"
            )
        check_codec(part.codec, part.dtype, tuple(part.shape))


def _join(first: pb.FramePart, parts: list[bytes]) -> Joined:
    where, shape = f"frame {first.frame} of port {first.port!r}", tuple(first.shape)
    data = bytearray().join(parts)  # a bytearray, so that the array over it is writable
    if first.codec in (JPEG, PNG):
        array = _decode_picture(data, shape, where)
    elif len(data) != _nbytes(first):
        raise WireError(f"{where}: {len(data)} bytes for {first.dtype} {list(shape)}, which has {_nbytes(first)}")
    else:
        array = np.frombuffer(data, dtype=np.dtype(first.dtype).newbyteorder("<")).reshape(shape)
    header = Header(
        port=first.port,
        frame=first.frame,
        chunk=first.chunk,
        index_in_chunk=first.index_in_chunk,
        pts=first.pts,
        epoch=first.epoch,
        revision=first.revision,
    )
    return Joined(header, array, len(data))


def _bytes_of(frame: np.ndarray, codec: int, quality: int) -> memoryview:
    """Its bytes, which may be the frame's own."""
    if codec not in (JPEG, PNG):
        return np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    check_quality(quality)
    if frame.size == 0:
        raise WireError(f"codec {_codec_name(codec)} carries no empty picture, got {list(frame.shape)}; use RAW")
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(frame))
    if codec == JPEG:
        image.save(buffer, "JPEG", quality=quality or DEFAULT_QUALITY)
    else:
        image.save(buffer, "PNG", compress_level=1)  # speed before size: these are live frames
    return buffer.getbuffer()


def _decode_picture(data: bytearray, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if (image.height, image.width) != shape[:2]:  # before decoding: the sender's shape bounds what we allocate
                raise WireError(f"{where}: a picture of {image.height}x{image.width}, its header says {list(shape)}")
            return np.array(image.convert("RGB"))
    except WireError:
        raise
    except UnidentifiedImageError:
        raise WireError(f"{where}: the picture can't be decoded (it is neither JPEG nor PNG)") from None
    except Exception as error:  # Pillow raises whatever its plugins do on damaged data
        raise WireError(f"{where}: the picture can't be decoded ({error})") from error


def _identity(part: pb.FramePart) -> tuple:
    return part.port, part.frame, part.epoch, part.codec, part.dtype, tuple(part.shape), part.parts


def _nbytes(part: pb.FramePart) -> int:
    return math.prod(part.shape) * np.dtype(part.dtype).itemsize


def _default_layout(frame: np.ndarray) -> str:
    if frame.ndim >= len(_LAYOUTS):
        raise WireError(f"a frame of {frame.ndim} axes needs its layout named, got shape {list(frame.shape)}")
    return _LAYOUTS[frame.ndim]


def _codec_name(codec: int) -> str:
    return pb.Codec.Name(codec).removeprefix("CODEC_")
