"""The sessions of one stage actor: who is here, who has ended and why, and whether another one fits."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from riverrun.actors.health import Resident
from riverrun.actors.session import StageSession, StepJob
from riverrun.cluster.admission import Need, Room
from riverrun.graphs.stage import BadRequest, Epoch, OpenRequest, StaleEpoch, UnknownSession
from riverrun.models.base import Description, Unavailable

REMEMBER_S = 900.0
"""Ended sessions are remembered for so long: no message takes as long (a checkpoint may, 300 s)."""

MOST_REMEMBERED = 65_536
"""And no more of them, some 40 MB: 70 that end every second."""

ACTIVE_S = 5.0
"""A session that nobody has called for since is parked, paused or left alone: it takes a place and no time."""


class NoRoom(Unavailable):
    """No place or no bytes for another session; it may come when one ends."""


class Growing(NoRoom):
    """No place yet: another actor is being started."""


@dataclass(frozen=True)
class Totals:
    """Over all sessions: how many, bytes their States hold, bytes set aside for them."""

    sessions: int
    held_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class _Ended:
    """A session that is not here any more. life: as far as one is known to be over. at: when it left."""

    epoch: Epoch
    life: int
    kind: type[Exception]
    why: str
    at: float = 0.0


class SessionTable:
    """Sessions by id, safe for any thread. A session that ends while a step uses its State leaves when that is over.

    Ended sessions are remembered for a while, so that a late or repeated message gets the reason and can't bring them
    back to life. What is brought back after that nobody calls for, and the reaper frees it.
    """

    def __init__(self, room: Room, clock: Callable[[], float] = time.monotonic) -> None:
        self.room = room
        self._clock = clock
        self.usual: Need | None = None  # of a session with default parameters, once that is known
        self.lock = threading.RLock()
        self._sessions: dict[str, StageSession] = {}
        self._leaving: list[StageSession] = []
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._is_shut = False

    def add(self, request: OpenRequest, description: Description, need: Need) -> tuple[StageSession, bool]:
        """The session of `request` and whether it is new (its State is still to be made). Raises NoRoom, StaleEpoch."""
        with self.lock:
            known = self._reopened(request)
            if known is not None:
                return known, False
            if self._is_shut:
                raise NoRoom("this actor is taken out of service; another one has room")
            refusal = self.room.refusal([s.need for s in self._everyone()], need, self.usual)
            if refusal:
                raise NoRoom(refusal)
            session = StageSession(request, request.epoch, description, None, need, touched=self._clock())
            self._sessions[request.session] = session
            return session, True

    def replace(self, request: OpenRequest, life: int, description: Description, need: Need) -> StageSession:
        """Room for a State that is put here from elsewhere; an earlier life of it leaves. Raises NoRoom, StaleEpoch."""
        with self.lock:
            self._refuse_late(request, life)
            known, blank = self._sessions.get(request.session), None
            if known is not None:
                before = known.epoch.number
                known.fence(request.epoch)
                if known.state is not None and (before, known.life) >= (request.epoch.number, life):
                    raise StaleEpoch(f"session {request.session}: life {known.life} is here, {life} came late")
                blank = known.blank if known.life == life else None
                self.end(known, UnknownSession, f"session {request.session} begins again elsewhere")
            self._ended.pop(request.session, None)
            session, _ = self.add(request, description, need)
            session.life, session.blank = life, blank
            return session

    def placed(self, request: OpenRequest, life: int) -> StageSession | None:
        """The session, if this life of it was put here already: the request comes a second time."""
        with self.lock:
            known = self._sessions.get(request.session)
            is_this = known and known.state is not None and (known.epoch, known.life) == (request.epoch, life)
            return known if is_this else None

    def find(self, session: str, epoch: Epoch) -> StageSession:
        """The live session, its epoch checked and raised. Raises UnknownSession, StepFailed, StaleEpoch."""
        with self.lock:
            known = self._sessions.get(session)
            if known is None or known.state is None:
                ended = self._ended.get(session)
                raise ended.kind(ended.why) if ended else UnknownSession(f"no session {session} here")
            known.fence(epoch)
            known.touched = self._clock()
            return known

    def close(self, session: str, epoch: Epoch, life: int | None = None) -> None:
        """Ends a session; an unknown one is no error, but can't be opened with this epoch any more.

        life: a later one than this stays, one up to it can't be put here any more; None: whichever is here goes.
        """
        with self.lock:
            known = self._sessions.get(session)
            if known is None:
                self._remember(session, _Ended(epoch, life or 0, UnknownSession, f"session {session} was closed"))
                return
            known.fence(epoch)
            if life is not None and known.life > life:
                return
            self.end(known, UnknownSession, f"session {session} was closed")

    def end(self, session: StageSession, kind: type[Exception], why: str) -> None:
        """Takes a session out; a step in hand is answered with `kind(why)`."""
        with self.lock:
            if session.gone:
                return
            session.gone = True
            self._sessions.pop(session.request.session, None)
            self._remember(session.request.session, _Ended(session.epoch, session.life, kind, why))
            if session.job is None:
                session.state = None
            else:
                self._leaving.append(session)
                session.job.future.set_exception(kind(why))

    def dropped(self, job: StepJob) -> bool:
        """Whether the job's session is gone; its State is let go of, since no step uses it now."""
        with self.lock:
            if not job.session.gone:
                return False
            job.session.state = job.session.job = None
            self._leaving = [session for session in self._leaving if session is not job.session]
            return True

    def residents(self) -> tuple[Resident, ...]:
        """Everybody who is here, and for how long nobody has called for them."""
        with self.lock:
            now, here = self._clock(), self._sessions.items()
            return tuple(
                Resident(
                    *_parts(name),
                    s.epoch,
                    0.0 if s.job else now - s.touched,
                    held_bytes=s.held or s.need.retained,
                    alone_ms=s.alone_ms,
                )
                for name, s in here
            )

    def active(self) -> int:
        """How many want chunks: somebody has called for them just now."""
        with self.lock:
            since = self._clock() - ACTIVE_S
            return sum(bool(s.job) or s.touched >= since for s in self._sessions.values())

    def shut(self) -> bool:
        """Whether nobody is here; then nobody comes in any more."""
        with self.lock:
            if not self._everyone():
                self._is_shut = True
            return self._is_shut

    def totals(self) -> Totals:
        with self.lock:
            everyone = self._everyone()
            reserved = self.room.reserved([s.need for s in everyone])
            return Totals(len(everyone), sum(s.held for s in everyone), reserved)

    def check(self) -> None:
        """Raises AssertionError where sessions, jobs and bytes don't add up."""
        with self.lock:
            totals = self.totals()
            assert totals.sessions <= self.room.places, totals
            assert self.room.budget is None or totals.reserved_bytes <= self.room.budget, totals
            assert all(not session.gone for session in self._sessions.values())
            assert all(session.gone and session.job for session in self._leaving)
            for session in self._sessions.values():
                session.check()

    def _reopened(self, request: OpenRequest) -> StageSession | None:
        """The session, if `request` repeats its open."""
        ended = self._ended.get(request.session)
        if ended is not None and request.epoch.number <= ended.epoch.number:
            raise StaleEpoch(f"session {request.session} has ended: {ended.why}")
        known = self._sessions.get(request.session)
        if known is None:
            return None
        known.fence(request.epoch)
        if known.state is None or known.next_seq or known.job:
            raise BadRequest(f"session {request.session} is open already; attach to it")
        return known

    def _everyone(self) -> list[StageSession]:
        return [*self._sessions.values(), *self._leaving]

    def _refuse_late(self, request: OpenRequest, life: int) -> None:
        """Raises StaleEpoch where this life is over: the request comes a second time, or after it was given up."""
        ended = self._ended.get(request.session)
        if ended is not None and (request.epoch.number, life) <= (ended.epoch.number, ended.life):
            raise StaleEpoch(f"session {request.session}: life {ended.life} has ended, {life} came late: {ended.why}")

    def _remember(self, session: str, ended: _Ended) -> None:
        before = self._ended.pop(session, ended)
        over = max((before.epoch.number, before.life), (ended.epoch.number, ended.life))
        epoch = before.epoch if before.epoch.number > ended.epoch.number else ended.epoch
        self._ended[session] = replace(ended, epoch=epoch, life=over[1], at=self._clock())
        while len(self._ended) > MOST_REMEMBERED or next(iter(self._ended.values())).at < self._clock() - REMEMBER_S:
            self._ended.popitem(last=False)


def _parts(name: str) -> tuple[str, str]:
    """Session and stage, as their gateway names the two together."""
    session, _, stage = name.rpartition("/")
    return session, stage
