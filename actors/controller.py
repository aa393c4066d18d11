"""The controller: which models there are, which actors run them, how many, and where a session goes. One a cluster, or
one a service that has joined none.

A cluster's actors go on without it: the next one finds them by their names, and what it must know of them in its notes.
Those of a service that has joined none end with it. It moves no session itself: gateways ask what is to be moved.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorAlreadyExistsError

from riverrun.actors.decisions import Decision, Decisions
from riverrun.actors.encoder import start_encoder
from riverrun.actors.health import Resident, StageHealth
from riverrun.actors.journal import Journal
from riverrun.actors.loading import NAMESPACE as ACTORS
from riverrun.actors.loading import carried
from riverrun.actors.logs import set_up
from riverrun.actors.member import MemberHealth, Place, PlaceWish, Registered
from riverrun.actors.notes import Notebook
from riverrun.actors.orders import Orders
from riverrun.actors.planner import Planner
from riverrun.actors.pool import Pool
from riverrun.actors.stage_actor import start_stage
from riverrun.cluster.placement import shared_node
from riverrun.configs import ModelConfig
from riverrun.configs.telemetry import ActorSetup
from riverrun.graphs.graph import Graph
from riverrun.models.base import BadRequest, ModelInfo

log = logging.getLogger(__name__)
NAME, NAMESPACE = "riverrun-controller", "riverrun"
WATCH_S = 1.0
STRAYS_S = 10.0
"""So often actors are looked for that nobody knows."""

RESTARTS = -1
"""Where it died, Ray starts it again, on another node if need be."""

NODE_CHARACTERS = 8
"""Of a node's id at least, to name it by."""

P99S = 20.0
"""A step may take so many times the 99th percentile of the last ones before its actor counts as hung."""

GROUPS = {"looks": 4, "infos": 32, "places": 32}
"""Threads by concurrency group: calls that wait for a model to load (for minutes where one is to be placed) must not
keep those that only look from being answered."""


@dataclass(frozen=True)
class Catalogue:
    """What the cluster serves, by name. That of the service which started the controller; others join it."""

    models: Mapping[str, ModelConfig]
    graphs: Mapping[str, Graph]
    setup: ActorSetup


class Controller:
    """Pools of actors by model name. step_timeout_s: the least time a step may take before its actor counts as hung.
    is_shared: it is the cluster's, and its actors outlive it."""

    def __init__(self, catalogue: Catalogue, step_timeout_s: float, is_shared: bool) -> None:
        set_up(catalogue.setup.telemetry.log)
        self._catalogue = catalogue
        name = NAME if is_shared else ray.get_runtime_context().get_actor_id()
        self._journal = Journal(name)
        self._decisions, learned = Decisions(self._journal.decisions(time.time())), self._journal.learned()
        starts = {"encoder": partial(start_encoder, catalogue.setup)}
        stage = partial(start_stage, catalogue.setup)
        self._digests = {m.name: _digest(m, catalogue.setup) for m in catalogue.models.values()}
        self._pools = {
            m.name: Pool(m, starts.get(m.stage, stage), self._digests[m.name] if is_shared else "")
            for m in catalogue.models.values()
        }
        pools = self._pools.items()
        self._planners = {
            n: Planner(p, self._decisions, learned=learned.get(self._digests[n]))
            for n, p in pools
            if p.config.stage != "encoder"
        }
        self._step_timeout_s = step_timeout_s
        self._notebook = Notebook(name)
        self._life = uuid.uuid4().hex
        self._notebook.claim(self._life)
        self._notes = self._notebook.read()
        self._noting = threading.Lock()
        self._asked: list[dict[str, float]] | None = None
        self._is_shared, self._strays_at = is_shared, 0.0
        if is_shared:
            self._adopt()
        for pool in self._pools.values():
            pool.cordon(self._notes.cordons)
            if pool.config.actor.eager:
                pool.fill()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _adopt(self) -> None:
        """Takes in the actors of the controller before; ends those of another configuration."""
        for found, handle in registered():
            until = self._notes.leaving.get(found.incarnation)
            if any(pool.adopt(found, handle, until) for pool in self._pools.values()):
                log.info("actor %s goes on under a new controller", found.name)
            else:
                log.warning("actor %s is of another configuration, and ended", found.name)
                ray.kill(handle)

    def _end_strays(self) -> None:
        """Ends actors that the controller before has started after this one had taken in what there was. Whoever holds
        the notes has claimed them before it started any: what is listed and unknown is not the next one's."""
        if time.monotonic() < self._strays_at:
            return
        self._strays_at = time.monotonic() + STRAYS_S
        there = registered()
        known = {life for pool in self._pools.values() for life in pool.lives()}
        strays = [(found, handle) for found, handle in there if found.incarnation not in known]
        if strays and self._notebook.is_held_by(self._life):
            for found, handle in strays:
                log.warning("actor %s (%s) is nobody's, and ended", found.name, found.incarnation)
                ray.kill(handle)

    @ray.method(concurrency_group="looks")
    def catalogue(self) -> Catalogue:
        """The models and graphs there are."""
        return self._catalogue

    @carried
    @ray.method(concurrency_group="places")
    def place(self, models: Sequence[str], session: str, stages: Sequence[str]) -> list[Place]:
        """An actor for each stage's model, on one node if they fit there. session, stages: whom it is for. Raises
        BadRequest (no such model), NoRoom, Unavailable."""
        planners = [self._planner(model) for model in models]
        node = shared_node([planner.loads() for planner in planners]) if len(planners) > 1 else ""
        wishes = [PlaceWish(node=node, session=session, stage=stage) for stage in stages]
        return [planner.place(wish) for planner, wish in zip(planners, wishes, strict=True)]

    @ray.method(concurrency_group="looks")
    def settle(self, session: str) -> None:
        """A session that was given places has opened, or will not."""
        for planner in self._planners.values():
            planner.settle(session)

    @carried
    @ray.method(concurrency_group="places")
    def place_one(self, model: str, wish: PlaceWish) -> Place:
        """An actor for one stage. Raises as `place`."""
        return self._planner(model).place(wish)

    @carried
    @ray.method(concurrency_group="looks")
    def find(self, model: str, actor: str, incarnation: str) -> Place | None:
        """That very actor, if it lives."""
        return self._pool(model).find(actor, incarnation)

    @carried
    @ray.method(concurrency_group="looks")
    def cordon(self, target: str, seconds: float) -> list[str]:
        """No session is placed on actor or node `target` any more, and those there leave within `seconds`, until it is
        gone; "" ends that for all. The actors it means. Raises BadRequest for one that there is not. The first
        characters of a node's id will do where no other begins with them."""
        seen = [health for pool in self._pools.values() for health in pool.healths()]
        nodes = {h.health.node for h in seen if h.health}
        alike = [node for node in nodes if len(target) >= NODE_CHARACTERS and node.startswith(target)]
        node = alike[0] if len(alike) == 1 else target
        meant = [h for h in seen if target and (h.actor == target or (h.health and h.health.node == node))]
        if target and not meant:
            there = ", ".join(sorted({h.actor for h in seen}))
            raise BadRequest(f"no actor or node {target!r}; there are actors {there}")
        until = time.time() + seconds
        keys = [node] if node in nodes else [h.incarnation for h in meant]
        self._note(cordons={**self._notes.cordons, **dict.fromkeys(keys, until)} if target else {})
        return sorted(h.actor for h in meant)

    @ray.method(concurrency_group="looks")
    def orders(self) -> Orders:
        """What is to be left, and until when; and what is to be moved."""
        leave = {life: until for pool in self._pools.values() for life, until in pool.leaving().items()}
        return Orders(leave, tuple(move for planner in self._planners.values() for move in planner.orders()))

    @carried
    @ray.method(concurrency_group="looks")
    def freeze(self, is_frozen: bool) -> None:
        """Nothing is moved and nothing scaled until it is thawed; sessions are placed, and what dies is replaced."""
        self._note(frozen=is_frozen)
        line = "nothing is moved or scaled from now on" if is_frozen else "sessions are moved, and actors scaled, again"
        self._decisions.note(Decision(time.time(), "freeze", "", "", line, {}))

    @ray.method(concurrency_group="looks")
    def is_frozen(self) -> bool:
        return self._notes.frozen

    @carried
    @ray.method(concurrency_group="looks")
    def why(self, session: str) -> list[Decision]:
        """The last decisions about a session."""
        return self._decisions.about(session)

    @carried
    @ray.method(concurrency_group="infos")
    def renew(self, actor: str, seconds: float) -> str:
        """See `Pool.renew`. Raises BadRequest for an actor that there is not."""
        models = {seen.actor: seen.model for pool in self._pools.values() for seen in pool.healths()}
        if actor not in models:
            raise BadRequest(f"no actor {actor!r}; there are {', '.join(sorted(models)) or 'none'}")
        return self._pool(models[actor]).renew(actor, seconds)

    @carried
    @ray.method(concurrency_group="places")
    def encoder(self, model: str) -> Place | None:
        """The prompt encoder of a model, if it wants one."""
        wanted = self._pool(model).config.encoder
        return self._pool(wanted).any() if wanted else None

    @carried
    @ray.method(concurrency_group="infos")
    def infos(self, timeout_s: float, start: Sequence[str] = ()) -> dict[str, ModelInfo | None]:
        """What each model says of itself; None for those not running yet. Waits for those that are loading. start:
        models that are started if they are not. Raises BadRequest (no such model), Unavailable."""
        for pool in [self._pool(model) for model in start]:
            pool.fill()
        with ThreadPoolExecutor(max(1, len(self._pools))) as threads:
            return dict(zip(self._pools, threads.map(lambda p: p.info(timeout_s), self._pools.values()), strict=True))

    @carried
    @ray.method(concurrency_group="looks")
    def actors(self) -> list[MemberHealth]:
        """Every actor of every model."""
        return [health for pool in self._pools.values() for health in pool.healths()]

    @carried
    @ray.method(concurrency_group="looks")
    def wanted(self) -> dict[str, int]:
        """By model: for how many actors Ray's autoscaler is asked to have nodes."""
        return {name: len(pool.bundles()) for name, pool in self._pools.items()}

    @carried
    @ray.method(concurrency_group="looks")
    def residents(self) -> list[Resident]:
        """Whose States lie on the actors of every model."""
        return [resident for pool in self._pools.values() for resident in pool.residents()]

    @carried
    @ray.method(concurrency_group="looks")
    def evict(self, resident: Resident) -> None:
        """See `Pool.evict`."""
        self._pool(resident.model).evict(resident)

    @carried
    @ray.method(concurrency_group="looks")
    def check(self) -> None:
        """Raises Corrupt if the books of an actor do not add up. For tests."""
        for pool in self._pools.values():
            pool.check()

    def _pool(self, model: str) -> Pool:
        if model not in self._pools:
            raise BadRequest(f"no model {model!r}; there are {', '.join(sorted(self._pools))}")
        return self._pools[model]

    def _planner(self, model: str) -> Planner:
        self._pool(model)
        if model not in self._planners:
            raise BadRequest(f"model {model!r} encodes prompts; no stage can run it")
        return self._planners[model]

    def _watch(self) -> None:
        """Replaces what died, ends what hangs, and decides, for ever."""
        while True:
            time.sleep(WATCH_S)
            self._try("looking for another controller", self._end_if_replaced)
            for name, pool in self._pools.items():
                self._try(f"looking after model {name}", partial(self._look, pool))
            self._try("keeping notes", self._keep_notes)
            self._try("keeping the journal", self._keep_journal)
            if self._is_shared:
                self._try("looking for actors that are nobody's", self._end_strays)
            self._try("asking for nodes", self._ask_for_nodes)

    def _try(self, what: str, does: Callable[[], None]) -> None:
        """The watch goes on whatever one look raises."""
        try:
            does()
        except Exception:
            log.exception("%s failed", what)

    def _end_if_replaced(self) -> None:
        """On a node that Ray has given up a controller may live on beside the next one. Two would each start actors."""
        if not self._notebook.is_held_by(self._life):
            log.error("another controller has taken over; this one ends")
            os._exit(1)

    def _look(self, pool: Pool) -> None:
        seen = pool.looks()
        pool.retire(seen)
        for each in seen:
            if is_hung(each.health, self._step_timeout_s):
                pool.kill(each.member.name, f"its step has run for {each.health.running_s:.0f} s")
        if planner := self._planners.get(pool.config.name):
            planner.tick(seen, self._notes.frozen)
        if pool.is_used and not pool.has_failed:
            pool.fill()

    def _keep_notes(self) -> None:
        """Cordons end with what they are on; whose place others take is known to the next controller."""
        leaving = {life: until for pool in self._pools.values() for life, until in pool.let_go().items()}
        cordons = self._notes.cordons
        if cordons:
            there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            there |= {life for pool in self._pools.values() for life in pool.lives()}
            cordons = {key: until for key, until in cordons.items() if key in there}
        if (cordons, leaving) != (self._notes.cordons, self._notes.leaving):
            self._note(cordons=cordons, leaving=leaving)

    def _keep_journal(self) -> None:
        """What was learned is of a model as it is configured: another's steps take another time."""
        learned = {self._digests[name]: planner.learned for name, planner in self._planners.items()}
        self._journal.keep(self._decisions.all(), learned)

    def _note(self, **changes: Any) -> None:
        with self._noting:
            self._notes = replace(self._notes, **changes)
            self._notebook.write(self._notes)
            for pool in self._pools.values():
                pool.cordon(self._notes.cordons)

    def _ask_for_nodes(self) -> None:
        """Tells Ray's autoscaler what all actors need that there should be. It keeps to that until it is told anew: a
        new controller says so once more, and less is said before a node is given back."""
        bundles = [bundle for pool in self._pools.values() for bundle in pool.bundles()]
        if bundles != self._asked and (bundles or self._asked):
            request_resources(bundles=bundles)
            log.info("asked for nodes for %d actors", len(bundles))
            self._asked = bundles


def registered() -> list[tuple[Registered, ray.actor.ActorHandle]]:
    """Actors that outlive their controller, as Ray has them."""
    found = []
    for each in ray.util.list_named_actors(all_namespaces=True):
        about = Registered.read(each["name"]) if each["namespace"] == ACTORS else None
        try:
            if about:
                found.append((about, ray.get_actor(each["name"], namespace=ACTORS)))
        except ValueError:  # it has just died
            continue
    return found


def is_hung(health: StageHealth, step_timeout_s: float) -> bool:
    """Whether the step in hand is too old. The first one may take its time (it warms up)."""
    return health.steps > 0 and health.running_s > max(step_timeout_s, P99S * health.p99_ms / 1000)


def controller_actor(
    catalogue: Catalogue, step_timeout_s: float, is_shared: bool
) -> tuple[ray.actor.ActorHandle, bool]:
    """A controller, and whether this call started it. is_shared: the cluster's one, else one that nobody else finds."""
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": RESTARTS, "max_task_retries": 0}
    remote = ray.remote(concurrency_groups=GROUPS, **options)(Controller)
    if not is_shared:
        return remote.remote(catalogue, step_timeout_s, is_shared), True
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE), False
    except ValueError:
        named = remote.options(name=NAME, namespace=NAMESPACE, lifetime="detached")
    try:
        return named.remote(catalogue, step_timeout_s, is_shared), True
    except ActorAlreadyExistsError:  # another gateway was quicker
        return ray.get_actor(NAME, namespace=NAMESPACE), False


def _digest(config: ModelConfig, setup: ActorSetup) -> str:
    return hashlib.blake2s(repr((config, setup)).encode(), digest_size=6).hexdigest()
