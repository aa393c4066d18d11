"""An event loop without a wall clock: when nobody has anything to do, the time of the next timer has come.

Everything that runs in it is in one thread and in one order, the same for each run: sets of tasks and futures are
ordered by when these were made, not by where they lie in memory. It does no more than schedules need, so that
thousands of them can be played in a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

log = logging.getLogger(__name__)
PROCESS: contextvars.ContextVar[Any] = contextvars.ContextVar("process", default=None)
"""Whose tasks are made: a party that can die with all of its tasks (it has a set `tasks`)."""


class Hang(AssertionError):
    """Nobody will ever do anything again, or it takes too long."""


class Turn:
    """A call that is due: a handle of asyncio, as far as that is used."""

    __slots__ = ("args", "at", "callback", "context", "is_cancelled")

    def __init__(self, callback: Callable[..., Any], args: tuple, context: contextvars.Context, at: float = 0.0):
        self.callback, self.args, self.context, self.at = callback, args, context, at
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.at


class _Future(asyncio.Future):
    number: int

    def __hash__(self) -> int:
        return self.number


class _Alarm(_Future):
    """Of a sleep: one that nobody waits for any more rings no more."""

    turn: Turn

    def cancel(self, msg: Any = None) -> bool:
        self.turn.is_cancelled = True
        return super().cancel(msg)


class _Task(asyncio.Task):
    def __init__(self, number: int, work: Coroutine[Any, Any, Any], **options: Any):
        self.number = number  # before it is put into any set
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """most_turns: of the loop; then it is called hung."""

    def __init__(self, most_turns: int):
        super().__init__()
        self.turns, self.most_turns = 0, most_turns
        self._now = 0.0
        self._numbers = itertools.count(1)
        self._timers: list[tuple[float, int, Turn]] = []
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        turn = Turn(callback, args, _context(context))
        self._ready.append(turn)  # type: ignore[attr-defined]
        return turn

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        turn = Turn(callback, args, _context(context), when)
        heapq.heappush(self._timers, (when, next(self._numbers), turn))
        return turn

    def create_future(self) -> asyncio.Future:
        future = _Future(loop=self)
        future.number = next(self._numbers)
        return future

    def alarm(self, seconds: float) -> asyncio.Future:
        """Done after so many seconds."""
        future = _Alarm(loop=self)
        future.number = next(self._numbers)
        future.turn = self.call_later(seconds, _ring, future)
        return future

    def _run_once(self) -> None:
        """All that is due now; if nothing is, all that is due next."""
        ready, timers = self._ready, self._timers  # type: ignore[attr-defined]
        self.turns += 1
        if self.turns > self.most_turns:
            raise Hang(f"not over after {self.turns} turns of the loop, at {self._now:.1f} s")
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise Hang("everybody waits for somebody else")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            turn = ready.popleft()
            if not turn.is_cancelled:
                turn.context.run(turn.callback, *turn.args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """One line. It may come whenever memory is tidied up, also from within `ast.parse`, which a traceback would
        call once more: Python 3.11 then fails with a SystemError in whatever test is running."""
        log.info("%s: %r", context["message"], context.get("exception"))

    def _process_events(self, events: list) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _context(given: contextvars.Context | None) -> contextvars.Context:
    return contextvars.copy_context() if given is None else given  # an empty one is false


def _ring(alarm: asyncio.Future) -> None:
    if not alarm.done():
        alarm.set_result(None)


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
        return 1000.0 + self._loop._now

    def sleep(self, seconds: float) -> asyncio.Future:
        return self._loop.alarm(seconds)


@contextlib.contextmanager
def _known(loop: VirtualLoop) -> Iterator[None]:
    """Python before 3.12 asks the system for its process's number whenever it is asked which loop runs: a fifth of the
    time here."""
    before = asyncio.get_running_loop
    asyncio.get_running_loop = asyncio.events.get_running_loop = lambda: loop  # type: ignore[assignment]
    try:
        yield
    finally:
        asyncio.get_running_loop = asyncio.events.get_running_loop = before


def run(work: Coroutine[Any, Any, Any], loop: VirtualLoop) -> Any:
    """The result of `work`; what it leaves behind is cancelled."""
    with _known(loop):
        return _run(work, loop)


def _run(work: Coroutine[Any, Any, Any], loop: VirtualLoop) -> Any:
    try:
        return loop.run_until_complete(work)
    finally:
        loop.most_turns *= 2
        while left := [task for task in asyncio.all_tasks(loop) if not task.done()]:
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
