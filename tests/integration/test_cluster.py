"""Nodes really come and go: a burst of sessions makes Ray's autoscaler start another, the end of it gives that back,
drained, and not a frame is missed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import pytest

from riverrun.protos import riverrun_pb2 as pb

from .autoscaled import Autoscaled
from .conftest import DEADLINE_S, Stubs, eventually
from .test_controller import Reading

NODE_S = 400
"""A node takes a dozen processes, on a machine that may have two processors and much else to do."""

MODEL = """name: grows
class: riverrun.models.synthetic:Synthetic
stage: generation
actor: {count: 1, max_count: 2, shrink_s: 3, max_sessions: 4, num_gpus: 1}
"""
GRAPH = "name: grows\nstages: {a: {model: grows}}\noutputs: {frames: a.frames}\n"
SERVE = "from riverrun.client.cli import main; main()"


@pytest.fixture
def cluster():
    """Nodes have a GPU each, which is declared and not there; the head has none."""
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as folder:  # a socket's path must be short
        nodes = Autoscaled(Path(folder), node={"GPU": 1}, head={"gateway": 1}, most=2, idle_s=5)
        try:
            nodes.wait()
            yield nodes, Path(folder)
        finally:
            nodes.stop()


@pytest.fixture
def stubs(cluster):
    """Of a service in a process of its own, on that cluster."""
    nodes, folder = cluster
    (folder / "grows.yaml").write_text(MODEL)
    (folder / "grows-graph.yaml").write_text(GRAPH)
    settings = ["port=0", f"ray_address={nodes.address}", f"models=[{folder}/grows.yaml]", "drain_s=0.2"]
    settings += [f"graphs=[{folder}/grows-graph.yaml]", f"checkpoints.uri={folder}/kept", "checkpoints.shared=true"]
    command = [sys.executable, "-c", SERVE, "serve", "--json", *settings]
    with (folder / "serve.log").open("w") as log:
        env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    line = process.stdout.readline()
    assert line, (folder / "serve.log").read_text()
    with grpc.insecure_channel(json.loads(line)["address"]) as channel:
        yield Stubs(channel)
    process.terminate()
    process.wait(DEADLINE_S)


def nodes_of(stubs):
    """By actor that is up, the node it is on."""
    return {a.actor: a.node for a in stubs.status().actors if a.up}


def created(stubs, seed):
    """A session, asked for again and again until there is room."""

    def ask():
        try:
            return stubs.create(graph="grows", params={"step_ms": 20.0}, seed=seed)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            return None

    return eventually(ask, NODE_S)


@pytest.mark.slow  # Ray's autoscaler takes its minutes to start nodes and to let them go
@pytest.mark.timeout(3 * NODE_S)
def test_a_burst_makes_a_node_come_and_its_end_makes_one_go(cluster, stubs):
    nodes, _ = cluster
    eventually(lambda: len(nodes_of(stubs)) == 1, NODE_S)
    assert nodes.raylets() == 2  # the head's, and one for the actor that there always is
    first = [created(stubs, seed) for seed in range(4)]
    leaving, staying = Reading(stubs, first[1:]), Reading(stubs, first[:1])
    staying.more(20)
    burst = [created(stubs, seed) for seed in (4, 5)]  # more than one actor has places for
    eventually(lambda: len(set(nodes_of(stubs).values())) == 2)
    assert nodes.raylets() >= 3  # one that took too long to start may be on its way out
    late = Reading(stubs, burst[:1])
    late.more(20)
    leaving.stop()
    for each in (*first[1:], burst[1]):
        stubs.close(each.session_id)
    eventually(lambda: len(nodes_of(stubs)) == 1, NODE_S)
    eventually(lambda: nodes.raylets() == 2, NODE_S)
    for each in (staying, late):
        each.more(40)
        each.stop()
    (actor,) = nodes_of(stubs)
    assert [stubs.get(s.session_id).stages[0].actor for s in (first[0], burst[0])] == [actor] * 2
    assert [stubs.get(s.session_id).state for s in (first[0], burst[0])] == [pb.SESSION_STATE_RUNNING] * 2
