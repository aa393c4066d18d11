"""Keeps a session's record in the store, softly: a stream goes on when the store is away, and is written up later."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from riverrun.graphs.waiting import Clock, within
from riverrun.models.base import Unavailable
from riverrun.store.records import ANY, DECIDED, REFUSED, Conflict, ControlEntry, SessionRecord, Store

log = logging.getLogger(__name__)
TRIES = 4
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0
KNOWN_S = 15.0
"""For so long one that takes over tries to tell the store."""


class RecordKeeper:
    """The one writer of a session's record and control log.

    A line leaves the log, with the next record, when no replay needs it (`forget`, `handled`). The newest line per
    (kind, stage) that left lives in `record.folded`, and `record.folded_to` says from which step of a stage on all
    lines are there. Beyond `keep` lines the oldest leave whether they are needed or not; a session that is never
    replayed (`is_replayed`) is no worse for that, another one takes no controls before (`is_full`).

    A store that can't be reached, or takes longer than `timeout_s`, costs a warning and that time, once: until it is
    back log lines wait here and nobody waits for them. They are written with the record, which the runner commits
    every few seconds. `Conflict` (another runner has the session) is raised: the caller must stop.

    Each write names how many lines the stored log has: a store that failed over without some of them, which may be all
    that it lost, is told of them again before anything else.

    newest: the highest epoch of a session's checkpoints; not asked of one that keeps none.
    """

    def __init__(
        self,
        record: SessionRecord,
        store: Store,
        clock: Clock,
        keep: int,
        timeout_s: float,
        newest: Callable[[str], Awaitable[int]] | None = None,
    ):
        self.record = record
        self._store = store
        self._newest = newest
        self._clock = clock
        self._keep = keep
        self._timeout_s = timeout_s
        self._lines: deque[ControlEntry] = deque()
        self._unwritten: deque[ControlEntry] = deque()
        self._due = 0  # lines at the head of the stored log that have left this one
        self._stored = ANY  # lines of the stored log, where that is known
        self._folded: dict[tuple[str, str], ControlEntry] = {(e.kind, e.stage): e for e in record.folded}
        self._folded_to = dict(record.folded_to)
        self._floors: dict[str, int] = {}
        self._open: set[int] = set()
        self._lock = asyncio.Lock()
        self._knows_log = False
        self._away = False
        self.is_replayed = False

    async def log(self, entry: ControlEntry) -> None:
        """Appends to the control log; when it returns the line is in the store, or the store is away."""
        if len(self._lines) >= self._keep:
            self._fold(len(self._lines) - self._keep + 1)
        if not self._knows_log:  # it is new
            self._knows_log, self._stored = True, 0
        self._lines.append(entry)
        self._unwritten.append(entry)
        if _is_arrival(entry):
            self._open.add(entry.revision)
        if self._away:
            return
        async with self._lock:
            if not self._away:  # it may have gone while we waited for another line
                await self._softly(self._write_lines)

    async def lines(self) -> tuple[ControlEntry, ...]:
        """The control log as the store has it, oldest first, with what was folded before it. Raises Unavailable."""
        self._lines, self._knows_log = deque(await self._store.read_log(self.record.id)), True
        self._stored = len(self._lines)
        self._open = {line.revision for line in self._lines if _is_arrival(line)}
        return (*self.record.folded, *self._lines)

    async def commit(self, **changes: Any) -> None:
        """Changes the record and writes it, and lines that are still to be written."""
        self._fold(0)
        changes |= {"folded": tuple(self._folded.values()), "folded_to": dict(self._folded_to)}
        self.record = replace(self.record, **changes, updated=self._clock.now())
        async with self._lock:
            await self._softly(self._write_record)

    def forget(self, stage: str, before: int) -> None:
        """No step of the stage before this one will ever be made again."""
        self._floors[stage] = before

    def handled(self, revision: int) -> None:
        """Every stage that a control is for has carried it, or it was refused."""
        self._open.discard(revision)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for more controls: what those before them still have to say would drive out lines
        that a replay needs."""
        if not self.is_replayed or 2 * len(self._lines) < self._keep:
            return False
        self._fold(0)
        return 2 * len(self._lines) >= self._keep

    def _fold(self, must: int) -> None:
        """Lines that may leave the head of the log do, and so many in any case."""
        while self._lines and (must > 0 or (self.is_replayed and self._may_leave(self._lines[0]))):
            must -= 1
            if len(self._unwritten) == len(self._lines):
                self._unwritten.popleft()
            else:
                self._due += 1
            line = self._lines.popleft()
            if line.kind not in (REFUSED, DECIDED):
                self._folded[line.kind, line.stage] = line
            if not _is_arrival(line):
                self._folded_to[line.stage] = max(self._folded_to.get(line.stage, 0), line.step + 1)

    def _may_leave(self, line: ControlEntry) -> bool:
        return line.revision not in self._open if _is_arrival(line) else line.step < self._floors.get(line.stage, 0)

    @property
    def is_away(self) -> bool:
        """Whether the store has not been told of all."""
        return self._away

    async def catch_up(self) -> None:
        """Returns when the store has the record as it is here; while it is away, asks again, ever more seldom.
        Raises Conflict."""
        pause = FIRST_RETRY_S
        while self._away:
            await self._clock.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_S)
            await self.commit()

    async def confirm(self, **changes: Any) -> None:
        """As `commit`; returns when the store has taken it. Raises Conflict."""
        await self.commit(**changes)
        await self.catch_up()

    async def be_known(self) -> None:
        """Of one that takes over: the store may have forgotten that, and no frame leaves before it has the record.
        Raises Unavailable, Conflict."""
        try:
            await within(self._clock, KNOWN_S, self.catch_up())
        except TimeoutError:
            raise Unavailable(f"session {self.record.id} can't be taken up: the store is away") from None

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
            if self._away and self._unwritten:  # they came when the last was written already
                return await self._softly(self._write_lines)
            if self._away:
                log.warning("session %s: store is back", self.record.id, extra=self.record.about)
            self._away = False

    async def _write_lines(self) -> None:
        while self._unwritten:
            await self._insist(self._append)

    async def _append(self) -> None:
        if not self._unwritten:
            return  # the store has it, its answer was lost
        line = self._unwritten[0]
        has, self._stored = self._stored, ANY  # should no answer come
        await self._store.log(self.record, line, has)
        self._stored = has + 1
        if self._unwritten and self._unwritten[0] is line:
            self._unwritten.popleft()
        else:
            self._due += 1  # it left while it was being written

    async def _write_record(self) -> None:
        await self._insist(self._update)
        await self._write_lines()

    async def _update(self) -> None:
        due, has, self._stored = self._due, self._stored, ANY
        written = await self._store.update(self.record, due, has)
        self.record = replace(self.record, version=written.version)
        self._due -= due
        if has != ANY:
            self._stored = max(0, has - due)

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Writes, again where an own write whose answer was lost came between, or the store has lost some. Raises
        Conflict, Unavailable."""
        for _ in range(TRIES):
            if self._knows_log and self._stored == ANY:
                await self._reconcile()
            try:
                return await write()
            except Conflict:
                self._stored = ANY
                if not self._knows_log:
                    await self._reconcile()
        raise Unavailable("own writes come in late, one after the other")

    async def _reconcile(self) -> None:
        """Reads back what is stored: an earlier write whose answer was lost is adopted; a store that forgot the
        record, that we took it over, or the end of the log, is told again. Raises Conflict if another runner holds the
        session."""
        ours = self.record
        stored = await self._store.get(ours.id)
        if stored is None:
            await self._must_be_newest()
            stored = await self._store.create(replace(ours, version=0))
        if stored.epoch < ours.epoch:  # it has forgotten that we took the session over
            stored = await self._store.take(ours.id, stored.version, ours.epoch, ours.nonce)
        lines = await self._store.read_log(ours.id)
        if (stored.id, stored.epoch, stored.nonce) != (ours.id, ours.epoch, ours.nonce):
            raise Conflict(f"session {ours.id} was taken over (epoch {stored.epoch}, ours is {ours.epoch})")
        self.record = replace(self.record, version=stored.version)
        if not self._knows_log:
            return  # what lies there is of the runner before, and was not read yet: none of it may leave
        there = _overlap(lines, self._lines)
        self._unwritten = deque(list(self._lines)[there:])
        self._due = next((place for place, line in enumerate(lines) if line in self._lines), len(lines))
        self._stored = len(lines)

    async def _must_be_newest(self) -> None:
        """A store that has lost everything is told of a session by whoever runs it: not by a runner that stood still
        while another one took it over, and left checkpoints. Raises Conflict, Unavailable."""
        ours = self.record
        if self._newest and (epoch := await self._newest(ours.id)) > ours.epoch:
            raise Conflict(f"session {ours.id} was taken over (there are checkpoints of epoch {epoch})")


def _is_arrival(line: ControlEntry) -> bool:
    """Whether it says that a control came; others say what a step of a stage carried."""
    return line.step < 0


def _overlap(stored: Sequence[ControlEntry], ours: Sequence[ControlEntry]) -> int:
    """How many of our first lines are the last ones that a store has."""
    ours = list(ours)
    most = min(len(stored), len(ours))
    return next((n for n in range(most, 0, -1) if list(stored[-n:]) == ours[:n]), 0)
