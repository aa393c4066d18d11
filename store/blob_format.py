"""What is in the two files of a checkpoint: raw tensors in the blob, the manifest with its checksum beside it.

A blob is the tensors' bytes one after the other, row-major, each from a multiple of `ALIGN`, zeros between. Its
manifest is JSON, `{"crc32": …, "manifest": …}`. Every bit of both files is under a checksum or must be zero.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from riverrun.models.base import BadRequest, Corrupt
from riverrun.store.checkpoints import Damaged, Manifest, TensorEntry

ALIGN = 64
"""Bytes; a tensor can be mapped from the file for any instruction set."""
PIECE = 8 << 20
"""Bytes written, read and summed at a time."""

_OPENING = '{"crc32":"%08x","manifest":'
_HEAD = len(_OPENING % 0)


class Sink(Protocol):
    """A file to write to."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class Source(Protocol):
    """A file to read from."""

    def size(self) -> int: ...

    def read(self, count: int, /) -> bytes: ...

    def readinto(self, into: memoryview, /) -> int: ...


def layout(tensors: Mapping[str, np.ndarray]) -> tuple[TensorEntry, ...]:
    """Where each tensor lies, no checksums yet. Raises BadRequest for what is no array of numbers."""
    entries, end = [], 0
    for name, array in tensors.items():
        if array.dtype.kind not in "biufc":
            raise BadRequest(f"tensor {name!r} is of dtype {array.dtype}; a checkpoint holds numbers")
        start = _aligned(end)
        entries.append(TensorEntry(name, array.dtype.str, array.shape, start, array.nbytes, 0))
        end = start + array.nbytes
    return tuple(entries)


def write_blob(
    sink: Sink, entries: tuple[TensorEntry, ...], tensors: Mapping[str, np.ndarray]
) -> tuple[TensorEntry, ...]:
    """Streams the tensors; gives the entries again, with checksums."""
    done, end = [], 0
    for entry in entries:
        sink.write(bytes(entry.offset - end))
        crc, data = 0, np.ascontiguousarray(tensors[entry.name]).reshape(-1).view(np.uint8)
        for piece in _pieces(data):
            crc = zlib.crc32(piece, crc)
            sink.write(piece)
        done.append(dataclasses.replace(entry, crc=crc))
        end = entry.offset + entry.nbytes
    return tuple(done)


def read_blob(source: Source, manifest: Manifest) -> dict[str, np.ndarray]:
    """The tensors, each owning its memory. Raises Damaged naming what of the blob has changed."""
    size = blob_size(manifest)
    if source.size() != size:
        raise Damaged(f"the blob {manifest.path} has {source.size()} bytes, its manifest says {size}")
    tensors, end = {}, 0
    for entry in manifest.tensors:
        gap, array, crc = source.read(entry.offset - end), np.empty(entry.shape, entry.dtype), 0
        for piece in _pieces(array.reshape(-1).view(np.uint8)):
            if source.readinto(piece) != len(piece):
                raise Damaged(f"the blob {manifest.path} ends inside tensor {entry.name!r}")
            crc = zlib.crc32(piece, crc)
        if crc != entry.crc or any(gap):
            raise Damaged(f"tensor {entry.name!r} of the blob {manifest.path} has changed (checksum)")
        tensors[entry.name], end = array, entry.offset + entry.nbytes
    return tensors


def blob_size(manifest: Manifest) -> int:
    """Bytes of its blob. Raises Corrupt if the entries don't follow from shapes and dtypes."""
    end = 0
    for entry in manifest.tensors:
        start, nbytes = _aligned(end), math.prod(entry.shape) * np.dtype(entry.dtype).itemsize
        if (entry.offset, entry.nbytes) != (start, nbytes):
            at = f"{entry.nbytes} bytes at {entry.offset}"
            raise Corrupt(f"tensor {entry.name!r} of {manifest.path} can't be {at}: {nbytes} bytes at {start} follow")
        end = start + nbytes
    return end


def seal(manifest: Manifest) -> bytes:
    """The manifest's file."""
    text = manifest.to_json().encode()
    return (_OPENING % zlib.crc32(text)).encode() + text + b"}"


def unseal(data: bytes) -> Manifest:
    """Raises Damaged for a file that isn't as it was written, Corrupt for one of another schema version."""
    text = data[_HEAD:-1]
    if data[:_HEAD] != (_OPENING % zlib.crc32(text)).encode() or data[-1:] != b"}":
        raise Damaged("the manifest is truncated or has changed (checksum)")
    return Manifest.from_json(text)


def _aligned(at: int) -> int:
    return -(-at // ALIGN) * ALIGN


def _pieces(data: np.ndarray) -> list[memoryview]:
    return [data.data[start : start + PIECE] for start in range(0, len(data), PIECE)]
