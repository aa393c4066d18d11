"""From a graph and its stages' descriptions to the queues, rings and drivers of one session."""

from __future__ import annotations

import math
from collections.abc import Mapping

from riverrun.graphs.driver import Deadlines, Session, StageDriver
from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.graph import Edge, Endpoint, Graph
from riverrun.graphs.ring import OutputRing
from riverrun.graphs.stage import StageHandle
from riverrun.models.base import Description


def wire(
    graph: Graph,
    descriptions: Mapping[str, Description],
    stages: Mapping[str, StageHandle],
    rings: Mapping[str, OutputRing],
    session: Session,
    edge_chunks: int,
    deadlines: Deadlines,
) -> tuple[dict[Endpoint, EdgeQueue], dict[str, StageDriver]]:
    """A queue before every input port, by that port, and a driver a stage between them, in flow order."""
    edges = {e.target: EdgeQueue(e.target, _capacity(graph, descriptions, e, edge_chunks)) for e in graph.edges}
    once = {Endpoint(name, port.name) for name, said in descriptions.items() for port in said.inputs if port.once}
    edges |= {at: EdgeQueue(at, edge_chunks, from_client=True, once=at in once) for at in graph.inputs.values()}
    drivers = {}
    for name in graph.order():
        outputs = [Endpoint(name, port.name) for port in descriptions[name].outputs]
        drivers[name] = StageDriver(
            name=name,
            handle=stages[name],
            description=descriptions[name],
            session=session,
            deadlines=deadlines,
            inputs={p.name: edges[Endpoint(name, p.name)] for p in descriptions[name].inputs},
            outputs={out.port: [edges[e.target] for e in graph.edges if e.source == out] for out in outputs},
            rings={out.port: [rings[n] for n, at in graph.outputs.items() if at == out] for out in outputs},
        )
    return edges, drivers


def _capacity(graph: Graph, descriptions: Mapping[str, Description], edge: Edge, edge_chunks: int) -> int:
    """Chunks that may lie on an edge: `edge_chunks`, at least one step's worth of its producer.

    Where paths meet again, the short one must hold what the long one takes in before it gives anything, or both would
    wait for ever: so an edge into a stage of several inputs has room for what every other stage may hold back besides.
    """
    made = descriptions[edge.source.stage]
    capacity = max(edge_chunks, made.max_chunks)
    if len(descriptions[edge.target.stage].inputs) > 1:
        ends = (edge.source.stage, edge.target.stage)
        others = sum(d.latency_frames + d.chunk_frames for name, d in descriptions.items() if name not in ends)
        capacity += math.ceil(others / max(1, made.chunk_frames))
    return capacity
