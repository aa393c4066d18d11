"""How a session ends: what its record says then, what its readers are told, and when they may come back."""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.graphs.items import Event, EventType
from riverrun.graphs.recovery import NoPlace
from riverrun.graphs.stage import Mismatch, StaleEpoch
from riverrun.models.base import BadRequest, Corrupt, Unavailable, one_line
from riverrun.store.records import Conflict, SessionState

ELSEWHERE_S = 0.5
"""When to come to the gateway that has taken a session over."""

RETRY_S = 30.0
"""When to come back to a session that found no place."""


@dataclass(frozen=True)
class Ending:
    """state, reason: as the record will have them. fault: what it ended of, if it was not wanted. retry_s: of one that
    is put away, when to come back; 0: whenever you like."""

    state: SessionState
    reason: str
    fault: BaseException | None = None
    retry_s: float = 0.0

    @property
    def is_handed_over(self) -> bool:
        """Whether another runner has the session: stages and record are that one's."""
        return isinstance(self.fault, Conflict | StaleEpoch)

    @property
    def is_internal(self) -> bool:
        """Whether it is nobody's fault but the program's."""
        return self.fault is not None and not isinstance(self.fault, BadRequest | Unavailable | Corrupt)

    @property
    def event(self) -> Event:
        """The last thing that readers are told."""
        if self.is_handed_over:
            return Event(EventType.SUSPENDED, "another gateway goes on with it", retry_s=ELSEWHERE_S)
        if self.state is SessionState.SUSPENDED:
            return Event(EventType.SUSPENDED, self.reason, retry_s=self.retry_s)
        return Event(EventType.ENDED, self.reason, failed=self.state is SessionState.FAILED)


def of_fault(fault: BaseException, is_resuming: bool) -> Ending:
    """What a fault makes of a session. is_resuming: it was put away, and does not stand again yet: it stays put away
    where that can be tried again."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    why = one_line(str(fault))
    if isinstance(fault, NoPlace) or (is_resuming and isinstance(fault, Unavailable)):
        return Ending(SessionState.SUSPENDED, why, fault, RETRY_S)
    if is_resuming and isinstance(fault, Mismatch):
        return Ending(SessionState.SUSPENDED, why, fault)
    if isinstance(fault, BadRequest | Unavailable | Corrupt):
        return Ending(SessionState.FAILED, why, fault)
    return Ending(SessionState.FAILED, one_line(f"internal error: {type(fault).__name__}: {fault}"), fault)
