"""Whether sessions may be opened and taken over: not while the store may have forgotten who has them (design §4)."""

from __future__ import annotations

import logging
import math

from riverrun.graphs.waiting import Clock
from riverrun.models.base import Unavailable
from riverrun.store.records import Store

log = logging.getLogger(__name__)


class Grants:
    """grace_s: after the store was restarted, failed over or has lost its data, runners get so long to tell it of their
    sessions again before anybody may have one."""

    def __init__(self, store: Store, clock: Clock, grace_s: float) -> None:
        self._store, self._clock, self._grace_s = store, clock, grace_s
        self._known: tuple[str, str] | None = None
        self._since = -math.inf

    async def look(self) -> float:
        """Notes which store answers; seconds since it was given its name. Raises Unavailable while it is away."""
        found = await self._store.identity()
        if self._known and self._known != (found.run, found.born):
            what = "was restarted" if self._known[1] == found.born else "has lost its data"
            log.warning("the store %s; for %g s no session is opened or taken over", what, self._grace_s)
            self._since = self._clock.now()
        self._known = found.run, found.born
        return self._clock.now() - found.born_at

    async def check(self) -> None:
        """Raises Unavailable unless sessions may be opened and taken over now."""
        await self.look()
        self._wait(self._clock.now() - self._since)

    async def check_lost(self) -> None:
        """Raises Unavailable unless a session that the store does not know may be taken over: it may be one that runs,
        and the store is new to everybody."""
        age_s = await self.look()
        self._wait(min(age_s, self._clock.now() - self._since))

    def _wait(self, passed_s: float) -> None:
        if passed_s < self._grace_s:
            again = f"try again in {self._grace_s - passed_s:.0f} s"
            raise Unavailable(f"the store came back, maybe without all it had; sessions that run come first: {again}")
