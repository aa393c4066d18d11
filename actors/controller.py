"""The controller: which models there are, which actors run them, and where a session goes. One a cluster, or one a
service that has joined none.

It owns the stage actors, so they end with it. It decides nothing about a running session: that is its runner's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError

from riverrun.actors.encoder import start_encoder
from riverrun.actors.health import Resident, StageHealth
from riverrun.actors.loading import carried
from riverrun.actors.logs import set_up
from riverrun.actors.pool import MemberHealth, Place, PlaceWish, Pool
from riverrun.actors.stage_actor import start_stage
from riverrun.cluster.placement import shared_node
from riverrun.configs import ModelConfig
from riverrun.configs.telemetry import ActorSetup
from riverrun.graphs.graph import Graph
from riverrun.models.base import BadRequest, ModelInfo

log = logging.getLogger(__name__)
NAME, NAMESPACE = "riverrun-controller", "riverrun"
WATCH_S = 1.0
RESTARTS = -1
"""Where it died, Ray starts it again, on another node if need be. Its actors end with it: it starts others, and
sessions go on from their checkpoints."""

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


@dataclass(frozen=True)
class Cordon:
    """Actors that sessions leave. until: seconds since 1970; what has not moved by then is suspended. lives:
    incarnations that they leave for another one of the same actor, each with its time."""

    actors: frozenset[str] = frozenset()
    until: float = 0.0
    lives: Mapping[str, float] = field(default_factory=dict)


class Controller:
    """Pools of actors by model name. step_timeout_s: the least time a step may take before its actor counts as hung."""

    def __init__(self, catalogue: Catalogue, step_timeout_s: float) -> None:
        set_up(catalogue.setup.telemetry.log)
        self._catalogue = catalogue
        self._cordon = Cordon()
        encoder, stage = (partial(start, catalogue.setup) for start in (start_encoder, start_stage))
        models = catalogue.models.values()
        self._pools = {m.name: Pool(m, encoder if m.stage == "encoder" else stage) for m in models}
        self._step_timeout_s = step_timeout_s
        for pool in self._pools.values():
            if pool.config.actor.eager:
                pool.fill()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    @ray.method(concurrency_group="looks")
    def catalogue(self) -> Catalogue:
        """The models and graphs there are."""
        return self._catalogue

    @carried
    @ray.method(concurrency_group="places")
    def place(self, models: Sequence[str]) -> list[Place]:
        """An actor for each stage's model, on one node if they fit there. Raises BadRequest (no such model), NoRoom,
        Unavailable."""
        pools = [self._pool(model) for model in models]
        node = shared_node([pool.loads() for pool in pools]) if len(pools) > 1 else ""
        return [pool.place(PlaceWish(node=node)) for pool in pools]

    @carried
    @ray.method(concurrency_group="places")
    def place_one(self, model: str, wish: PlaceWish) -> Place:
        """An actor for one stage. Raises as `place`."""
        return self._pool(model).place(wish)

    @carried
    @ray.method(concurrency_group="looks")
    def find(self, model: str, actor: str, incarnation: str) -> Place | None:
        """That very actor, if it lives."""
        return self._pool(model).find(actor, incarnation)

    @carried
    @ray.method(concurrency_group="looks")
    def cordon(self, target: str, seconds: float) -> list[str]:
        """No session is placed on actor or node `target` any more, and those there leave within `seconds`; "" ends
        that. The actors it means. Raises BadRequest for one that there is not. The first characters of a node's id will
        do where no other begins with them."""
        seen = [health for pool in self._pools.values() for health in pool.healths()]
        nodes = {h.health.node for h in seen if h.health}
        alike = [node for node in nodes if len(target) >= NODE_CHARACTERS and node.startswith(target)]
        node = alike[0] if len(alike) == 1 else target
        meant = {h.actor for h in seen if target and (h.actor == target or (h.health and h.health.node == node))}
        if target and not meant:
            there = ", ".join(sorted({h.actor for h in seen}))
            raise BadRequest(f"no actor or node {target!r}; there are actors {there}")
        self._cordon = Cordon(frozenset(meant), time.time() + seconds)
        return [name for pool in self._pools.values() for name in pool.cordon(meant)]

    @ray.method(concurrency_group="looks")
    def cordoned(self) -> Cordon:
        """What is to be left, and until when."""
        lives = {life: until for pool in self._pools.values() for life, until in pool.leaving().items()}
        return replace(self._cordon, lives=lives)

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

    def _watch(self) -> None:
        """Replaces what died and ends what hangs, for ever."""
        while True:
            time.sleep(WATCH_S)
            for pool in self._pools.values():
                try:
                    self._look(pool)
                except Exception:
                    log.exception("looking after model %s failed", pool.config.name)

    def _look(self, pool: Pool) -> None:
        seen = pool.healths()
        pool.retire(seen)
        for member in seen:
            if member.health and is_hung(member.health, self._step_timeout_s):
                pool.kill(member.actor, f"its step has run for {member.health.running_s:.0f} s")
        if pool.is_used and not pool.has_failed:
            pool.fill()


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
        return remote.remote(catalogue, step_timeout_s), True
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE), False
    except ValueError:
        named = remote.options(name=NAME, namespace=NAMESPACE, lifetime="detached")
    try:
        return named.remote(catalogue, step_timeout_s), True
    except ActorAlreadyExistsError:  # another gateway was quicker
        return ray.get_actor(NAME, namespace=NAMESPACE), False
