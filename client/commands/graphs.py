"""`riverrun graphs`: how models are chained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riverrun.client.commands.common import Address, AsJson, client, err, out, show_json, table
from riverrun.client.errors import Unavailable
from riverrun.graphs.graph import Graph, load_graph
from riverrun.graphs.graph import validate as validate_ports
from riverrun.models.base import BadRequest, Description, Kind, Port
from riverrun.protos import riverrun_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="List, show and check graphs.")


@app.command("ls")
def list_graphs(address: Address = None, as_json: AsJson = False) -> None:
    """List the service's graphs."""
    with client(address) as rr:
        graphs = rr.graphs()
    if as_json:
        show_json(graphs)
        return
    rows = [(g.name, " → ".join(s.model for s in g.stages), _outputs(g), g.description) for g in graphs]
    table(("graph", "models", "outputs", "description"), rows, "no graphs")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A graph's name.")], address: Address = None, as_json: AsJson = False
) -> None:
    """Show one graph: its stages, edges and outputs."""
    with client(address) as rr:
        graph = rr.graph(name)
    if as_json:
        show_json(graph)
        return
    out.print(f"{graph.name}: {graph.description}", highlight=False, markup=False)
    table(("stage", "model"), [(s.stage, s.model) for s in graph.stages], "no stages")
    for edge in graph.edges:
        out.print(f"{edge.source} → {edge.target}", highlight=False, markup=False)
    out.print(f"outputs: {_outputs(graph)}", highlight=False, markup=False)


@app.command("validate")
def validate(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A graph's YAML.")],
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Check a graph's YAML: its form, and its ports against the models of a running service if there is one.

    Exit code 1 if something is wrong.
    """
    graph = load_graph(path)
    with client(address) as rr:
        try:
            models = {model.name: model for model in rr.models()}
        except Unavailable:
            if address:
                raise
            models = None
    if models is not None:
        validate_ports(graph, {stage.name: _description(graph, stage.name, models) for stage in graph.stages})
    elif not as_json:
        err.print("no service runs here, so the ports were not checked against models")
    if as_json:
        show_json({"graph": graph.name, "valid": True, "ports_checked": models is not None})
    else:
        out.print(f"{graph.name}: {len(graph.stages)} stages, all in order", highlight=False, markup=False)


def _description(graph: Graph, stage: str, models: dict[str, pb.Model]) -> Description:
    name = graph.stage(stage).model
    if name not in models:
        raise BadRequest(f"stage {stage!r}: unknown model {name!r}; there are {', '.join(sorted(models)) or 'none'}")
    model = models[name]
    inputs, outputs = (tuple(Port(p.port, Kind(p.kind)) for p in side) for side in (model.inputs, model.outputs))
    return Description(inputs, outputs, chunk_frames=0, fps=model.fps)


def _outputs(graph: pb.Graph) -> str:
    return ", ".join(f"{o.port} ({o.kind} {o.width}x{o.height} at {o.fps:g} fps)" for o in graph.outputs)
