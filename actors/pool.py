"""The actors of one model: started, watched, replaced under a new incarnation when they die, and let go when fewer
will do. How many there are, and who goes where, is decided in `actors/planner.py`."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from riverrun.actors.handles import own_error
from riverrun.actors.health import Look, Resident
from riverrun.actors.member import Member, MemberHealth, Place, Registered, Seen, new_incarnation
from riverrun.configs import ModelConfig
from riverrun.models.base import BadRequest, ModelInfo, Unavailable
from riverrun.protos import OLD

log = logging.getLogger(__name__)
START_S = 300.0
ANSWER_S = 5.0
RETRY_S = 10.0
"""A model that would not load is not tried again for so long."""

Start = Callable[[ModelConfig, str, str], ray.actor.ActorHandle]
"""By configuration, incarnation and the name that Ray is to know it by ("": none, it ends with its controller)."""


class Pool:
    """`wanted` actors of one model. digest: of what they are started with, where they go on without the controller that
    started them ("": they end with it). Safe for any thread."""

    def __init__(self, config: ModelConfig, start: Start, digest: str = "") -> None:
        self.config = config
        self.wanted = config.actor.count
        self._start, self._digest = start, digest
        self._lock = threading.RLock()
        self._members: dict[str, Member] = {}
        self._renewing: set[str] = set()
        self._cordons: Mapping[str, float] = {}
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
            for _ in range(self.wanted - len(self._staying())):
                name = next(name for n in itertools.count() if (name := f"{self.config.name}-{n}") not in self._members)
                self._members[name] = self._start_one(name)

    def resize(self, wanted: int, go: Collection[str]) -> None:
        """From now on so many. go: names of those that are let go when sessions have left them; what is loading comes
        before them, and who was let go and is still there is taken back first."""
        with self._lock:
            self.wanted = wanted
            for name in go:
                self._members[name].until = math.inf
            missing = wanted - len(self._staying())
            for member in [m for m in self._members.values() if m.is_let_go and m.name not in go][: max(missing, 0)]:
                member.until = None
            loading = [m for m in self._staying() if not m.loaded]
            for member in loading[len(loading) + min(missing, 0) :] if missing < 0 else []:
                member.until = math.inf

    def _staying(self) -> list[Member]:
        return [m for m in self._members.values() if m.until is None]

    @property
    def starting(self) -> int:
        """How many are being loaded."""
        with self._lock:
            return sum(not m.loaded for m in self._staying())

    @property
    def names(self) -> list[str]:
        """Of those that sessions may be placed on, loaded or not."""
        with self._lock:
            return sorted(m.name for m in self._staying())

    def lives(self) -> set[str]:
        """Incarnations of all its actors, those that are to take another's place among them, as far as is known without
        asking them."""
        with self._lock:
            return {member.incarnation for member in self._members.values()} | self._renewing

    def looks(self, timeout_s: float = 0.0) -> list[Seen]:
        """Those that are loaded and answer; waits for the first one to load. Dead ones are taken out."""
        return self._ask(self._loaded(timeout_s))

    def ready(self) -> list[Seen]:
        """As `looks`, with what is missing started, and waited for if it is the first. Raises Unavailable."""
        self.fill()
        return self.looks(START_S)

    def place_of(self, member: Member) -> Place:
        """What a gateway needs to know of it."""
        return Place(member.name, self.config.name, member.incarnation, member.handle, member.info)

    def find(self, actor: str, incarnation: str) -> Place | None:
        """That very actor, if it lives."""
        with self._lock:
            lives = [m for m in (self._members.get(actor), self._members.get(actor + OLD)) if m]
        member = next((m for m in lives if m.incarnation == incarnation), None)
        if member is None or not self._is_loaded(member):
            return None
        return self.place_of(member) if self._ask([member]) else None

    def cordon(self, cordons: Mapping[str, float]) -> None:
        """No session is placed on these any more, and those there leave. By incarnation or node: until when, seconds
        since 1970."""
        with self._lock:
            self._cordons = dict(cordons)

    def is_open(self, member: Member) -> bool:
        """Whether sessions may be placed there."""
        return member.until is None and not {member.incarnation, member.node} & self._cordons.keys()

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
            self._renewing.add(fresh.incarnation)
        try:
            fresh.info = ray.get(fresh.loading, timeout=START_S)
        except (RayTaskError, RayActorError, GetTimeoutError) as error:
            ray.kill(fresh.handle)
            self._renewing.discard(fresh.incarnation)
            why = own_error(error) if isinstance(error, RayTaskError) else f"not loaded after {START_S:g} s, or died"
            raise Unavailable(f"no new life of {actor!r}, the old one goes on: {why}") from None
        with self._lock:
            self._renewing.discard(fresh.incarnation)
            before = self._members.pop(actor, None)
            if before:
                before.name, before.until = actor + OLD, time.time() + seconds
                self._members[before.name] = before
            fresh.loaded = True
            self._members[actor] = fresh
        return before.incarnation if before else ""

    def leaving(self) -> dict[str, float]:
        """Incarnations that sessions are to leave, and until when, seconds since 1970."""
        with self._lock:
            found = self.let_go()
            for m in self._members.values():
                ends = [until for key, until in self._cordons.items() if key in (m.incarnation, m.node)]
                if ends:
                    found[m.incarnation] = min(*ends, found.get(m.incarnation, math.inf))
            return found

    def let_go(self) -> dict[str, float]:
        """As `leaving`, of those whose place others take, or that fewer will do without."""
        with self._lock:
            return {m.incarnation: m.until for m in self._members.values() if m.until is not None}

    def bundles(self) -> list[dict[str, float]]:
        """What Ray must have free for each of those that there should be, cordoned ones left out; none where that is
        nothing."""
        limits = self.config.actor
        one = {**({"GPU": limits.num_gpus} if limits.num_gpus else {}), **limits.resources}
        with self._lock:
            cordoned = sum(not self.is_open(member) for member in self._staying())
            return [one] * (self.wanted - cordoned) if one and self.is_used else []

    def retire(self, seen: Iterable[Seen]) -> None:
        """Ends those that sessions were to leave, and have; they let nobody in from then on. seen: who answers."""
        for each in seen:
            if each.member.until is not None and not each.health.sessions and self._is_shut(each.member):
                self.kill(each.member.name, "sessions have left it, as they were to", logging.INFO)
        with self._lock:
            unused = [m for m in self._members.values() if m.is_let_go and not m.loaded]
        for member in unused:
            self.kill(member.name, "fewer will do, and it was still loading", logging.INFO)

    def _is_shut(self, member: Member) -> bool:
        if self.config.stage == "encoder":
            return True
        try:
            return ray.get(member.handle.retire.remote(), timeout=ANSWER_S)
        except (GetTimeoutError, RayActorError, RayTaskError):
            return False  # it is looked at again

    def any(self) -> Place:
        """Any actor that is loaded, for what needs no place of its own."""
        for seen in self.ready():
            if seen.member.until is None:
                return self.place_of(seen.member)
        raise self.nobody()

    def info(self, timeout_s: float) -> ModelInfo | None:
        """What the model says of itself; None if it has not been started or does not load in time."""
        return next((m.info for m in self._loaded(timeout_s) if m.info), None)

    def healths(self) -> list[MemberHealth]:
        """All actors of the model; dead ones are taken out."""
        seen = {each.member.name: each.health for each in self.looks()}
        with self._lock:
            members = list(self._members.values())
        return [MemberHealth(m.name, self.config.name, m.incarnation, seen.get(m.name)) for m in members]

    def residents(self) -> list[Resident]:
        """Whose States lie on the actors that answer."""
        return [resident for seen in self.looks() for resident in self.residents_of(seen)]

    def residents_of(self, seen: Seen) -> list[Resident]:
        model, member = self.config.name, seen.member
        there = seen.look.residents
        return [replace(r, model=model, actor=member.name, incarnation=member.incarnation) for r in there]

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

    def adopt(self, found: Registered, handle: ray.actor.ActorHandle, until: float | None) -> bool:
        """Takes in an actor that outlived the controller which started it; until: as it was told. Whether it is of this
        configuration."""
        if found.config != self._digest or self.config.name != found.name.rpartition("-")[0]:
            return False
        with self._lock:
            taken = found.name in self._members
            name = found.name + OLD if until is not None and until != math.inf else found.name
            if name == found.name and taken:  # the one of this name came first
                return False
            self._members[name] = Member(name, found.incarnation, handle, handle.load.remote(), until=until)
            self.wanted = max(self.wanted, len(self._staying()))
            self.is_used = True
        return True

    def _start_one(self, name: str) -> Member:
        incarnation = new_incarnation()
        registered = str(Registered(name, incarnation, self._digest)) if self._digest else ""
        handle = self._start(self.config, incarnation, registered)
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
        member.loaded = True
        return True

    def _fail(self, member: Member, why: Exception) -> bool:
        log.error("model %s can't be loaded: %s", self.config.name, why)
        with self._lock:
            if self._members.get(member.name) is member:  # else another thread was here before, and it is replaced
                del self._members[member.name]
            self._failure = (time.monotonic(), why)
        ray.kill(member.handle)
        return False

    def nobody(self) -> Unavailable:
        """Why there is no actor to be had."""
        why = f"can't be loaded: {self._failure[1]}" if self._failure else "has no actor that answers"
        return Unavailable(f"model {self.config.name!r} {why}")

    def _ask(self, members: Collection[Member]) -> list[Seen]:
        """What each says of itself, asked all at once. Who is dead is taken out, who does not answer is left in."""
        calls: dict[ray.ObjectRef, Member] = {m.handle.look.remote(): m for m in members}
        if not calls:
            return []
        answered, silent = ray.wait(list(calls), num_returns=len(calls), timeout=ANSWER_S)
        for call in silent:
            log.warning("actor %s has not answered for %g s", calls[call].name, ANSWER_S, extra=calls[call].about)
        return [Seen(calls[call], look) for call in answered if (look := self._answer(calls[call], call))]

    def _answer(self, member: Member, call: ray.ObjectRef) -> Look | None:
        try:
            look: Look = ray.get(call)
        except RayActorError:
            with self._lock:
                if self._members.get(member.name) is member:
                    log.error("actor %s died; it is replaced", member.name, extra=member.about)
                    del self._members[member.name]
            return None
        member.node = look.health.node
        return look
