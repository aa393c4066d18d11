"""Time and waiting, as arguments: the clock, the wake-up shared by a session's tasks, and the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Seconds since 1970 that never go back, and sleep by the same measure. A test brings its own."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock: wall time at its making, monotonic from there on."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Signal:
    """Wakes whoever waits for something to become true. One a session: each change notifies, each waiter looks."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, ready: Callable[[], T | None]) -> T:
        """The first truthy value of `ready()`, which is asked now and after each notify."""
        while not (value := ready()):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return value


async def within(clock: Clock, seconds: float, work: Awaitable[T]) -> T:
    """The result of `work`, or TimeoutError after `seconds` of `clock`; `work` is cancelled then."""
    task = asyncio.ensure_future(work)
    alarm = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({task, alarm}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError(f"no answer after {seconds:g} s")
        return task.result()
    finally:
        for each in (task, alarm):
            each.cancel()
        if not (task.done() and alarm.done()):
            await asyncio.gather(task, alarm, return_exceptions=True)
