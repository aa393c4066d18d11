from __future__ import annotations

from pathlib import Path

import pytest

import riverrun
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec, load_graph, route_params, validate
from riverrun.models.base import BadRequest, Description, Kind, Port

CONFIGS = Path(riverrun.__file__).parent / "configs" / "graphs"


def describe(inputs: dict[str, Kind], outputs: dict[str, Kind]) -> Description:
    ports = [tuple(Port(n, k) for n, k in side.items()) for side in (inputs, outputs)]
    return Description(*ports, chunk_frames=4, fps=16.0)


F, D = Kind.FRAMES, Kind.DEPTH
STAGES = {"gen": describe({}, {"frames": F}), "vsr": describe({"frames": F}, {"frames": F, "depth": D})}


def chain(*edges: tuple[str, str], outputs: tuple[str, ...] = ("vsr.frames",), inputs: tuple[str, ...] = ()) -> Graph:
    def end(text: str) -> Endpoint:
        return Endpoint(*text.split("."))

    return Graph(
        "chain",
        (StageSpec("gen", "m"), StageSpec("vsr", "m")),
        {f"out{i}": end(o) for i, o in enumerate(outputs)},
        tuple(Edge(end(a), end(b)) for a, b in edges),
        {f"in{i}": end(o) for i, o in enumerate(inputs)},
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_graphs_load(path):
    graph = load_graph(path)
    assert graph.name == path.stem
    assert graph.outputs
    assert graph.description


def test_a_whole_graph_is_read(tmp_path):
    (tmp_path / "g.yaml").write_text(
        "name: g\ndescription: d\nstages: {vsr: {model: up}, gen: {model: world}}\n"
        "edges: [{from: gen.frames, to: vsr.frames}]\noutputs: {frames: vsr.frames, small: gen.frames}\n"
        "inputs: {pose: gen.pose}\n"
    )
    graph = load_graph(tmp_path / "g.yaml")
    assert graph.stages == (StageSpec("vsr", "up"), StageSpec("gen", "world"))
    assert graph.edges == (Edge(Endpoint("gen", "frames"), Endpoint("vsr", "frames")),)
    assert list(graph.outputs) == ["frames", "small"]
    assert graph.inputs == {"pose": Endpoint("gen", "pose")}
    assert graph.order() == ("gen", "vsr")


GOOD = {"name": "g", "stages": "{gen: {model: m}}", "outputs": "{frames: gen.frames}"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": "red"}, "colour"),
        ({"name": None}, "name"),
        ({"stages": None}, "stages"),
        ({"outputs": None}, "outputs"),
        ({"stages": "{gen: {}}"}, "model"),
        ({"stages": "{gen: {model: m, actors: 3}}"}, "actors"),
        ({"stages": "[gen]"}, "g.yaml"),
        ({"stages": "{}"}, "at least one stage"),
        ({"outputs": "{frames: gen}"}, "'gen' must be written stage.port"),
        ({"outputs": "{frames: gone.frames}"}, "no stage 'gone'; there are gen"),
        ({"edges": "[{from: gen.frames}]"}, "'from' and 'to', got from"),
        ({"edges": "[{from: gen.frames, to: gen.frames}]"}, "cycle through gen"),
        ({"edges": "nothing"}, "g.yaml"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, change, says):
    fields = {k: v for k, v in (GOOD | change).items() if v is not None}
    (tmp_path / "g.yaml").write_text("".join(f"{k}: {v}\n" for k, v in fields.items()))
    with pytest.raises(BadRequest) as error:
        load_graph(tmp_path / "g.yaml")
    assert says in str(error.value)
    assert "g.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_file(tmp_path):
    with pytest.raises(BadRequest, match="no graph file"):
        load_graph(tmp_path / "none.yaml")
    (tmp_path / "g.yaml").write_text("name: [")
    with pytest.raises(BadRequest, match=r"g\.yaml"):
        load_graph(tmp_path / "g.yaml")


JOIN = ("gen.frames", "vsr.frames")


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (chain(JOIN), None),
        (chain(JOIN, outputs=("vsr.depth", "gen.frames")), None),
        (chain(outputs=("gen.frames", "vsr.frames"), inputs=("vsr.frames",)), None),
        (chain(JOIN, outputs=("vsr.colour",)), "'vsr' has no port 'colour' among its outputs; there are depth, frames"),
        (chain(("gen.film", "vsr.frames")), "'gen' has no port 'film' among its outputs; there are frames"),
        (chain(("gen.frames", "vsr.film")), "'vsr' has no port 'film' among its inputs; there are frames"),
        (chain(("vsr.depth", "vsr.frames")), "cycle through vsr"),
        (chain(outputs=("gen.frames", "vsr.frames")), "vsr.frames is fed 0 times"),
        (chain(JOIN, JOIN), "vsr.frames is fed 2 times"),
        (chain(JOIN, inputs=("vsr.frames",)), "vsr.frames is fed 2 times"),
        (chain(JOIN, outputs=("gen.frames",)), "'vsr' leads to no output"),
    ],
)
def test_validate(graph, says):
    if says is None:
        validate(graph, STAGES)
        return
    with pytest.raises(BadRequest) as error:
        validate(graph, STAGES)
    assert says in str(error.value)


def test_an_edge_between_kinds_names_ports_and_kinds():
    stages = {"gen": describe({}, {"depth": D}), "vsr": STAGES["vsr"]}
    with pytest.raises(BadRequest, match=r"gen\.depth -> vsr\.frames joins depth to frames"):
        validate(chain(("gen.depth", "vsr.frames")), stages)


def test_parameters_go_to_the_stage_that_has_them():
    fields = {"gen": frozenset({"prompt", "steps"}), "vsr": frozenset({"scale", "steps"})}
    graph = chain(JOIN)
    routed = route_params(graph, {"prompt": "x", "scale": 4, "vsr.steps": 2, "gen.steps": 8}, fields)
    assert routed == {"gen": {"prompt": "x", "steps": 8}, "vsr": {"scale": 4, "steps": 2}}
    for params, says in [
        ({"colour": 1}, "unknown parameter 'colour'; there are prompt, scale, steps"),
        ({"steps": 1}, "write gen.steps or vsr.steps"),
        ({"top.steps": 1}, "no stage 'top'; there are gen, vsr"),
        ({"gen.scale": 1}, "'gen' has no parameter 'scale'; there are prompt, steps"),
        ({"prompt": 1, "gen.prompt": 2}, "'prompt' of stage 'gen' is given twice"),
    ]:
        with pytest.raises(BadRequest) as error:
            route_params(graph, params, fields)
        assert says in str(error.value)
