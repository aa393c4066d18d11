"""What is so at the moment somebody asks: sessions, lead, queues, bytes and actors, as Prometheus gauges."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from riverrun.actors.host import SessionHost
from riverrun.actors.member import MemberHealth
from riverrun.graphs.driver import percentile
from riverrun.graphs.status import RunnerStatus
from riverrun.models.base import Unavailable

ANSWER_S = 3.0
"""Controller and store get so long; Prometheus waits 10 s by default."""

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """sessions: those of this gateway. actors, wanted: None if the controller does not answer."""

    sessions: tuple[RunnerStatus, ...]
    actors: Sequence[MemberHealth] | None
    wanted: Mapping[str, int] | None
    store_up: bool


class LiveCollector(Collector):
    """Looks on the event loop that the sessions live on, from whichever thread collects."""

    def __init__(self, host: SessionHost, ping: Callable[[], Awaitable[None]]) -> None:
        self._host, self._ping = host, ping
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterable[Metric]:
        """Nothing: a collector that is asked would have to look, at a time when nobody is there to answer."""
        return ()

    def collect(self) -> Iterable[Metric]:
        look = asyncio.run_coroutine_threadsafe(self._look(), self._loop).result(2 * ANSWER_S)
        yield from sessions(look.sessions)
        yield from stages(look.sessions)
        yield from actors(look.actors)
        yield wanted(look.wanted)
        yield store(look.store_up)

    async def _look(self) -> Look:
        directory = self._host.directory
        asked = _or_none(directory.actors()), _or_none(directory.wanted()), _or_none(self._pinged())
        found, nodes, pinged = await asyncio.gather(*asked)
        return Look(tuple(self._host.statuses()), found, nodes, bool(pinged))

    async def _pinged(self) -> bool:
        await self._ping()
        return True


async def _or_none(work: Awaitable[T]) -> T | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await work
    except (Unavailable, TimeoutError):
        return None


def sessions(found: Sequence[RunnerStatus]) -> Iterator[Metric]:
    """How many there are, and how far they are ahead of who plays them."""
    count = GaugeMetricFamily("riverrun_sessions", "Sessions of this gateway.", labels=["graph", "state"])
    parked = GaugeMetricFamily(
        "riverrun_sessions_parked", "Sessions that stand because they are far enough ahead.", labels=["graph"]
    )
    lead = GaugeMetricFamily(
        "riverrun_lead_seconds",
        "Media made and not yet played, over the sessions of a graph: the least, the median and the most.",
        labels=["graph", "stat"],
    )
    for (graph, state), number in sorted(Counter((s.graph, s.state.value) for s in found).items()):
        count.add_metric([graph, state], number)
    for graph, those in _by_graph(found).items():
        parked.add_metric([graph], sum(s.parked for s in those))
        leads = [s.lead_s for s in those]
        for stat, value in (("min", min(leads)), ("p50", percentile(leads, 0.5)), ("max", max(leads))):
            lead.add_metric([graph, stat], value)
    yield from (count, parked, lead)


def stages(found: Sequence[RunnerStatus]) -> Iterator[Metric]:
    """What lies before each stage and what its States hold, over the sessions of a graph.

    Fill is held bytes over what the model says a session comes to hold, so 1 is a cache that has reached its bound.
    """
    per = ["graph", "stage"]
    edge = GaugeMetricFamily("riverrun_edge_chunks", "Chunks that wait for or are in a step of the stage.", labels=per)
    held = GaugeMetricFamily("riverrun_stage_held_bytes", "Bytes the sessions hold in the stage.", labels=per)
    fill = GaugeMetricFamily(
        "riverrun_cache_fill_ratio", "Held bytes over what the sessions may come to hold.", labels=per
    )
    sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for session in found:
        for stage in session.stages:
            now = {"edge": stage.queued, "held": stage.held_bytes, "retained": stage.retained_bytes}
            sums[session.graph, stage.stage].update(now)
    for labels, total in sorted(sums.items()):
        edge.add_metric(labels, total["edge"])
        held.add_metric(labels, total["held"])
        if total["retained"]:
            fill.add_metric(labels, total["held"] / total["retained"])
    yield from (edge, held, fill)


def actors(found: Sequence[MemberHealth] | None) -> Iterator[Metric]:
    """The actors as the controller sees them; every gateway of a cluster says the same."""
    yield GaugeMetricFamily("riverrun_controller_up", "Whether the controller answers.", value=found is not None)
    per = ["actor", "model"]
    up = GaugeMetricFamily("riverrun_actor_up", "Whether the actor is loaded and answers.", labels=per)
    live = GaugeMetricFamily("riverrun_actor_sessions", "Sessions that have a place on the actor.", labels=per)
    most = GaugeMetricFamily("riverrun_actor_max_sessions", "Places on the actor.", labels=per)
    held = GaugeMetricFamily("riverrun_actor_held_bytes", "Bytes of all States on the actor.", labels=per)
    kept = GaugeMetricFamily("riverrun_actor_reserved_bytes", "Bytes that admission has set aside.", labels=per)
    age = GaugeMetricFamily("riverrun_actor_step_age_seconds", "Age of the step in hand; 0 without one.", labels=per)
    p99 = GaugeMetricFamily("riverrun_actor_step_p99_seconds", "99th percentile of the last steps.", labels=per)
    steps = CounterMetricFamily("riverrun_actor_steps", "Steps of the model since the actor started.", labels=per)
    for member in found or ():
        labels, health = [member.actor, member.model], member.health
        up.add_metric(labels, health is not None)
        if health:
            live.add_metric(labels, health.sessions)
            most.add_metric(labels, health.max_sessions)
            held.add_metric(labels, health.held_bytes)
            kept.add_metric(labels, health.reserved_bytes)
            age.add_metric(labels, health.running_s)
            p99.add_metric(labels, health.p99_ms / 1000)
            steps.add_metric(labels, health.steps)
    yield from (up, live, most, held, kept, age, p99, steps)


def wanted(found: Mapping[str, int] | None) -> Metric:
    """As the controller says; every gateway of a cluster says the same."""
    nodes = GaugeMetricFamily(
        "riverrun_wanted_nodes",
        "Actors that Ray's autoscaler is asked to have room for: so many nodes where an actor fills one.",
        labels=["model"],
    )
    for model, number in sorted((found or {}).items()):
        nodes.add_metric([model], number)
    return nodes


def store(is_up: bool) -> Metric:
    return GaugeMetricFamily("riverrun_store_up", "Whether the store answers.", value=is_up)


def _by_graph(found: Sequence[RunnerStatus]) -> dict[str, list[RunnerStatus]]:
    groups = defaultdict(list)
    for status in found:
        groups[status.graph].append(status)
    return dict(sorted(groups.items()))
