"""Keeps a session's record in the store, softly: a stream goes on when the store is away, and is written up later."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from riverrun.graphs.waiting import Clock, within
from riverrun.models.base import Unavailable
from riverrun.store.records import DECIDED, REFUSED, Conflict, ControlEntry, SessionRecord, Store

log = logging.getLogger(__name__)
T = TypeVar("T")
TRIES = 4
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0


class RecordKeeper:
    """The one writer of a session's record and control log.

    The log is bounded to `keep` lines; the newest line per (kind, stage) that fell out of it lives in `record.folded`.
    A store that can't be reached, or takes longer than `timeout_s`, costs a warning: log lines wait here (bounded) and
    are written before the next record, which the runner commits every few seconds. `Conflict` (another runner has the
    session) is raised: the caller must stop.
    """

    def __init__(self, record: SessionRecord, store: Store, clock: Clock, keep: int, timeout_s: float):
        self.record = record
        self._store = store
        self._clock = clock
        self._keep = keep
        self._timeout_s = timeout_s
        self._lines: deque[ControlEntry] = deque()
        self._unwritten: deque[ControlEntry] = deque(maxlen=keep)
        self._folded: dict[tuple[str, str], ControlEntry] = {(e.kind, e.stage): e for e in record.folded}
        self._lock = asyncio.Lock()
        self._away = False

    async def log(self, entry: ControlEntry) -> None:
        """Appends to the control log; when it returns the line is in the store, or the store is away."""
        self._lines.append(entry)
        while len(self._lines) > self._keep:
            old = self._lines.popleft()
            if old.kind not in (REFUSED, DECIDED):
                self._folded[old.kind, old.stage] = old
        self._unwritten.append(entry)
        async with self._lock:
            await self._softly(self._write_lines)

    async def lines(self) -> tuple[ControlEntry, ...]:
        """The control log as the store has it, oldest first, with what was folded before it. Raises Unavailable."""
        self._lines = deque(await self._store.read_log(self.record.id))
        return (*self.record.folded, *self._lines)

    async def commit(self, **changes: Any) -> None:
        """Changes the record and writes it, and lines that are still to be written."""
        folded = tuple(self._folded.values())
        self.record = replace(self.record, **changes, folded=folded, updated=self._clock.now())
        async with self._lock:
            await self._softly(self._write_record)

    async def catch_up(self) -> None:
        """Returns when the store has the record as it is here; while it is away, asks again, ever more seldom.
        Raises Conflict."""
        pause = FIRST_RETRY_S
        while self._away:
            await self._clock.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_S)
            await self.commit()

    async def _softly(self, write: Callable[[], Awaitable[None]]) -> None:
        try:
            await within(self._clock, self._timeout_s, write())
        except Conflict:
            raise
        except (Unavailable, TimeoutError) as error:
            if not self._away:
                what = "session %s: store is away (%s); the stream goes on"
                log.warning(what, self.record.id, error, extra=self.record.about)
            self._away = True
        else:
            if self._away:
                log.warning("session %s: store is back", self.record.id, extra=self.record.about)
            self._away = False

    async def _write_lines(self) -> None:
        while self._unwritten:
            try:
                await self._store.log(self.record, self._unwritten[0], self._keep)
            except Conflict:
                await self._reconcile()
                if not self._unwritten:
                    return
                await self._store.log(self.record, self._unwritten[0], self._keep)
            self._unwritten.popleft()

    async def _write_record(self) -> None:
        written = await self._insist(lambda: self._store.update(self.record))
        self.record = replace(self.record, version=written.version)
        await self._write_lines()

    async def _insist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Writes, again where an own write whose answer was lost came between. Raises Conflict, Unavailable."""
        for _ in range(TRIES):
            try:
                return await write()
            except Conflict:
                await self._reconcile()
        raise Unavailable("own writes come in late, one after the other")

    async def _reconcile(self) -> None:
        """Reads back what is stored: an earlier write whose answer was lost is adopted; a store that forgot the
        record, or the end of the log, is told again. Raises Conflict if another runner holds the session."""
        ours = self.record
        stored = await self._store.get(ours.id)
        if stored is None:
            stored = await self._store.create(replace(ours, version=0))
        lines = await self._store.read_log(ours.id)
        if (stored.id, stored.epoch, stored.nonce) != (ours.id, ours.epoch, ours.nonce):
            raise Conflict(f"session {ours.id} was taken over (epoch {stored.epoch}, ours is {ours.epoch})")
        self.record = replace(self.record, version=stored.version)
        self._unwritten = deque(_after(lines[-1] if lines else None, self._lines), maxlen=self._keep)


def _after(last: ControlEntry | None, lines: Sequence[ControlEntry]) -> Sequence[ControlEntry]:
    """Those that come after the last one a store has; all, if it has none of them."""
    lines = list(lines)
    return lines[len(lines) - lines[::-1].index(last) :] if last in lines else lines
