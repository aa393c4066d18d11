"""bench.chunks: the first frame of each chunk, before the next one is asked for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from riverrun.bench.chunks import firsts, firsts_as_they_come

FRAMES = [SimpleNamespace(chunk=n // 4, number=n) for n in range(2, 10)]


def test_the_first_frame_of_each_chunk_as_soon_as_it_is_there() -> None:
    asked = iter(FRAMES)
    found = firsts(asked)
    assert [next(found).number, next(asked).number] == [2, 3]
    assert [frame.number for frame in found] == [4, 8]


def test_as_they_come() -> None:
    async def come():
        for frame in FRAMES:
            yield frame

    async def body() -> list[int]:
        return [frame.number async for frame in firsts_as_they_come(come())]

    assert asyncio.run(body()) == [2, 4, 8]
