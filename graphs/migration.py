"""Moves one stage of a running session to another actor: prepare, finish the step in hand, transfer, commit, go on.

Until the record names the target, the source is in charge and nothing of it was changed: whatever fails before leaves
the stream where it was, a pause older.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise

from riverrun.graphs.driver import StageDriver
from riverrun.graphs.opening import answer
from riverrun.graphs.recovery import Recovery
from riverrun.graphs.stage import Packet, RestoreRequest
from riverrun.graphs.waiting import Clock
from riverrun.models.base import Corrupt, Unavailable
from riverrun.store.records import Placement

log = logging.getLogger(__name__)


async def migrate(recovery: Recovery, driver: StageDriver, actor: str = "") -> Placement:
    """The stage's new placement: on `actor`, or on any other than it is on now.

    Raises Unavailable (no room, one of both died), BadRequest (no such actor), Corrupt, Conflict (the session was taken
    over); the source goes on then, if it lives.
    """
    keeper, config, clock = recovery.keeper, recovery.config, recovery.clock
    old = keeper.record.placement[driver.name]
    target, placement = await recovery.placer.place(driver.name, avoid=old.incarnation, actor=actor)
    opening = await recovery.opening(driver.name)
    session, life = keeper.record.id, driver.life + 1
    driver.life = life
    spans = _Spans(clock)
    try:
        work = target.prepare(RestoreRequest(opening, life))
        await answer(clock, config.restore_s, work, f"{placement.actor}, to take a session,")
        spans.end("prepare")
        async with _standing(driver, life):
            spans.end("step in hand")
            source = driver.handle
            packet: Packet = await answer(clock, config.restore_s, source.export(session, recovery.epoch), old.actor)
            spans.end("copied out")
            work_in = target.restore(RestoreRequest(opening, life, packet))
            reply = await answer(clock, config.restore_s, work_in, placement.actor)
            spans.end("copied in")
            if reply.mark.seq != driver.next_seq:
                raise Corrupt(f"stage {driver.name!r} stands at step {reply.mark.seq}, {driver.next_seq} is due")
            placement = replace(placement, incarnation=reply.incarnation)
            await keeper.commit(placement={**keeper.record.placement, driver.name: placement})
            driver.handle = target
            spans.end("record")
    except BaseException:
        if driver.handle is not target:  # whatever of the commit was noted, the source goes on
            keeper.record = replace(keeper.record, placement={**keeper.record.placement, driver.name: old})
        recovery.leave(target, life)
        raise
    recovery.leave(source, life - 1)
    log.info("session %s: stage %s moved to %s: %s", session, driver.name, placement.actor, spans)
    return placement


class _Spans:
    """How long each part of a move took; while the last four lasted, the stage stood still."""

    def __init__(self, clock: Clock):
        self._clock, self._parts = clock, [("", clock.now())]

    def end(self, part: str) -> None:
        self._parts.append((part, self._clock.now()))

    def __str__(self) -> str:
        return ", ".join(f"{name} {1000 * (at - before):.1f} ms" for (_, before), (name, at) in pairwise(self._parts))


class _standing:
    """Inside, the stage makes no step and is not brought back. Raises Unavailable if it is being so, was so since it
    was given this life, or is being moved by somebody else."""

    def __init__(self, driver: StageDriver, life: int):
        self._driver, self._life = driver, life

    async def __aenter__(self) -> None:
        driver = self._driver
        self._check(driver.is_moving or driver.is_held)
        driver.is_moving = True
        try:
            await driver.session.signal.until(lambda: driver.fault or not driver.is_stepping)
            self._check(driver.fault is not None or driver.life != self._life or driver.is_held)
        except BaseException:
            self._go_on()
            raise

    def _check(self, is_busy: bool) -> None:
        if is_busy:
            raise Unavailable(f"stage {self._driver.name!r} is being moved, put away or brought back; move it later")

    async def __aexit__(self, *_: object) -> None:
        self._go_on()

    def _go_on(self) -> None:
        self._driver.is_moving = False
        self._driver.session.signal.notify()
