"""What the controller wants gateways to do with sessions that run. They ask for it once a second, so that an order
which a controller did not live to give again is forgotten with it: the next one looks at how things are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MoveOrder:
    """A stage of a session is to go to another actor. source: the incarnation it is on; if it is not there, all is
    done. target: an actor's name."""

    session: str
    stage: str
    source: str
    target: str


@dataclass(frozen=True)
class Orders:
    """leave: incarnations that all sessions leave, and until when, seconds since 1970: what has not moved by then is
    suspended. moves: what each should do, for the sake of the others."""

    leave: Mapping[str, float] = field(default_factory=dict)
    moves: tuple[MoveOrder, ...] = ()
