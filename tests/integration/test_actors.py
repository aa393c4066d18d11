"""Stage actors in service: they answer while they compute, share fairly, die and are replaced, and keep nothing."""

import os
import signal

import pytest
import redis

from riverrun.models.synthetic import frame_number
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner

from .conftest import eventually


def the_actor(stubs) -> pb.ActorStatus:
    return next(actor for actor in stubs.status().actors if actor.model == "synthetic")


def test_control_calls_answer_while_a_chunk_runs(stubs):
    session = stubs.create(params={"step_ms": 1500})
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=100)])
    stream.frames(1)  # a step has ended, so the next one runs now
    steps = the_actor(stubs).steps
    other = stubs.create()
    assert stubs.get(session.session_id).state == pb.SESSION_STATE_RUNNING
    stream.control(1, prompt="sand")
    stream.say(ping=pb.Ping(nonce=3))
    assert stream.until("pong").nonce == 3
    stubs.close(other.session_id)
    stubs.close(session.session_id)
    assert the_actor(stubs).steps <= steps + 2, "the calls waited for steps"  # had each waited, it would be four
    stream.cancel()


def test_two_sessions_on_one_actor_take_turns(stubs):
    sessions = [stubs.create(params={"batch": False, "step_ms": 5}) for _ in range(2)]
    streams = [stubs.connect(s) for s in sessions]
    for stream in streams:
        stream.until("opened")
    for stream in streams:
        stream.credit(400)
    for stream in streams:
        stream.frames(80)
    one, two = (stubs.get(s.session_id).stages[0].steps for s in sessions)
    for stream, session in zip(streams, sessions, strict=True):
        stream.cancel()
        stubs.close(session.session_id)
    assert min(one, two) >= 20
    assert abs(one - two) <= 25


def test_one_failing_session_is_told_why_and_the_other_goes_on(stubs, code):
    good, bad = stubs.create(), stubs.create(params={"fail_at": 4})
    streams = [stubs.connect(s, ports=[pb.PortWish(port="frames", credits=400)]) for s in (good, bad)]
    event = streams[1].until("event")
    assert event.type == pb.Event.TYPE_ENDED
    assert "step 4: RuntimeError: told to fail at step 4" in event.reason
    streams[1].half_close()
    name, line = code(streams[1].rest)
    assert (name, line) == ("INTERNAL", event.reason)
    assert stubs.get(bad.session_id).state == pb.SESSION_STATE_FAILED
    numbers = [frame_number(Joiner().add(part).array) for part in streams[0].frames(100)]
    assert numbers == list(range(100))
    streams[0].cancel()
    stubs.close(good.session_id)


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_dead_actor_ends_its_sessions_clearly_and_is_replaced(stubs, code, how):
    session = stubs.create(params={"exit_at": 5} if how == "exit" else {})
    before = the_actor(stubs)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=400)])
    stream.frames(8)
    if how == "kill":
        os.kill(before.pid, signal.SIGKILL)
    event = stream.until("event")
    assert event.type == pb.Event.TYPE_ENDED
    assert before.actor in event.reason
    assert "died" in event.reason
    stream.half_close()
    assert code(stream.rest)[0] == "UNAVAILABLE"  # another actor takes its place
    assert stubs.get(session.session_id).state == pb.SESSION_STATE_FAILED
    after = stubs.create()
    assert after.stages[0].incarnation != before.incarnation
    assert stubs.connect(after, ports=[pb.PortWish(port="frames", credits=4)]).frames(4)[3].frame == 3
    stubs.close(after.session_id)


def test_an_actor_that_hangs_is_ended_and_replaced(stubs):
    session = stubs.create(params={"hang_at": 3})
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=100)])
    event = stream.until("event")
    stream.cancel()
    assert event.type == pb.Event.TYPE_ENDED
    assert "died" in event.reason
    after = stubs.create()
    assert after.stages[0].incarnation != session.stages[0].incarnation
    stubs.close(after.session_id)


def test_nothing_is_left_of_many_sessions(stubs, running):
    store = redis.Redis.from_url(running.service.store_url)

    def round_trip(n: int) -> None:
        session = stubs.create(params={"state_bytes": 1000})
        stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=4)])
        stream.frames(4)
        if n % 2:
            stream.cancel()
        stubs.close(session.session_id)

    eventually(lambda: the_actor(stubs).sessions == 0)
    for n in range(20):
        round_trip(n)
    assert eventually(lambda: the_actor(stubs).sessions == 0)
    assert the_actor(stubs).held_bytes == 0
    assert eventually(lambda: stubs.status().sessions == 0)
    ended = len(stubs.sessions.List(pb.ListSessionsRequest(include_ended=True, page_size=200), timeout=10).sessions)
    keys = len(store.keys())
    for n in range(5):
        round_trip(n)
    more = len(stubs.sessions.List(pb.ListSessionsRequest(include_ended=True, page_size=200), timeout=10).sessions)
    assert len(store.keys()) - keys == more - ended == 5, "a session's record is the one key that stays, and expires"


def test_keys_stay_constant_while_a_session_runs(stubs, running):
    store = redis.Redis.from_url(running.service.store_url)
    session = stubs.create()
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=500)])
    stream.control(1, prompt="sand")
    stream.frames(40)
    keys = set(store.keys())
    for revision in range(2, 12):
        stream.control(revision, prompt=f"sand {revision}")
        stream.frames(20)
    assert set(store.keys()) == keys
    stream.cancel()
    stubs.close(session.session_id)
