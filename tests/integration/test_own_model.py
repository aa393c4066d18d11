"""A model and a graph from outside the tree, named by path, are served like any other; so is a wrong one, clearly."""

import pytest

from riverrun.actors.serve import load_graphs, load_models
from riverrun.configs import load_service
from riverrun.models.base import BadRequest
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner


def test_a_model_from_outside_the_tree_is_served(stubs, code):
    session = stubs.create(graph="grey", params={"level": 20})
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=5)])
    assert [int(Joiner().add(part).array.max()) for part in stream.frames(5)] == [60] * 5
    stream.cancel()
    stubs.close(session.session_id)
    assert code(lambda: stubs.create(graph="grey")) == ("INVALID_ARGUMENT", "parameter 'level' is missing")


def test_a_model_that_can_not_be_loaded_is_named(stubs, code):
    name, line = code(lambda: stubs.create(graph="broken"))
    assert name == "UNAVAILABLE"
    assert "model 'broken'" in line
    assert "unexpected keyword argument 'faktor'" in line


def test_a_graph_without_its_model_is_refused_at_start(tmp_path):
    (tmp_path / "g.yaml").write_text("name: g\nstages: {make: {model: grey}}\noutputs: {frames: make.frames}\n")
    config = load_service(None, ["models=[synthetic]", f"graphs=[{tmp_path}/g.yaml]"])
    with pytest.raises(BadRequest, match="graph 'g': no model 'grey'; there are synthetic"):
        load_graphs(config, load_models(config))


def test_models_need_their_encoder_and_names_of_their_own(tmp_path):
    with pytest.raises(BadRequest, match="model 'longlive-world' needs encoder 'world-text', which is not among"):
        load_models(load_service(None, ["models=[longlive-world]"]))
    with pytest.raises(BadRequest, match="two models have the same name"):
        load_models(load_service(None, ["models=[synthetic,synthetic]"]))
