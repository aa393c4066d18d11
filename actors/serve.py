"""A whole service in one process tree: store, Ray, controller, stage actors and gateway, and all of it gone at the end.

async with Service(load_service()) as service:
    print(service.address)
    await service.until_stopped()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from riverrun.actors.auth import Callers
from riverrun.actors.controller import NAMESPACE, Catalogue, controller_actor
from riverrun.actors.directory import Directory
from riverrun.actors.gateway import Gateway
from riverrun.actors.grants import Grants
from riverrun.actors.handles import ask
from riverrun.actors.host import SessionHost
from riverrun.actors.live import LiveCollector
from riverrun.actors.logs import pass_on
from riverrun.actors.metrics import Metrics
from riverrun.actors.ray_metrics import through_ray
from riverrun.actors.reaper import Reaper
from riverrun.actors.telemetry import Watch
from riverrun.actors.tls import server_credentials
from riverrun.actors.tracing import spans_to
from riverrun.actors.vault import vault_of
from riverrun.configs import FOLDER, ModelConfig, ServiceConfig, find, load_model
from riverrun.configs.durability import CheckpointConfig
from riverrun.configs.telemetry import ActorSetup, Telemetry
from riverrun.graphs.graph import Graph, load_graph
from riverrun.graphs.waiting import SystemClock
from riverrun.models.base import BadRequest, Unavailable
from riverrun.store.blobs import BlobStore
from riverrun.store.embedded import EmbeddedServer
from riverrun.store.records import ENDED_TTL_S, Ttls
from riverrun.store.sessions import SessionStore

log = logging.getLogger(__name__)
HEARTBEAT_S = 2.0
OBJECT_STORE_BYTES = 512 << 20
LOCAL = "local"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Service:
    """Started by `async with`; what was started is stopped on every way out, in the opposite order."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.address = self.metrics_address = self.store_url = ""
        self._stack = contextlib.AsyncExitStack()
        self._stopping = asyncio.Event()
        self._why = "the service is shutting down"
        self._gateway: Gateway | None = None

    async def __aenter__(self) -> Service:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def stop(self, why: str = "the service is shutting down") -> None:
        """Makes `until_stopped` return. A second call cuts short the time that clients get to leave."""
        if self._stopping.is_set() and self._gateway:
            self._gateway.hurry()
            return
        self._why = why
        self._stopping.set()

    @property
    def sessions(self) -> int:
        """How many run here."""
        return self._gateway.sessions if self._gateway else 0

    async def check(self) -> None:
        """Raises Corrupt where its books do not add up. For tests."""
        if self._gateway:
            await self._gateway.check()

    async def until_stopped(self) -> None:
        """Returns after `stop`, SIGTERM or SIGINT, which from here on mean `stop` until all is gone."""
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.stop, f"the service got {number.name}")
        await self._stopping.wait()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        for number in SIGNALS:
            stack.callback(asyncio.get_running_loop().remove_signal_handler, number)
        check_trust(config)
        models = load_models(config)
        graphs = load_graphs(config, models)
        url = config.redis_url or os.environ.get("REDIS_URL", "")
        kind = "redis" if url else "embedded"
        self.store_url = url or stack.enter_context(_embedded(config.data_dir))
        ttls = Ttls(suspended_s=config.checkpoints.retention_s + ENDED_TTL_S)  # the reaper ends them before that
        store = SessionStore(self.store_url, ttls=ttls)
        stack.push_async_callback(store.close)
        await store.ping()
        cluster = config.ray_address or os.environ.get("RAY_ADDRESS", LOCAL)
        stack.enter_context(ray_of(cluster))
        pass_on(config.log)
        kept = _kept(config, stack, is_cluster=cluster != LOCAL)
        setup = ActorSetup(Telemetry(config.log, config.trace), kept)
        catalogue, is_shared = Catalogue(models, graphs, setup), cluster != LOCAL
        controller, is_ours = controller_actor(catalogue, config.step_timeout_s, is_shared)
        if is_ours and not is_shared:  # a cluster's goes on without the gateway that started it
            stack.callback(ray.kill, controller)
        catalogue = await ask(controller.catalogue.remote(), "the controller")
        directory = Directory(controller, catalogue)
        vault = vault_of(catalogue.setup.checkpoints)
        name = secrets.token_hex(6)
        if spans := spans_to(config.trace, "gateway"):
            stack.push_async_callback(asyncio.to_thread, spans.close)
        metrics = Metrics() if config.metrics_ray or config.metrics_port is not None else None
        watch = Watch(metrics, spans, config.trace.every)
        host = SessionHost(directory, store, SystemClock(), config, name, watch.observer, vault, kind == "redis")
        if metrics:
            metrics.registry.register(LiveCollector(host, store.ping))
        if metrics and config.metrics_port is not None:
            self.metrics_address = stack.enter_context(metrics.served(config.metrics_host, config.metrics_port))
        if metrics and config.metrics_ray:
            await stack.enter_async_context(through_ray(metrics.registry))
        self._gateway = gateway = Gateway(host, directory, kind, metrics.count_call if metrics else None)
        await gateway.start(config.host, config.port)
        stack.push_async_callback(self._leave, gateway)
        self.address = gateway.address
        reaper = Reaper(host, vault, config.checkpoints)
        loops = (self._beat(store, name, gateway, host.grants), _follow_orders(host), reaper.run())
        for work in (*loops, gateway.look_after_jobs()):
            stack.callback(asyncio.create_task(work).cancel)

    async def _beat(self, store: SessionStore, name: str, gateway: Gateway, grants: Grants) -> None:
        """Says that this gateway lives, and learns who else does, for ever."""
        while True:
            try:
                await store.heartbeat(name, self.address, ttl_s=5 * HEARTBEAT_S)
                gateway.meet((await store.gateways()).values())
                await grants.look()
            except Unavailable as error:  # the store is away; streams go on, and so does this
                log.warning("no heartbeat: %s", error)
            await asyncio.sleep(HEARTBEAT_S)

    async def _leave(self, gateway: Gateway) -> None:
        await gateway.stop(self.config.drain_s, self._why)


def check_trust(config: ServiceConfig) -> None:
    """Raises BadRequest for a service that would let others do more than they should, or whose tokens or certificates
    can't be used: before anything is started."""
    if config.is_exposed and not config.jobs_dir:
        raise BadRequest(f"jobs_dir must be set: others reach host {config.host}, and their jobs write files")
    if not config.is_open and not config.jobs_dir:
        raise BadRequest("jobs_dir must be set: each tenant's jobs write into a folder of its own there")
    if config.is_exposed and config.is_open and not config.auth.allow_open:
        raise BadRequest(
            f"host {config.host} is reached by others, and nobody is asked who they are: set auth.tokens_file"
            " (`riverrun tokens new` makes one) or tls.client_ca; or auth.allow_open=true behind a proxy that asks"
        )
    if not config.is_open and config.is_exposed and not config.tls.cert:
        log.warning("tokens come to %s in plain text: set tls.cert and tls.key, or have a proxy do it", config.host)
    Callers(config)
    server_credentials(config.tls)


def load_models(config: ServiceConfig) -> dict[str, ModelConfig]:
    """The service's models by name. Raises BadRequest."""
    models = [load_model(source) for source in config.models]
    named = {model.name: model for model in models}
    if len(named) < len(models):
        raise BadRequest(f"two models have the same name; models are {', '.join(m.name for m in models)}")
    for model in models:
        if model.encoder and model.encoder not in named:
            raise BadRequest(f"model {model.name!r} needs encoder {model.encoder!r}, which is not among the models")
    return named


def load_graphs(config: ServiceConfig, models: Mapping[str, ModelConfig]) -> dict[str, Graph]:
    """Graphs by name: the shipped ones whose models are there, and those of the configuration. Raises BadRequest."""
    shipped = [load_graph(path) for path in sorted((FOLDER / "graphs").glob("*.yaml"))]
    graphs = {graph.name: graph for graph in shipped if all(stage.model in models for stage in graph.stages)}
    for source in config.graphs:
        graph = load_graph(find(source, FOLDER / "graphs"))
        for stage in graph.stages:
            if stage.model not in models:
                raise BadRequest(f"graph {graph.name!r}: no model {stage.model!r}; there are {', '.join(models)}")
        graphs[graph.name] = graph
    return graphs


def _kept(config: ServiceConfig, stack: contextlib.AsyncExitStack, is_cluster: bool) -> CheckpointConfig:
    """Where checkpoints lie, said in full. Raises BadRequest where other nodes could not read them."""
    wish = config.checkpoints
    if not wish.chunks:
        return replace(wish, uri="")
    if wish.uri:
        if is_cluster and _has_many_nodes() and not BlobStore(wish.uri, shared=wish.shared).is_shared:
            raise BadRequest(
                f"checkpoints.uri {wish.uri!r} is a folder of this node, and the cluster has others: name one that all"
                " reach, or say checkpoints.shared=true if they see the same folder"
            )
        return wish
    if is_cluster and _has_many_nodes():
        raise BadRequest("checkpoints.uri must be set: the cluster has several nodes, and they must reach the same")
    if config.data_dir:
        return replace(wish, uri=str(Path(config.data_dir).expanduser() / "checkpoints"))
    if is_cluster:  # its actors outlive this gateway, and others share them
        return replace(wish, uri=str(Path(tempfile.gettempdir()) / f"riverrun-checkpoints-{os.getuid()}"))
    return replace(wish, uri=stack.enter_context(tempfile.TemporaryDirectory(prefix="riverrun-checkpoints-")))


def _has_many_nodes() -> bool:
    return sum(bool(node["Alive"]) for node in ray.nodes()) > 1


@contextlib.contextmanager
def _embedded(data_dir: str) -> Iterator[str]:
    """The URL of a store server of our own."""
    with contextlib.ExitStack() as stack:
        folder = data_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="riverrun-store-"))
        yield stack.enter_context(EmbeddedServer(Path(folder))).url


@contextlib.contextmanager
def ray_of(address: str) -> Iterator[None]:
    """A Ray of our own, or one that is there. Must run on a thread that lives as long: Ray ties its life to it.

    A process has one Ray: a second service in it uses that of the first, and must end before it.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "namespace": NAMESPACE}
    if address == LOCAL:
        # A stage actor has a thread a session, and glibc gives each a heap of its own, which it never gives back.
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers; nobody asked the user
        ray.init(
            address=LOCAL,
            include_dashboard=False,
            num_cpus=0,  # no idle workers in store; our actors count no CPU
            object_store_memory=OBJECT_STORE_BYTES,
            _system_config={
                "task_events_report_interval_ms": 0,  # the GCS would keep one for every step
                "worker_niceness": 0,  # 15 by default: stage actors would starve behind whatever else the machine does
            },
            **quiet,
        )
    else:
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


async def _follow_orders(host: SessionHost) -> None:
    """Moves sessions where the controller wants them, for ever."""
    while True:
        await asyncio.sleep(HEARTBEAT_S / 2)
        try:
            orders = await host.directory.orders()
            for life, until in orders.leave.items():
                await host.leave({life}, must=time.time() >= until)
            await host.carry_out(orders.moves)
        except Unavailable as error:
            log.warning("what is to be moved is not known: %s", error)
