"""At most so many restores at once over all sessions of a gateway, those whose viewers run dry first before others."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """limit: how many may be inside."""

    def __init__(self, limit: int):
        self._free = limit
        self._limit = limit
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @asynccontextmanager
    async def enter(self, slack_s: float) -> AsyncIterator[None]:
        """slack_s: seconds of media that the viewer still has; who has least goes first."""
        await self._wait(slack_s)
        try:
            yield
        finally:
            self._free += 1
            self._wake()

    async def _wait(self, slack_s: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (slack_s, next(self._numbers), future))
        self._wake()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was let in and left at once
                self._free += 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._free and self._waiting:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                self._free -= 1
                future.set_result(None)

    def check(self) -> None:
        """Raises AssertionError where places don't add up."""
        assert 0 <= self._free <= self._limit, (self._free, self._limit)
