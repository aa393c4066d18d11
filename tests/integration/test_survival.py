"""Sessions outlive actors and gateways: real gRPC, real Ray processes that are really killed, a real store."""

import os
import signal

import pytest

from riverrun.models.synthetic import frame_number
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner

from .conftest import DEADLINE_S, eventually
from .pair import two_gateways

GRAPHS = {
    "one": "stages: {a: {model: pair}}\noutputs: {frames: a.frames}\n",
    "two": "stages: {a: {model: pair}, b: {model: pair}}\nedges: [{from: a.frames, to: b.frames}]\n"
    "outputs: {frames: b.frames}\n",
    "fed": "stages: {a: {model: pair}}\ninputs: {video: a.frames}\noutputs: {frames: a.frames}\n",
}
PARAMS = {"one": {"state_bytes": 1 << 16}, "two": {"b.takes": 8, "b.chunk_frames": 4, "a.state_bytes": 1 << 16}}


@pytest.fixture(scope="module")
def gateways(tmp_path_factory, ray_cluster):
    with two_gateways(tmp_path_factory.mktemp("survival"), GRAPHS) as pair:
        yield [stubs for _, stubs in pair]


class Viewer:
    """Reads frames through as many connections as it takes; they come once, in order, each with its own number."""

    def __init__(self, session, chunk=4):
        self.session, self.pixels = session, []

    def connect(self, stubs, credits=8):
        wish = pb.PortWish(port="frames", credits=credits)
        if self.pixels:
            wish.last_received = len(self.pixels) - 1
        self.stream = stubs.connect(self.session, ports=[wish])
        return self

    def read(self, count):
        while len(self.pixels) < count:
            part = self.stream.until("frame")
            assert part.frame == len(self.pixels)
            self.pixels.append(Joiner().add(part).array)
            self.stream.credit(1)
            self.stream.say(ack=pb.Ack(port="frames", frame=part.frame))
        return self

    def leave(self):
        self.stream.cancel()
        return self


def undisturbed(stubs, graph, count):
    session = stubs.create(graph=graph, params=PARAMS[graph], seed=5)
    viewer = Viewer(session).connect(stubs).read(count).leave()
    stubs.close(session.session_id)
    return viewer.pixels


def actor_of(stubs, session, stage="a"):
    at = next(s for s in stubs.get(session.session_id).stages if s.stage == stage)
    return next(a for a in stubs.status().actors if a.actor == at.actor and a.incarnation == at.incarnation)


def same(pixels, wanted):
    assert len(pixels) == len(wanted)
    assert all((a == b).all() for a, b in zip(pixels, wanted, strict=True))


@pytest.mark.parametrize("graph", ["one", "two"])
def test_an_actor_is_killed_and_no_frame_is_missed(gateways, graph):
    stubs, _ = gateways
    wanted = undisturbed(stubs, graph, 100)
    session = stubs.create(graph=graph, params=PARAMS[graph], seed=5)
    viewer = Viewer(session).connect(stubs).read(30)
    os.kill(actor_of(stubs, session).pid, signal.SIGKILL)
    same(viewer.read(100).pixels, wanted)
    viewer.leave()
    stubs.close(session.session_id)


@pytest.mark.parametrize("graph", ["one", "two"])
def test_another_gateway_goes_on_with_a_session(gateways, graph):
    stubs, others = gateways
    wanted = undisturbed(stubs, graph, 80)
    session = stubs.create(graph=graph, params=PARAMS[graph], seed=5)
    viewer = Viewer(session).connect(stubs).read(25).leave()
    same(viewer.connect(others).read(50).leave().connect(stubs).read(80).pixels, wanted)
    viewer.leave()
    stubs.close(session.session_id)


def test_put_away_and_taken_up_again(gateways, code):
    stubs, others = gateways
    wanted = undisturbed(stubs, "two", 90)
    session = stubs.create(graph="two", params=PARAMS["two"], seed=5)
    viewer = Viewer(session).connect(stubs).read(20)
    put = stubs.sessions.Suspend(pb.SuspendSessionRequest(session_id=session.session_id), timeout=DEADLINE_S)
    assert put.state == pb.SESSION_STATE_SUSPENDED
    event = viewer.stream.until("event")
    assert (event.type, event.HasField("retry_after")) == (pb.Event.TYPE_SUSPENDED, False)
    eventually(lambda: not any(a.sessions for a in stubs.status().actors))
    viewer.leave().connect(others).read(60).leave()
    others.sessions.Suspend(pb.SuspendSessionRequest(session_id=session.session_id), timeout=DEADLINE_S)
    wrong = pb.ResumeSessionRequest(session_id=session.session_id, resume_token="wrong")
    assert code(lambda: stubs.sessions.Resume(wrong, timeout=DEADLINE_S))[0] == "PERMISSION_DENIED"
    right = pb.ResumeSessionRequest(session_id=session.session_id, resume_token=session.resume_token)
    assert stubs.sessions.Resume(right, timeout=DEADLINE_S).state == pb.SESSION_STATE_RUNNING
    same(viewer.connect(stubs).read(90).pixels, wanted)
    viewer.leave()
    stubs.close(session.session_id)


def test_a_suspended_session_can_be_ended(gateways):
    stubs, others = gateways
    session = stubs.create(graph="one")
    stubs.sessions.Suspend(pb.SuspendSessionRequest(session_id=session.session_id), timeout=DEADLINE_S)
    assert others.close(session.session_id).state == pb.SESSION_STATE_CLOSED


def test_a_gateway_that_has_lost_a_session_and_does_not_know_it_ends_it_all_the_same(gateways):
    stubs, others = gateways
    session = stubs.create(graph="two", params=PARAMS["two"], seed=5)
    viewer = Viewer(session).connect(stubs).read(20).leave().connect(others).read(40)
    others.sessions.Suspend(pb.SuspendSessionRequest(session_id=session.session_id), timeout=DEADLINE_S)
    viewer.leave()
    assert stubs.close(session.session_id).state == pb.SESSION_STATE_CLOSED
    assert others.get(session.session_id).state == pb.SESSION_STATE_CLOSED


def test_stages_move_while_frames_flow(gateways, code):
    stubs, _ = gateways
    wanted = undisturbed(stubs, "two", 100)
    session = stubs.create(graph="two", params=PARAMS["two"], seed=5)
    viewer = Viewer(session).connect(stubs)
    for count in (20, 40, 60):
        before = actor_of(stubs, viewer.session).actor
        move = pb.MigrateSessionRequest(session_id=session.session_id, stage="a")
        stubs.sessions.Migrate(move, timeout=DEADLINE_S)
        assert actor_of(stubs, viewer.session).actor != before
        viewer.read(count)
    same(viewer.read(100).pixels, wanted)
    nobody = pb.MigrateSessionRequest(session_id=session.session_id, stage="a", actor="nobody")
    name, line = code(lambda: stubs.sessions.Migrate(nobody, timeout=DEADLINE_S))
    assert (name, "there are pair-0, pair-1" in line) == ("INVALID_ARGUMENT", True)
    viewer.leave()
    stubs.close(session.session_id)


def test_an_actor_is_drained(gateways, code):
    stubs, _ = gateways
    wanted = undisturbed(stubs, "two", 80)
    session = stubs.create(graph="two", params=PARAMS["two"], seed=5)
    viewer = Viewer(session).connect(stubs).read(20)
    target = actor_of(stubs, session).actor
    answer = stubs.cluster.Drain(pb.DrainRequest(target=target), timeout=2 * DEADLINE_S)
    assert (list(answer.actors), answer.sessions) == ([target], 0)
    assert target not in {s.actor for s in stubs.get(session.session_id).stages}
    same(viewer.read(80).pixels, wanted)
    stubs.cluster.Drain(pb.DrainRequest(undo=True), timeout=DEADLINE_S)
    assert code(lambda: stubs.cluster.Drain(pb.DrainRequest(target="nobody"), timeout=DEADLINE_S))[0] == (
        "INVALID_ARGUMENT"
    )
    viewer.leave()
    stubs.close(session.session_id)


def test_frames_carry_their_own_numbers(gateways):
    stubs, _ = gateways
    assert [frame_number(p) for p in undisturbed(stubs, "one", 12)] == list(range(12))
