"""What goes on by time while a session runs: its record is written again and again, and whether it is left alone is
watched. Each runs until it is cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from riverrun.graphs.audience import Audience
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.waiting import Clock, Signal, within
from riverrun.store.records import SessionState


async def claim(keeper: RecordKeeper, clock: Clock, every_s: float) -> None:
    """While it opens: the record shows that somebody is at it. A session that was draining says so to whoever takes it
    over from here."""
    was_draining = keeper.record.state is SessionState.DRAINING
    while True:
        await clock.sleep(every_s)
        await keeper.commit(state=SessionState.DRAINING if was_draining else SessionState.OPENING)


async def write(
    state: Callable[[], SessionState],
    commit: Callable[[], Awaitable[None]],
    signal: Signal,
    clock: Clock,
    every_s: float,
) -> None:
    """`commit` when the state changes, and every few seconds."""
    while True:
        written = state()
        changed = signal.until(lambda: state() is not written)  # noqa: B023
        with suppress(TimeoutError):
            await within(clock, every_s, changed)
        await commit()


async def watch(
    audience: Audience,
    is_draining: Callable[[], bool],
    leave: Callable[[str], Awaitable[None]],
    clock: Clock,
    limit_s: float,
) -> None:
    """`leave`, with the reason, when nobody is attached and nothing was delivered for `limit_s` (0: never); while it
    drains, also when somebody is attached who takes nothing (a client that sent Finish may want no more frames)."""
    while limit_s:
        left_alone = audience.empty or is_draining()
        quiet = audience.quiet_s if left_alone else 0.0
        if quiet >= limit_s:
            what = "nobody was connected" if audience.empty else "no frame was taken"
            await leave(f"idle: {what} for {limit_s:g} s")
        await clock.sleep(max(limit_s - quiet, limit_s / 100))
