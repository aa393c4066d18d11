"""Which session makes room for another: the one that has been left alone longest."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Resting:
    """A session that could be put away. models: that hold a State of it. alone_s: since nobody has been there, or was
    given a frame; None while somebody is."""

    session: str
    models: frozenset[str]
    alone_s: float | None


def victim(sessions: Iterable[Resting], models: Collection[str], least_s: float) -> str | None:
    """The one to be suspended so that one of `models` has room: left alone longest, and for at least `least_s` (the
    first by name of several). None if nobody will do."""
    there = [(-s.alone_s, s.session) for s in sessions if s.alone_s is not None and not s.models.isdisjoint(models)]
    longest, session = min(there, default=(0.0, None))
    return session if -longest >= least_s else None
