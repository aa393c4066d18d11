"""A model that takes its time to load: whoever waits for it keeps nobody else waiting."""

import grpc
import pytest

from riverrun.actors import servicers
from riverrun.configs import load_service
from riverrun.protos import riverrun_pb2 as pb

from . import own_model
from .conftest import DEADLINE_S, Running, Stubs

WAITS = '''
import threading, time
from pathlib import Path
from greys.mod import Grey

class Slow(Grey):
    """Loads when there is a file."""

    def __init__(self, factor, file):
        super().__init__(factor)
        until = time.monotonic() + 60
        while not Path(file).exists() and time.monotonic() < until:
            threading.Event().wait(0.05)
'''
CREATES = 40  # more than the controller has threads for them


@pytest.fixture
def go(tmp_path):
    return tmp_path / "go"


@pytest.fixture
def stubs(tmp_path, go):
    (tmp_path / "greys").mkdir()
    (tmp_path / "greys" / "mod.py").write_text(own_model.MODEL)
    (tmp_path / "greys" / "slow.py").write_text(WAITS)
    text = "name: slow\nclass: greys.slow:Slow\nstage: generation\n"
    text += f"args: {{factor: 3, file: {go}}}\nactor: {{eager: false, max_sessions: {CREATES}}}\n"
    (tmp_path / "slow.yaml").write_text(text)
    (tmp_path / "graph.yaml").write_text("name: slow\nstages: {make: {model: slow}}\noutputs: {frames: make.frames}\n")
    models, graphs = f"models=[{tmp_path}/slow.yaml,synthetic]", f"graphs=[{tmp_path}/graph.yaml]"
    service = Running(load_service(None, ["port=0", "ray_address=local", "drain_s=0.2", models, graphs]))
    service.start()
    with grpc.insecure_channel(service.service.address) as channel:
        yield Stubs(channel)
    service.stop()


def test_others_are_answered_while_a_model_loads(stubs, go, monkeypatch):
    monkeypatch.setattr(servicers, "LOADING_S", 0.5)
    request = pb.CreateSessionRequest(graph="slow")
    request.params.update({"level": 1})
    creates = [stubs.sessions.Create.future(request, timeout=2 * DEADLINE_S) for _ in range(CREATES)]
    lists = [stubs.cluster.ListModels.future(pb.ListModelsRequest(), timeout=DEADLINE_S) for _ in range(CREATES)]
    for _ in range(3):
        assert [a.max_sessions for a in stubs.status().actors if a.model == "slow"] in ([], [0])
    for answer in lists:
        models = {model.name: model for model in answer.result().models}
        assert list(models["slow"].outputs) == []
    assert not any(call.done() for call in creates)
    go.touch()
    assert len({call.result().session_id for call in creates}) == CREATES
