"""Whether another session fits an actor. Pure functions over bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Bytes of a session: those it keeps between steps, and the most it has during one, those included."""

    retained: int
    peak: int

    @property
    def extra(self) -> int:
        """What a step needs on top of what is kept."""
        return max(0, self.peak - self.retained)


@dataclass(frozen=True)
class Room:
    """What an actor has: places for sessions, bytes for them all (None: no limit), and how many share a step."""

    places: int
    budget: int | None = None
    batch: int | None = None

    def reserved(self, needs: Sequence[Need]) -> int:
        """Bytes that these sessions may need at one moment: what all keep, and the steps of the greediest of them, as
        many as are stepped at once."""
        extras = sorted((need.extra for need in needs), reverse=True)
        return sum(need.retained for need in needs) + sum(extras[: self.batch])

    def fits(self, needs: Sequence[Need]) -> bool:
        """Whether there are bytes for them."""
        return self.budget is None or self.reserved(needs) <= self.budget

    def fitting(self, need: Need) -> int:
        """How many sessions of one size there may be."""
        return next((n for n in range(self.places, 0, -1) if self.fits([need] * n)), 0)

    def refusal(self, needs: Sequence[Need], wanted: Need, usual: Need | None) -> str | None:
        """Why a session may not join `needs`, in one line that says what would fit; None if it may.

        usual: a session with default parameters, where that is known.
        """
        if len(needs) >= self.places:
            return f"all {self.places} places are taken; one must end first"
        if self.budget is None or self.fits([*needs, wanted]):
            return None
        held = self.reserved(needs)
        more = self.reserved([*needs, wanted]) - held
        line = f"a session needs {more / 1e6:.1f} MB, {(self.budget - held) / 1e6:.1f} of {_mb(self.budget)} are free"
        at_once = self.fitting(wanted)
        if usual is not None and usual.peak < wanted.peak and self.fits([*needs, usual]):
            return f"{line}; smaller parameters would fit: {_mb(usual.peak)} with the default ones"
        if not at_once:
            return f"{line}; smaller parameters would fit"
        return f"{line}; one must end first, {at_once} of this size fit at once"


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
