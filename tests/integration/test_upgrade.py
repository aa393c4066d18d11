"""A running service is upgraded: actors get new lives under sessions that stream, and no frame is lost or another."""

import os
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
import ray
from typer.testing import CliRunner

from riverrun.client.cli import app
from riverrun.protos import riverrun_pb2 as pb

from .conftest import DEADLINE_S, Stubs, eventually, serving
from .pair import two_gateways
from .test_survival import GRAPHS, PARAMS, Viewer, undisturbed


@pytest.fixture(scope="module")
def gateways(tmp_path_factory, ray_cluster):
    with two_gateways(tmp_path_factory.mktemp("upgrade"), {n: GRAPHS[n] for n in ("one", "two")}) as pair:
        yield pair


def lives(stubs):
    """Incarnation by actor."""
    return {a.actor: a.incarnation for a in stubs.status().actors}


def streaming(stubs, session, stop):
    """A viewer that reads on a thread of its own until `stop`, and for 8 frames more."""
    viewer = Viewer(session).connect(stubs)

    def read():
        while not stop.is_set():
            viewer.read(len(viewer.pixels) + 4)
        viewer.read(len(viewer.pixels) + 8)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return viewer, thread


def test_every_actor_is_replaced_under_streams_of_two_gateways(gateways):
    (one, stubs), (_, others) = gateways
    eventually(lambda: len(lives(stubs)) == 2)
    opened = [(s, s.create(graph=g, params=PARAMS[g], seed=5), g) for g in ("one", "two") for s in (stubs, others)]
    stop = threading.Event()
    watched = [(*streaming(s, session, stop), g) for s, session, g in opened]
    try:
        eventually(lambda: all(len(viewer.pixels) >= 8 for viewer, *_ in watched))
        before = lives(stubs)
        done = CliRunner().invoke(app, ["upgrade", "all", "--address", one.service.address])
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines() == [f"pair-{n}: new; 0 sessions left on the old one" for n in (0, 1)]
        eventually(lambda: set(lives(stubs)) == {"pair-0", "pair-1"})  # the old ones have ended
        assert not set(before.values()) & set(lives(stubs).values())
    finally:
        stop.set()
        for viewer, thread, _ in watched:
            thread.join(DEADLINE_S)
            viewer.leave()
        for s, session, _ in opened:
            s.close(session.session_id)
    for viewer, _, graph in watched:
        wanted = undisturbed(stubs, graph, len(viewer.pixels))
        assert np.array_equal(np.stack(viewer.pixels), np.stack(wanted))


def test_an_actor_that_there_is_not_is_said(gateways, code):
    (_, stubs), _ = gateways
    before = lives(stubs)
    name, line = code(lambda: stubs.cluster.Upgrade(pb.UpgradeRequest(actor="pair-7"), timeout=DEADLINE_S))
    assert (name, line) == ("INVALID_ARGUMENT", "no actor 'pair-7'; there are pair-0, pair-1")
    assert lives(stubs) == before


def test_a_session_goes_on_where_its_actor_had_all_places(gateways):
    """Through the port: the record names the new life, and what was made under the old one is not made again."""
    (_, stubs), _ = gateways
    session = stubs.create(graph="one", params=PARAMS["one"], seed=5)
    viewer = Viewer(session).connect(stubs).read(20)
    at = stubs.get(session.session_id).stages[0]
    answer = stubs.cluster.Upgrade(pb.UpgradeRequest(actor=at.actor), timeout=2 * DEADLINE_S)
    assert (answer.incarnation_left, answer.sessions) == (at.incarnation, 0)
    assert stubs.get(session.session_id).stages[0].incarnation != at.incarnation
    viewer.read(60).leave()
    stubs.close(session.session_id)
    assert np.array_equal(np.stack(viewer.pixels), np.stack(undisturbed(stubs, "one", 60)))


def test_the_node_that_a_command_runs_on_is_drained(gateways):
    """As a pod does at its end: the command is a process of its own beside the node."""
    (one, stubs), _ = gateways
    code = "from riverrun.client.cli import main; main()"
    command = [sys.executable, "-c", code, "drain", "--here", "--address", one.service.address]
    joined = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(command, env=joined, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
    stubs.cluster.Drain(pb.DrainRequest(undo=True), timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (0, "pair-0, pair-1: 0 sessions left\n"), done.stderr


MODEL = "name: mine\nclass: mine:Mine\nstage: generation\nactor: {max_sessions: 2}\n"
CODE = "from riverrun.models.synthetic import Synthetic\nclass Mine(Synthetic):\n    pass\n"


def test_new_code_that_does_not_load_leaves_all_as_it_was_and_the_next_one_is_taken(tmp_path, code):
    (tmp_path / "mine.yaml").write_text(MODEL)
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "g.yaml").write_text("name: g\nstages: {a: {model: mine}}\noutputs: {frames: a.frames}\n")
    settings = (f"models=[{tmp_path}/mine.yaml]", f"graphs=[{tmp_path}/g.yaml]", f"checkpoints.uri={tmp_path}/kept")
    with serving(*settings) as running, grpc.insecure_channel(running.service.address) as channel:
        stubs = Stubs(channel)
        session = stubs.create(graph="g", seed=5)
        viewer = Viewer(session).connect(stubs).read(8)
        before = lives(stubs)
        (tmp_path / "mine.py").write_text("raise RuntimeError('a bad release')\n")
        upgrade = pb.UpgradeRequest(actor="mine-0")
        name, line = code(lambda: stubs.cluster.Upgrade(upgrade, timeout=2 * DEADLINE_S))
        assert (name, "the old one goes on" in line, "a bad release" in line) == ("UNAVAILABLE", True, True), line
        assert lives(stubs) == before
        viewer.read(16)
        (tmp_path / "mine.py").write_text(CODE.replace("pass", "released = 2"))
        assert stubs.cluster.Upgrade(upgrade, timeout=2 * DEADLINE_S).sessions == 0
        assert stubs.get(session.session_id).stages[0].incarnation not in before.values()
        viewer.read(32).leave()
        stubs.close(session.session_id)
