"""The actors of one model: started, watched, and replaced under a new incarnation when they die."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from riverrun.actors.handles import own_error
from riverrun.actors.health import Resident, StageHealth
from riverrun.actors.sessions import NoRoom
from riverrun.cluster.placement import Load, keeps_headroom, least_loaded
from riverrun.configs import ModelConfig
from riverrun.models.base import BadRequest, ModelInfo, Unavailable

log = logging.getLogger(__name__)
START_S = 300.0
ANSWER_S = 5.0
RETRY_S = 10.0
"""A model that would not load is not tried again for so long."""
OLD = ".old"
"""After the name of an actor that a new life of it has taken the place of, while sessions leave it."""

Start = Callable[[ModelConfig, str], ray.actor.ActorHandle]


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
    one on this machine ("": any)."""

    avoid: str = ""
    actor: str = ""
    node: str = ""

    @property
    def is_for_a_new_session(self) -> bool:
        return not (self.avoid or self.actor)


ANYWHERE = PlaceWish()


@dataclass
class Member:
    """One actor. loading: the reference of its `load`. loaded: that has come back. until: when sessions must have left
    it, seconds since 1970 (None: they need not)."""

    name: str
    incarnation: str
    handle: ray.actor.ActorHandle
    loading: ray.ObjectRef
    loaded: bool = False
    info: ModelInfo | None = None
    until: float | None = None

    @property
    def about(self) -> dict[str, str]:
        """What a log line of it is about."""
        return {"actor": self.name, "incarnation": self.incarnation}


@dataclass(frozen=True)
class MemberHealth:
    """One actor as the controller sees it. health: None while it loads or does not answer."""

    actor: str
    model: str
    incarnation: str
    health: StageHealth | None


class Pool:
    """`config.actor.count` actors of one model. Safe for any thread."""

    def __init__(self, config: ModelConfig, start: Start) -> None:
        self.config = config
        self._start = start
        self._lock = threading.RLock()
        self._members: dict[str, Member] = {}
        self._cordoned: set[str] = set()
        self._failure: tuple[float, Exception] | None = None
        self.is_used = False  # once used, its actors are kept running

    @property
    def has_failed(self) -> bool:
        """Whether the model could not be loaded the last time; it is tried again when a session asks for it."""
        return self._failure is not None

    def fill(self) -> None:
        """Starts what is missing. Raises Unavailable if the last start failed only a moment ago."""
        with self._lock:
            self.is_used = True
            if self._failure and time.monotonic() < self._failure[0] + RETRY_S:
                raise Unavailable(f"model {self.config.name!r} can't be loaded: {self._failure[1]}")
            self._failure = None
            for n in range(self.config.actor.count):
                name = f"{self.config.name}-{n}"
                if name not in self._members:
                    self._members[name] = self._start_one(name)

    def place(self, wish: PlaceWish = ANYWHERE) -> Place:
        """The actor with most room, started first if need be. Raises Unavailable, NoRoom, BadRequest (none like it)."""
        for _ in range(3):  # an actor may turn out dead, and its replacement too
            healths = self._answering()
            fit = {name: m for name, (m, _) in healths.items() if self._suits(m, wish)}
            loads = [_load(name, healths[name][1]) for name in fit]
            if loads:
                chosen = least_loaded(loads, wish.node)
                if chosen is None:
                    places = sum(load.max_sessions for load in loads)
                    raise NoRoom(f"all {places} places of model {self.config.name!r} are taken; one must end first")
                if wish.is_for_a_new_session and self.config.actor.headroom and not keeps_headroom(loads, chosen):
                    raise NoRoom(f"what is free of model {self.config.name!r} is kept for sessions whose actor dies")
                return self._place(fit[chosen])
            if healths:
                raise Unavailable(f"no other actor of model {self.config.name!r} runs; one may be starting")
        raise self._nobody()

    def loads(self) -> list[Load]:
        """Of the actors that a new session may be placed on; started first if need be. Raises Unavailable."""
        return [_load(name, health) for name, (m, health) in self._answering().items() if self._suits(m, ANYWHERE)]

    def _answering(self) -> dict[str, tuple[Member, StageHealth]]:
        self.fill()
        return {m.name: (m, h) for m in self._loaded(START_S) if (h := self._health(m))}

    def _suits(self, member: Member, wish: PlaceWish) -> bool:
        if wish.actor and wish.actor not in (names := [f"{self.config.name}-{n}" for n in range(self._count)]):
            raise BadRequest(f"model {self.config.name!r} has no actor {wish.actor!r}; there are {', '.join(names)}")
        if member.until is not None or (member.name in self._cordoned and member.name != wish.actor):
            return False
        return member.incarnation != wish.avoid and wish.actor in ("", member.name)

    @property
    def _count(self) -> int:
        return self.config.actor.count

    def find(self, actor: str, incarnation: str) -> Place | None:
        """That very actor, if it lives."""
        with self._lock:
            lives = [m for m in (self._members.get(actor), self._members.get(actor + OLD)) if m]
        member = next((m for m in lives if m.incarnation == incarnation), None)
        if member is None or not self._is_loaded(member):
            return None
        return self._place(member) if self._health(member) else None

    def cordon(self, actors: Collection[str]) -> list[str]:
        """No session is placed on these any more (empty: on all again); which of them are of this model."""
        with self._lock:
            self._cordoned = {name for name in self._members if name in actors}
            return sorted(self._cordoned)

    def renew(self, actor: str, seconds: float) -> str:
        """Starts a new life of an actor beside it, and puts it in its place when it is loaded: the one before takes no
        session from then on, those there leave it within `seconds`, and it ends when it is empty (`retire`). The
        incarnation that is left, "" if it had died. Raises Unavailable (the new one does not load: nothing has
        changed), BadRequest (no such actor, or it is being left already)."""
        with self._lock:
            if actor not in self._members or self._members[actor].until is not None:
                there = ", ".join(sorted(name for name, m in self._members.items() if m.until is None))
                raise BadRequest(f"no actor {actor!r} of model {self.config.name!r}; there are {there or 'none'}")
            if actor + OLD in self._members:
                raise BadRequest(f"actor {actor!r} was renewed a moment ago, and sessions are still leaving it")
        fresh = self._start_one(actor)
        try:
            fresh.info = ray.get(fresh.loading, timeout=START_S)
        except (RayTaskError, RayActorError, GetTimeoutError) as error:
            ray.kill(fresh.handle)
            why = own_error(error) if isinstance(error, RayTaskError) else f"not loaded after {START_S:g} s, or died"
            raise Unavailable(f"no new life of {actor!r}, the old one goes on: {why}") from None
        with self._lock:
            before = self._members.pop(actor, None)
            if before:
                before.name, before.until = actor + OLD, time.time() + seconds
                self._members[before.name] = before
            self._members[actor] = fresh
            self._begin(fresh)
        return before.incarnation if before else ""

    def leaving(self) -> dict[str, float]:
        """Incarnations that sessions are to leave, and until when, seconds since 1970."""
        with self._lock:
            return {m.incarnation: m.until for m in self._members.values() if m.until is not None}

    def retire(self, seen: Collection[MemberHealth]) -> None:
        """Ends those that sessions were to leave, and have. seen: how they are."""
        for member in seen:
            if member.actor.endswith(OLD) and member.health and not member.health.sessions:
                self.kill(member.actor, "a new life has taken its place", logging.INFO)

    def any(self) -> Place:
        """Any actor that is loaded, for what needs no place of its own."""
        self.fill()
        for member in self._loaded(START_S):
            if member.until is None and self._health(member):
                return self._place(member)
        raise self._nobody()

    def info(self, timeout_s: float) -> ModelInfo | None:
        """What the model says of itself; None if it has not been started or does not load in time."""
        return next((m.info for m in self._loaded(timeout_s) if m.info), None)

    def healths(self) -> list[MemberHealth]:
        """All actors of the model; dead ones are taken out."""
        with self._lock:
            members = list(self._members.values())
        seen = [(m, self._health(m) if self._is_loaded(m) else None) for m in members]
        return [MemberHealth(m.name, self.config.name, m.incarnation, health) for m, health in seen]

    def residents(self) -> list[Resident]:
        """Whose States lie on the actors that answer."""
        if self.config.stage == "encoder":
            return []
        with self._lock:
            members = [member for member in self._members.values() if member.loaded]
        found = []
        for m in members:
            with suppress(GetTimeoutError, RayActorError):  # `healths` says so
                there = ray.get(m.handle.residents.remote(), timeout=ANSWER_S)
                found += [replace(r, model=self.config.name, actor=m.name, incarnation=m.incarnation) for r in there]
        return found

    def evict(self, resident: Resident) -> None:
        """Frees a State, unless somebody has taken it over since. Raises StaleEpoch then; Unavailable."""
        place = self.find(resident.actor, resident.incarnation)
        if place is None:
            return
        name = f"{resident.session}/{resident.stage}"
        try:
            ray.get(place.handle.close.remote(name, resident.epoch), timeout=ANSWER_S)
        except RayTaskError as error:
            raise own_error(error) from None
        except (GetTimeoutError, RayActorError) as error:
            raise Unavailable(f"actor {resident.actor} does not answer") from error

    def check(self) -> None:
        """Raises Corrupt with what the check of an actor found; one that has died has nothing to say."""
        with self._lock:
            members = [member for member in self._members.values() if member.loaded]
        for member in members:
            try:
                ray.get(member.handle.check.remote(), timeout=START_S)
            except RayTaskError as error:
                raise own_error(error) from None
            except RayActorError:
                log.warning("actor %s (%s) died and was not checked", member.name, member.incarnation)

    def kill(self, actor: str, why: str, level: int = logging.ERROR) -> None:
        """Ends an actor's process; the next call replaces it."""
        with self._lock:
            member = self._members.pop(actor, None)
        if member:
            log.log(level, "actor %s is ended: %s", actor, why, extra=member.about)
            ray.kill(member.handle)

    def _start_one(self, name: str) -> Member:
        incarnation = uuid.uuid4().hex[:12]
        handle = self._start(self.config, incarnation)
        return Member(name, incarnation, handle, handle.load.remote())

    def _loaded(self, timeout_s: float) -> list[Member]:
        """Members that are loaded; waits for the first one."""
        with self._lock:
            members = list(self._members.values())
        if members and not any(m.loaded for m in members):
            ray.wait([m.loading for m in members], num_returns=1, timeout=timeout_s)
        return [m for m in members if self._is_loaded(m)]

    def _is_loaded(self, member: Member) -> bool:
        if member.loaded:
            return True
        try:
            member.info = ray.get(member.loading, timeout=0)
        except GetTimeoutError:
            return False
        except RayTaskError as error:
            return self._fail(member, own_error(error))
        except RayActorError:
            return self._fail(member, Unavailable("its process died while loading"))
        with self._lock:
            self._begin(member)
        return True

    def _begin(self, member: Member) -> None:
        if not member.loaded and member.info:
            member.handle.run.remote()
        member.loaded = True

    def _fail(self, member: Member, why: Exception) -> bool:
        log.error("model %s can't be loaded: %s", self.config.name, why)
        with self._lock:
            if self._members.get(member.name) is member:  # else another thread was here before, and it is replaced
                del self._members[member.name]
            self._failure = (time.monotonic(), why)
        ray.kill(member.handle)
        return False

    def _nobody(self) -> Unavailable:
        why = f"can't be loaded: {self._failure[1]}" if self._failure else "has no actor that answers"
        return Unavailable(f"model {self.config.name!r} {why}")

    def _health(self, member: Member) -> StageHealth | None:
        """None if it is dead (and taken out) or does not answer (and left in)."""
        try:
            return ray.get(member.handle.health.remote(), timeout=ANSWER_S)
        except GetTimeoutError:
            log.warning("actor %s has not answered for %g s", member.name, ANSWER_S, extra=member.about)
        except RayActorError:
            with self._lock:
                if self._members.get(member.name) is member:
                    log.error("actor %s died; it is replaced", member.name, extra=member.about)
                    del self._members[member.name]
        return None

    def _place(self, member: Member) -> Place:
        return Place(member.name, self.config.name, member.incarnation, member.handle, member.info)


def _load(name: str, health: StageHealth) -> Load:
    reserved, limit = health.reserved_bytes, health.max_bytes
    sizes = (health.retained_bytes, health.peak_bytes)
    return Load(name, health.sessions, health.max_sessions, reserved, limit, *sizes, node=health.node)
