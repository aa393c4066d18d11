"""What a service exports: every sample's name with its label names, taken from the code that makes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import promql_parser
from prometheus_client import Metric

from riverrun.actors import live
from riverrun.actors.health import StageHealth
from riverrun.actors.metrics import Metrics
from riverrun.actors.pool import MemberHealth
from riverrun.graphs.items import Frame
from riverrun.graphs.stage import Epoch, StepReply, StepRequest
from riverrun.graphs.status import RunnerStatus, StageStatus
from riverrun.models.base import Chunk
from riverrun.store.records import SessionState

RAYS = {
    "ray_cluster_active_nodes": {"node_type"},
    "ray_cluster_pending_nodes": {"node_type"},
}
"""Ray's own that are asked for beside ours."""


def families() -> Iterator[Metric]:
    """Everything once: what is counted after something of each kind has happened, and what is looked up."""
    metrics, pixels = Metrics(), np.zeros((1, 2, 2, 3), np.uint8)
    chunk = Chunk("frames", pixels, 0, 5625, 1)
    seen = metrics.observer("g")
    seen.answered("s", StepRequest("id", Epoch(1, "n"), 0), StepReply(0, (chunk,)), 0.1)
    seen.fetched("s", chunk, 0.1)
    seen.sent(Frame("frames", 0, 0, 0, 0, 1, 0, pixels[0]), "raw", 12, 0.1, 0.1)
    seen.played(1.0, 0.1)
    seen.moved("s")
    seen.recovered("s")
    seen.ended("closed")
    metrics.count_call("/m", "OK")
    yield from metrics.registry.collect()
    stage = StageStatus("s", "m", "m-0", "i", held_bytes=1, retained_bytes=1)
    shown = RunnerStatus("id", "g", SessionState.RUNNING, "", 0.0, False, False, 0.5, 4, (stage,), ())
    yield from live.sessions([shown])
    yield from live.stages([shown])
    yield from live.actors([MemberHealth("m-0", "m", "i", StageHealth("i", 1, 8, 1, 1, 1, 0.0, 1.0))])
    yield live.wanted({"m": 1})
    yield live.store(True)


def exported() -> dict[str, set[str]]:
    """Label names by sample name, under the name that Ray's exporter gives it."""
    found = {f"ray_{s.name}": set(s.labels) for family in families() for s in family.samples}
    return {name: labels for name, labels in found.items() if name.startswith("ray_riverrun_")} | RAYS


def asked(query: str) -> tuple[set[str], set[str]]:
    """Names of the metrics in a query, and of the labels that it matches or sums by. Raises ValueError where it is no
    PromQL."""
    names: set[str] = set()
    labels: set[str] = set()

    def visit(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)
            labels.update(matcher.name for matcher in node.matchers.matchers)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query), visit)
    return names, labels


def unknown(query: str) -> set[str]:
    """What a query asks for and no service exports."""
    there, (names, labels) = exported(), asked(query)
    known = set().union(*(there.get(name, set()) for name in names))
    return (names - there.keys()) | (labels - known)
