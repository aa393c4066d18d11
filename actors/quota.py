"""What tenants may take: sessions, counted in the store; and frames a second, over everything one gateway sends."""

from __future__ import annotations

import asyncio
import math

from riverrun.actors.sessions import NoRoom
from riverrun.configs.auth import AuthConfig
from riverrun.graphs.waiting import Clock
from riverrun.store.records import SessionRecord, Store

BURST_S = 1.0
"""A tenant that took nothing for a while gets so many seconds' worth of frames at once: a chunk comes whole."""


class Pace:
    """Frames go at `rate` a second on average, in the order they are asked for; `inf`: as they come."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._step, self._clock = 1 / rate, clock
        self._due = -math.inf

    async def take(self) -> None:
        """Returns when one more frame may go. Cancelled, it gives its turn back."""
        if not self._step:
            return
        now = self._clock.now()
        self._due = max(self._due, now) + self._step
        wait = self._due - self._step - BURST_S - now
        if wait > 0:
            try:
                await self._clock.sleep(wait)
            except asyncio.CancelledError:
                self._due -= self._step
                raise


class QuotaFull(NoRoom):
    """A tenant has all the sessions it may have: it makes no difference whether others leave."""


class Quotas:
    """Of all tenants, at one gateway."""

    def __init__(self, config: AuthConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._free = Pace(math.inf, clock)
        self._paces: dict[str, Pace] = {}

    def pace(self, tenant: str) -> Pace:
        """Shared by all connections and jobs of the tenant."""
        rate = self._config.quota(tenant).frames_per_s
        if rate is None:
            return self._free
        if tenant not in self._paces:
            self._paces[tenant] = Pace(rate, self._clock)
        return self._paces[tenant]

    async def admit(self, record: SessionRecord, store: Store) -> None:
        """Counts a session that the store has just been told of. Raises NoRoom if it is one too many."""
        most = self._config.quota(record.tenant).sessions
        if most is not None and not await store.admit(record, most):
            raise QuotaFull(f"tenant {record.tenant!r} has {most} sessions, its quota of {most}; one must end first")
