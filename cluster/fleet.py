"""What decisions are made over: workers, and the sessions that live on them. A snapshot; nothing here changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Session:
    """One session at one stage.

    alone_ms: what its chunk takes with a worker to itself. state_bytes: what a move carries.
    """

    id: str
    alone_ms: float
    state_bytes: int = 0


@dataclass(frozen=True)
class Worker:
    """places: the most active sessions it can hold. sessions: those it holds. is_cordoned: it is to be emptied, and
    takes no more."""

    id: str
    places: int
    sessions: tuple[Session, ...] = ()
    is_cordoned: bool = False

    @property
    def room(self) -> int:
        return 0 if self.is_cordoned else self.places - len(self.sessions)


@dataclass(frozen=True)
class Move:
    """source: None for a session that had no place."""

    session: str
    source: str | None
    target: str


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order: start workers up to `workers`, the moves, then let go of `released`.

    why: one line for each decision, for people.
    """

    workers: int
    moves: tuple[Move, ...] = ()
    released: tuple[str, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)
