"""A graph: stages joined by typed ports, read from YAML and checked before any session is opened.

name: chain
description: a generator, upscaled
stages: {gen: {model: longlive-world}, vsr: {model: flash-world}}
edges: [{from: gen.frames, to: vsr.frames}]
inputs: {}                     # name: stage.port, fed by the client
outputs: {frames: vsr.frames}  # name: stage.port, offered to clients; the first one counts for max_frames
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from riverrun.models.base import BadRequest, Description, Port


@dataclass(frozen=True)
class StageSpec:
    """One stage. model: name of the model's YAML in `configs/models`."""

    name: str
    model: str


@dataclass(frozen=True)
class Endpoint:
    """A port of a stage, written `stage.port`."""

    stage: str
    port: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.port}"


@dataclass(frozen=True)
class Edge:
    """Chunks of output port `source` go to input port `target`, all of them, in order."""

    source: Endpoint
    target: Endpoint


@dataclass(frozen=True)
class Graph:
    """Stages, edges, and the names by which clients know the ports at its rim. Ports may fan out."""

    name: str
    stages: tuple[StageSpec, ...]
    outputs: Mapping[str, Endpoint]
    edges: tuple[Edge, ...] = ()
    inputs: Mapping[str, Endpoint] = field(default_factory=dict)
    description: str = ""

    def stage(self, name: str) -> StageSpec:
        """Raises BadRequest listing the stages there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise BadRequest(f"graph {self.name!r} has no stage {name!r}; there are {_names(s.name for s in self.stages)}")

    def feeders(self, stage: str) -> dict[str, Edge]:
        """The edges that end at `stage`, by its port."""
        return {e.target.port: e for e in self.edges if e.target.stage == stage}

    def order(self) -> tuple[str, ...]:
        """Stage names, each after all that feed it; in the order of the YAML else. Raises BadRequest for a cycle."""
        waiting = [s.name for s in self.stages]
        ordered: list[str] = []
        while waiting:
            free = [n for n in waiting if not any(e.source.stage in waiting for e in self.feeders(n).values())]
            if not free:
                raise BadRequest(f"graph {self.name!r} has a cycle through {_names(waiting)}")
            ordered.append(free[0])
            waiting.remove(free[0])
        return tuple(ordered)


# ---- reading ----


@dataclass
class _StageForm:
    model: str = MISSING


@dataclass
class _GraphForm:
    name: str = MISSING
    description: str = ""
    stages: dict[str, _StageForm] = MISSING
    edges: list[dict[str, str]] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = MISSING


def load_graph(path: Path) -> Graph:
    """Reads a graph. Raises BadRequest naming the file and the key that is unknown, missing or of the wrong type."""
    try:
        loaded = OmegaConf.merge(OmegaConf.structured(_GraphForm), OmegaConf.load(path))
        form: Any = OmegaConf.to_container(loaded, resolve=True, throw_on_missing=True)
    except FileNotFoundError:
        raise BadRequest(f"there is no graph file {path}") from None
    except (OSError, YAMLError, OmegaConfBaseException, ValueError) as error:
        raise BadRequest(f"{path.name}: {str(error).splitlines()[0]}") from error
    try:
        return _graph(form)
    except BadRequest as error:
        raise BadRequest(f"{path.name}: {error}") from error


def _graph(form: Mapping[str, Any]) -> Graph:
    for edge in form["edges"]:
        if set(edge) != {"from", "to"}:
            raise BadRequest(f"an edge has the keys 'from' and 'to', got {_names(edge)}")
    graph = Graph(
        name=form["name"],
        description=form["description"],
        stages=tuple(StageSpec(name, s["model"]) for name, s in form["stages"].items()),
        edges=tuple(Edge(_endpoint(e["from"]), _endpoint(e["to"])) for e in form["edges"]),
        inputs={name: _endpoint(at) for name, at in form["inputs"].items()},
        outputs={name: _endpoint(at) for name, at in form["outputs"].items()},
    )
    if not graph.stages or not graph.outputs:
        raise BadRequest("a graph needs at least one stage and one output")
    for end in [
        *(x for e in graph.edges for x in (e.source, e.target)),
        *graph.inputs.values(),
        *graph.outputs.values(),
    ]:
        graph.stage(end.stage)
    graph.order()
    return graph


def _endpoint(text: str) -> Endpoint:
    stage, dot, port = text.partition(".")
    if not (stage and dot and port) or "." in port:
        raise BadRequest(f"{text!r} must be written stage.port")
    return Endpoint(stage, port)


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


# ---- checking ----


def validate(graph: Graph, descriptions: Mapping[str, Description]) -> None:
    """Checks a graph against what its stages' models say. Raises BadRequest with the one thing that is wrong.

    Every named port exists, an edge joins ports of one kind and size, every input port is fed exactly once (by
    an edge or a graph input), there is no cycle.
    """
    graph.order()
    for edge in graph.edges:
        made = _port(graph, descriptions, edge.source, "outputs")
        wanted = _port(graph, descriptions, edge.target, "inputs")
        joins = f"edge {edge.source} -> {edge.target} joins"
        if wanted.once:
            raise BadRequest(f"{edge.target} takes one chunk of a stream; a graph input can feed it, not a stage")
        if made.kind != wanted.kind:
            raise BadRequest(f"{joins} {made.kind.value} to {wanted.kind.value}; both ends must be of one kind")
        size = descriptions[edge.source.stage].frame_shape
        if wanted.size and size and wanted.size != size:
            raise BadRequest(f"{joins} frames of {_by(size)} to {_by(wanted.size)}; both ends must have one size")
    for endpoint in graph.inputs.values():
        _port(graph, descriptions, endpoint, "inputs")
    for endpoint in graph.outputs.values():
        _port(graph, descriptions, endpoint, "outputs")
    for stage in graph.stages:
        if not any(end.stage == stage.name for end in [*(e.source for e in graph.edges), *graph.outputs.values()]):
            raise BadRequest(f"stage {stage.name!r} leads to no output of the graph")
    fed = [str(e.target) for e in graph.edges] + [str(e) for e in graph.inputs.values()]
    for stage in graph.stages:
        for port in descriptions[stage.name].inputs:
            times = fed.count(f"{stage.name}.{port.name}")
            if times != 1:
                raise BadRequest(f"input {stage.name}.{port.name} is fed {times} times, must be once")


def _port(graph: Graph, descriptions: Mapping[str, Description], end: Endpoint, side: str) -> Port:
    graph.stage(end.stage)
    ports = {p.name: p for p in getattr(descriptions[end.stage], side)}
    if end.port not in ports:
        raise BadRequest(f"stage {end.stage!r} has no port {end.port!r} among its {side}; there are {_names(ports)}")
    return ports[end.port]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def route_params(
    graph: Graph, params: Mapping[str, Any], fields: Mapping[str, frozenset[str]]
) -> dict[str, dict[str, Any]]:
    """Parameters per stage. fields: the names each stage's model has (`dataclasses.fields(model.Params)`).

    A plain name goes to the one stage that has it; where several have it, it must be written `stage.name`.
    Raises BadRequest for an unknown or ambiguous name, listing what there is, and for one given twice.
    """
    routed: dict[str, dict[str, Any]] = {stage.name: {} for stage in graph.stages}
    for written, value in params.items():
        stage, name = _owner(graph, written, fields)
        if name in routed[stage]:
            raise BadRequest(f"parameter {name!r} of stage {stage!r} is given twice")
        routed[stage][name] = value
    return routed


def _owner(graph: Graph, written: str, fields: Mapping[str, frozenset[str]]) -> tuple[str, str]:
    stage, dot, name = written.partition(".")
    if dot:
        graph.stage(stage)
        if name not in fields[stage]:
            raise BadRequest(f"stage {stage!r} has no parameter {name!r}; there are {_names(fields[stage])}")
        return stage, name
    owners = [s.name for s in graph.stages if written in fields[s.name]]
    if len(owners) > 1:
        raise BadRequest(
            f"parameter {written!r} is of several stages: write {' or '.join(f'{o}.{written}' for o in owners)}"
        )
    if not owners:
        known = {name for stage in graph.stages for name in fields[stage.name]}
        raise BadRequest(f"unknown parameter {written!r}; there are {_names(known)}")
    return owners[0], written
