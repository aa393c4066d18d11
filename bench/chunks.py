"""A stream's chunks, as a viewer comes to know them: by the first frame of each."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

from riverrun.client.types import Frame


def firsts(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Each as soon as it is there."""
    chunk = -1
    for frame in frames:
        if frame.chunk != chunk:
            chunk = frame.chunk
            yield frame


async def firsts_as_they_come(frames: AsyncIterable[Frame]) -> AsyncIterator[Frame]:
    """As `firsts`."""
    chunk = -1
    async for frame in frames:
        if frame.chunk != chunk:
            chunk = frame.chunk
            yield frame
