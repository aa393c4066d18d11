"""The controller of a cluster: it levels its actors while frames flow, is held, says why, and may die."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray

from riverrun.actors.controller import NAME, registered
from riverrun.actors.journal import Journal
from riverrun.actors.loading import NAMESPACE as ACTORS
from riverrun.actors.member import Registered
from riverrun.actors.notes import Notebook
from riverrun.models.synthetic import frame_number
from riverrun.protos import riverrun_pb2 as pb

from .conftest import DEADLINE_S, Stubs, end_controller, eventually, serving
from .test_survival import Viewer

MODEL = """name: level
class: riverrun.models.synthetic:Synthetic
stage: generation
actor: {count: 2, max_sessions: 8, resources: {node:__internal_head__: 0.001}}
"""
GRAPH = "name: level\nstages: {a: {model: level}}\noutputs: {frames: a.frames}\n"
SLOW = {"step_ms": 30.0, "batch": False}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory, ray_cluster):
    """Of a service that has joined the Ray of this process as a cluster."""
    folder = tmp_path_factory.mktemp("controller")
    (folder / "level.yaml").write_text(MODEL)
    (folder / "level-graph.yaml").write_text(GRAPH)
    settings = [f"models=[{folder}/level.yaml]", f"graphs=[{folder}/level-graph.yaml]"]
    settings += [f"checkpoints.uri={folder}/kept", f"ray_address={ray.get_runtime_context().gcs_address}"]
    with serving(*settings) as running, grpc.insecure_channel(running.service.address) as channel:
        yield Stubs(channel)
        end_controller()


def lives(stubs):
    return {a.actor: a.incarnation for a in stubs.status().actors if a.up}


def where(stubs, sessions):
    return sorted(stubs.get(each.session_id).stages[0].actor for each in sessions)


def freeze(stubs, thaw=False):
    stubs.cluster.Freeze(pb.FreezeRequest(thaw=thaw), timeout=DEADLINE_S)


def why(stubs, session):
    return stubs.cluster.Why(pb.WhyRequest(session_id=session.session_id), timeout=DEADLINE_S).decisions


class Reading:
    """Viewers that read until they are told to stop, each frame once and in order."""

    def __init__(self, stubs, sessions):
        self._stubs = stubs
        self.viewers = [Viewer(session).connect(stubs) for session in sessions]
        self._threads, self._stop = ThreadPoolExecutor(len(sessions)), False
        self._reads = [self._threads.submit(self._read, viewer) for viewer in self.viewers]

    def _read(self, viewer):
        while not self._stop:
            try:
                viewer.read(len(viewer.pixels) + 4)
            except grpc.RpcError as error:  # one call has a deadline; the next one goes on where it was
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                viewer.connect(self._stubs)

    @property
    def frames(self):
        """Of the one that has fewest."""
        return min(len(viewer.pixels) for viewer in self.viewers)

    def more(self, count):
        wanted = self.frames + count
        eventually(lambda: self.frames >= wanted or any(each.done() for each in self._reads))

    def stop(self):
        self._stop = True
        for read in self._reads:
            read.result(DEADLINE_S)
        self._threads.shutdown()
        for viewer in self.viewers:
            assert [frame_number(p) for p in viewer.pixels] == list(range(len(viewer.pixels)))
            viewer.leave()


@pytest.fixture
def crowded(stubs):
    """Three sessions on one actor, none on the other, frozen; they are read all the while."""
    eventually(lambda: len(lives(stubs)) == 2)
    freeze(stubs)
    sessions = [stubs.create(graph="level", params=SLOW, seed=n) for n in range(3)]
    for each in sessions:
        if stubs.get(each.session_id).stages[0].actor != "level-0":
            move = pb.MigrateSessionRequest(session_id=each.session_id, stage="a", actor="level-0")
            stubs.sessions.Migrate(move, timeout=DEADLINE_S)
    reading = Reading(stubs, sessions)
    reading.more(20)
    yield sessions, reading
    reading.stop()
    for each in sessions:
        stubs.close(each.session_id)
    freeze(stubs, thaw=True)


def test_the_slowest_actor_is_relieved_while_frames_flow_unless_frozen(stubs, crowded):
    sessions, reading = crowded
    assert stubs.status().frozen
    assert where(stubs, sessions) == ["level-0"] * 3
    freeze(stubs, thaw=True)
    assert not stubs.status().frozen
    eventually(lambda: where(stubs, sessions) == ["level-0", "level-0", "level-1"])
    reading.more(40)
    (moved,) = (each for each in sessions if stubs.get(each.session_id).stages[0].actor == "level-1")
    decisions = why(stubs, moved)
    assert next(d.kind for d in decisions if d.kind in ("place", "move")) == "place"
    (move,) = (d for d in decisions if d.kind == "move")
    assert move.line.endswith("to level-1")
    before, after = (float(move.inputs[k].split()[0]) for k in ("slowest chunk before", "after all moves"))
    assert after < before


def test_the_controller_dies_and_the_next_one_goes_on_from_what_is_there(stubs, crowded):
    """No stream notices: the actors live, what was frozen stays so, what was decided is still known, and the autoscaler
    is asked again for the same."""
    sessions, reading = crowded
    before = lives(stubs)
    decided = why(stubs, sessions[0])
    assert any(each.kind == "place" for each in decided)
    session = sessions[0].session_id
    eventually(lambda: session in {each.session for each in Journal(NAME).decisions(time.time())})
    assert Journal(NAME).learned()
    asked = "autoscaler_resource_request"  # where Ray keeps it
    assert ray.experimental.internal_kv._internal_kv_get(asked)
    ray.experimental.internal_kv._internal_kv_del(asked)
    ray.kill(ray.get_actor("riverrun-controller", namespace="riverrun"), no_restart=False)
    reading.more(40)
    eventually(lambda: _answers(stubs))
    assert stubs.status().frozen
    assert list(why(stubs, sessions[0]))[: len(decided)] == list(decided)
    assert lives(stubs) == before
    assert where(stubs, sessions) == ["level-0"] * 3
    eventually(lambda: ray.experimental.internal_kv._internal_kv_get(asked))
    freeze(stubs, thaw=True)
    eventually(lambda: where(stubs, sessions) == ["level-0", "level-0", "level-1"])
    reading.more(20)


def test_a_controller_that_another_has_replaced_ends(stubs, crowded):
    """As on a node that Ray has given up: it must not go on beside the new one. Here Ray starts it again."""
    _, reading = crowded
    before, notebook = lives(stubs), Notebook(NAME)
    notebook.claim("another")
    eventually(lambda: not notebook.is_held_by("another"))  # the next life of it has claimed it
    eventually(lambda: _answers(stubs))
    reading.more(20)
    assert lives(stubs) == before


def _answers(stubs):
    try:
        return {a.up for a in stubs.status().actors} == {True}
    except grpc.RpcError:
        return False


def test_an_actor_that_no_controller_knows_is_ended(stubs):
    """As one that a controller started in its last second, when the next one had looked for them already."""
    name = str(Registered("level-7", "0" * 12, "whatever"))
    before = lives(stubs)
    ray.remote(num_cpus=0)(Nobodys).options(name=name, namespace=ACTORS, lifetime="detached").remote()
    assert name in {str(found) for found, _ in registered()}
    eventually(lambda: name not in {str(found) for found, _ in registered()})
    assert lives(stubs) == before


class Nobodys:
    """An actor without a controller."""
