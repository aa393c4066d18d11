"""Which actor gets the next session. Pure functions over what the actors say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """One actor of a model: sessions it has and may have, bytes set aside for them."""

    actor: str
    sessions: int
    max_sessions: int
    reserved_bytes: int


def least_loaded(loads: Sequence[Load]) -> str | None:
    """The actor with most free places, then fewest bytes set aside, then first by name; None if all are full."""
    free = [load for load in loads if load.sessions < load.max_sessions]
    if not free:
        return None
    return min(free, key=lambda load: (load.sessions - load.max_sessions, load.reserved_bytes, load.actor)).actor
