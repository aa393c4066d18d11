"""An event loop without a wall clock: when nobody has anything to do, the time of the next timer has come.

Everything that runs in it is in one thread and in one order, the same for each run: sets of tasks and futures are
ordered by when these were made, not by where they lie in memory.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Coroutine
from typing import Any

PROCESS: contextvars.ContextVar[Any] = contextvars.ContextVar("process", default=None)
"""Whose tasks are made: a party that can die with all of its tasks (it has a set `tasks`)."""


class Hang(AssertionError):
    """Nobody will ever do anything again, or it takes too long."""


class _Ordered:
    """Hashed by its number, so that a set of them has one order in every run."""

    def __hash__(self) -> int:
        return self.number  # type: ignore[attr-defined]


class _Future(_Ordered, asyncio.Future):
    def __init__(self, number: int, **options: Any):
        self.number = number
        super().__init__(**options)


class _Task(_Ordered, asyncio.Task):
    def __init__(self, number: int, work: Coroutine[Any, Any, Any], **options: Any):
        self.number = number
        super().__init__(work, **options)


class VirtualLoop(asyncio.BaseEventLoop):
    """most_turns: of the loop; then it is called hung."""

    def __init__(self, most_turns: int):
        super().__init__()
        self.turns, self._most_turns = 0, most_turns
        self._now = 0.0
        self._numbers = itertools.count(1)
        self._selector = self
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list:
        """No time passes in here: what would be slept is skipped."""
        self.turns += 1
        if timeout is None:
            raise Hang("everybody waits for somebody else")
        if self.turns > self._most_turns:
            raise Hang(f"not over after {self.turns} turns of the loop, at {self._now:.1f} s")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        return []

    def create_future(self) -> asyncio.Future:
        return _Future(next(self._numbers), loop=self)

    def _process_events(self, events: list) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _make_task(loop: Any, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task:
    task = _Task(next(loop._numbers), work, loop=loop, **options)
    if process := PROCESS.get():
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)
    return task


class LoopClock:
    """The loop's time, as a session's clock."""

    def __init__(self, loop: VirtualLoop):
        self._loop = loop

    def now(self) -> float:
        return 1000.0 + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(work: Coroutine[Any, Any, Any], loop: VirtualLoop) -> Any:
    """The result of `work`; what it leaves behind is cancelled."""
    try:
        return loop.run_until_complete(work)
    finally:
        while left := [task for task in asyncio.all_tasks(loop) if not task.done()]:
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
