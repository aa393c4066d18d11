"""One actor of a model as the controller knows it, and what is said of it elsewhere."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

import ray

from riverrun.actors.health import Look, StageHealth
from riverrun.models.base import ModelInfo

NAMED_APART = ":"


@dataclass(frozen=True)
class Place:
    """An actor that a session may be opened on. actor: its name; incarnation: which life of it."""

    actor: str
    model: str
    incarnation: str
    handle: ray.actor.ActorHandle
    info: ModelInfo | None


@dataclass(frozen=True)
class PlaceWish:
    """Which actors will do. avoid: none of this incarnation. actor: only the one of this name ("": any). node: rather
    one on this machine ("": any). session, stage: who is to be placed ("": whoever)."""

    avoid: str = ""
    actor: str = ""
    node: str = ""
    session: str = ""
    stage: str = ""

    @property
    def is_for_a_new_session(self) -> bool:
        return not (self.avoid or self.actor)


@dataclass
class Member:
    """One actor. loading: the reference of its `load`. loaded: that has come back. until: when sessions must have left
    it, seconds since 1970 (None: they need not; inf: whenever they can). node: where it runs, once it has said so."""

    name: str
    incarnation: str
    handle: ray.actor.ActorHandle
    loading: ray.ObjectRef
    loaded: bool = False
    info: ModelInfo | None = None
    until: float | None = None
    node: str = ""

    @property
    def about(self) -> dict[str, str]:
        """What a log line of it is about."""
        return {"actor": self.name, "incarnation": self.incarnation}

    @property
    def is_let_go(self) -> bool:
        """Whether it is to end since fewer will do; it may be taken back."""
        return self.until == math.inf


@dataclass(frozen=True)
class Seen:
    """A member that answered, and what it said."""

    member: Member
    look: Look

    @property
    def health(self) -> StageHealth:
        return self.look.health


@dataclass(frozen=True)
class MemberHealth:
    """One actor as the controller sees it. health: None while it loads or does not answer."""

    actor: str
    model: str
    incarnation: str
    health: StageHealth | None


@dataclass(frozen=True)
class Registered:
    """The name that an actor goes by in Ray, where it outlives its controller. config: digest of what it was started
    with: a controller with another configuration has no use for it."""

    name: str
    incarnation: str
    config: str

    def __str__(self) -> str:
        return NAMED_APART.join((self.name, self.incarnation, self.config))

    @classmethod
    def read(cls, text: str) -> Registered | None:
        parts = text.split(NAMED_APART)
        return cls(*parts) if len(parts) == 3 else None


def new_incarnation() -> str:
    return uuid.uuid4().hex[:12]
