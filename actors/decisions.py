"""What was decided and by which figures, for people who ask why. Bounded, and in memory; the last ones are kept for
the next controller (`journal`)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KEPT = 4096
SHOWN = 20


@dataclass(frozen=True)
class Decision:
    """at: seconds since 1970. kind: place, refuse, move, scale, freeze. session: "" for what is about a whole model.
    inputs: what was compared, by actor or figure, for people."""

    at: float
    kind: str
    model: str
    session: str
    line: str
    inputs: Mapping[str, str]


class Decisions:
    """The last ones of a controller; before: of the one before it. Safe for any thread."""

    def __init__(self, before: Iterable[Decision] = ()) -> None:
        self._lock = threading.Lock()
        self._all: deque[Decision] = deque(before, maxlen=KEPT)

    def note(self, decision: Decision) -> None:
        with self._lock:
            self._all.append(decision)

    def all(self) -> list[Decision]:
        """Oldest first."""
        with self._lock:
            return list(self._all)

    def about(self, session: str) -> list[Decision]:
        """The last ones about a session, and about the models it was placed on; oldest first."""
        found = self.all()
        own = [each for each in found if each.session == session]
        models = {each.model for each in own}
        wider = [each for each in found if not each.session and each.model in models]
        return sorted([*own[-SHOWN:], *wider[-SHOWN:]], key=lambda each: each.at)
