"""Clients that never read, read slowly, ack nothing or flood: bounded memory, no more tasks, and neighbours unharmed.

The service runs in this process, so what lies in its rings and how many tasks it has can be counted.
"""

import asyncio
import dataclasses
import gc
import weakref

import pytest

from riverrun.actors.streams import MAX_UNREAD
from riverrun.graphs.config import DEFAULTS
from riverrun.graphs.consumer import MAX_CREDITS, most_credits
from riverrun.models.synthetic import frame_number
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner

from .conftest import eventually

DEADLINE_S = 120
CHUNK = 4
LARGE = {"prompt": "sea", "height": 512, "width": 680, "chunk_frames": CHUNK}  # one part a frame, chunks by reference
FRAME_BYTES = 512 * 680 * 3
NEIGHBOUR_FRAMES = 200


class Inside:
    """What the service holds, counted on its own loop."""

    def __init__(self, running):
        self._running = running
        self.host = running.service._gateway._host
        self.streams = running.service._gateway._streams

    def _on_loop(self, what):
        async def ask():
            return what()

        return self._running.call(ask())

    def tasks(self) -> int:
        return self._on_loop(lambda: len(asyncio.all_tasks()))

    def runner(self, session: pb.Session):
        return self.host.find(session.session_id).runner

    def ring_frames(self, session: pb.Session) -> int:
        """Frames that lie in a session's rings; checks its books."""

        def count() -> int:
            runner = self.runner(session)
            runner.check()
            return sum(ring.held_frames for ring in runner._flow.audience.rings.values())

        return self._on_loop(count)

    def is_left_alone(self, session: pb.Session) -> bool:
        return self._on_loop(lambda: self.runner(session)._flow.audience.empty)

    def unread(self, session: pb.Session) -> int:
        return self._on_loop(lambda: max(c.unread for c in self.runner(session)._flow.audience._consumers))


@pytest.fixture
def inside(running):
    return Inside(running)


@pytest.fixture
def session(stubs):
    made = stubs.create(params=LARGE, seed=3)
    yield made
    stubs.close(made.session_id)


def neighbour_finishes(stubs) -> None:
    """Another session streams all its frames, each once, while the first one is stalled."""
    session = stubs.create(params={"prompt": "sand"}, max_frames=NEIGHBOUR_FRAMES)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=64)])
    numbers = []
    while len(numbers) < NEIGHBOUR_FRAMES:
        part = stream.until("frame")
        numbers.append(part.frame)
        stream.credit(1)
        stream.say(ack=pb.Ack(port="frames", frame=part.frame))
    assert numbers == list(range(NEIGHBOUR_FRAMES))
    assert stream.until("event").type == pb.Event.TYPE_ENDED
    stream.half_close()
    assert stream.rest() == []


def number(part: pb.FramePart) -> int:
    """Of a frame of one part, as its pixels say."""
    return frame_number(Joiner().add(part).array)


def delivered(stubs, session) -> int:
    return stubs.get(session.session_id).frames_delivered


def stalled(stubs, inside, session) -> int:
    """Waits until nothing moves in a session any more: frames taken by its connection."""

    def still():
        before = (delivered(stubs, session), inside.ring_frames(session))
        neighbour_finishes(stubs)
        return before == (delivered(stubs, session), inside.ring_frames(session))

    eventually(still, DEADLINE_S)
    return delivered(stubs, session)


def most_kept(credits: int) -> int:
    """Frames that a ring may hold at most: those sent, the chunk they are in, and one that waits."""
    return max(DEFAULTS.ring_frames, credits) + 2 * CHUNK


@pytest.mark.parametrize("credits", [CHUNK, 64, 512])
def test_a_client_that_never_reads_stalls_itself_alone(stubs, inside, session, credits):
    given = min(credits, most_credits(FRAME_BYTES))
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=given)])
    taken = stalled(stubs, inside, session)
    assert taken <= given
    assert inside.ring_frames(session) <= most_kept(given)
    steps = stubs.get(session.session_id).stages[0].steps
    assert steps <= taken // CHUNK + 2  # nothing is computed for nobody
    stream.cancel()


def test_more_credits_than_a_ring_may_hold_are_refused(stubs, session, code):
    most = most_credits(FRAME_BYTES)
    assert 32 <= most < MAX_CREDITS
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=most + 1)])
    name, line = code(stream.rest)
    assert (name, f"at most {most} frames may be outstanding" in line) == ("INVALID_ARGUMENT", True)


def test_a_client_that_acks_nothing_keeps_no_more_than_the_ring(stubs, inside, session):
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=CHUNK)])
    most = 0
    for _ in range(15 * CHUNK):
        stream.frames(1)
        stream.credit(1)
        most = max(most, inside.ring_frames(session))
    assert DEFAULTS.ring_frames <= most <= most_kept(CHUNK)
    stream.cancel()


def test_what_is_acked_is_not_kept(stubs, inside, session):
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=64)])
    last = stream.frames(64)[-1].frame
    assert inside.ring_frames(session) >= 64
    stream.say(ack=pb.Ack(port="frames", frame=last))
    assert eventually(lambda: inside.ring_frames(session) <= 2 * CHUNK, DEADLINE_S)
    stream.cancel()


def test_a_slow_reader_gets_every_frame_and_slows_nobody(stubs, inside, session):
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=24)])
    numbers = []
    while len(numbers) < 12:
        neighbour_finishes(stubs)  # it reads a frame in the time in which another one streams 200
        numbers.append(number(stream.until("frame")))
        assert inside.ring_frames(session) <= most_kept(24)
    assert numbers == list(range(12))
    stream.cancel()


def test_a_viewer_that_reads_nothing_slows_nobody(stubs, inside, session):
    viewer = stubs.connect(
        session, role=pb.ROLE_VIEWER, resume_token="", ports=[pb.PortWish(port="frames", credits=64)]
    )
    viewer.until("opened")
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=8)])
    for revision in range(1, 101):
        stream.control(revision, pause=revision % 2 == 1)  # each is an event for the viewer
    numbers = []
    while len(numbers) < 80:
        numbers.append(number(stream.until("frame")))
        stream.credit(1)
        stream.say(ack=pb.Ack(port="frames", frame=numbers[-1]))
    assert numbers == list(range(80))
    assert inside.ring_frames(session) <= most_kept(8)
    assert inside.unread(session) <= 64
    stream.cancel()
    viewer.cancel()


def test_controls_whose_receipts_nobody_reads_are_refused_at_last(stubs, inside):
    session = stubs.create(params={"prompt": "sea"})
    stream = stubs.connect(session)
    count = 6 * MAX_UNREAD
    for revision in range(1, count + 1):
        stream.control(revision, pause=revision % 2 == 1)
    neighbour_finishes(stubs)
    assert inside.unread(session) <= MAX_UNREAD + 3 * 64
    last = {}
    while len(last) < count:
        receipt = stream.until("receipt")
        if receipt.stage != pb.Receipt.STAGE_RECEIVED:
            last[receipt.revision] = receipt.stage
    assert set(last) == set(range(1, count + 1))  # each has its answer, once somebody reads
    stream.cancel()
    stubs.close(session.session_id)


def test_pings_that_nobody_reads_answers_to_pile_up_nowhere(stubs, inside, session):
    before = inside.tasks()
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=32)])
    for nonce in range(5000):
        stream.say(ping=pb.Ping(nonce=nonce))
    stalled(stubs, inside, session)
    assert inside.tasks() <= before + 12  # a handful a connection, however much it says
    stream.cancel()
    assert eventually(lambda: inside.tasks() <= before, DEADLINE_S)


@pytest.fixture
def impatient(inside, monkeypatch):
    """The service ends a connection that reads nothing for a second."""
    monkeypatch.setattr(inside.host, "config", dataclasses.replace(inside.host.config, stall_s=1.0))


def test_a_connection_that_reads_nothing_is_ended_and_its_session_goes_on(stubs, inside, session, impatient, code):
    given = most_credits(FRAME_BYTES)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=given)])
    assert eventually(lambda: delivered(stubs, session) and inside.is_left_alone(session), DEADLINE_S)
    assert stubs.get(session.session_id).state == pb.SESSION_STATE_RUNNING
    stream.until("opened")
    received = []

    def read():
        while (message := stream.next()) is not None:
            received.append(number(message.frame))

    assert code(read) == ("UNAVAILABLE", "nothing was read for 1 s; connect again with last_received")
    ports = [pb.PortWish(port="frames", credits=16, last_received=received[-1])]
    again = stubs.connect(session, ports=ports)
    received += [number(part) for part in again.frames(8)]
    assert received == list(range(len(received)))  # every frame exactly once, over both
    again.cancel()


def test_an_ended_connection_that_never_reads_its_status_holds_nothing(stubs, inside, session, impatient):
    before = inside.tasks()
    given = most_credits(FRAME_BYTES)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=given)])
    assert eventually(lambda: delivered(stubs, session) and inside.is_left_alone(session), DEADLINE_S)
    runner = weakref.ref(inside.runner(session))
    stubs.close(session.session_id)
    eventually(lambda: inside.host.find(session.session_id) is None, DEADLINE_S)

    def gone():
        gc.collect()
        return runner() is None

    assert eventually(gone, DEADLINE_S)
    assert inside.streams._calls >= 1  # the call itself waits for its client, and counts as a connection
    stream.cancel()
    assert eventually(lambda: inside.streams._calls == 0 and inside.tasks() <= before, DEADLINE_S)


def test_connections_are_limited(stubs, inside, session, monkeypatch, code):
    limits = dataclasses.replace(inside.host.config.limits, connections=inside.streams._calls + 1)
    monkeypatch.setattr(inside.host, "config", dataclasses.replace(inside.host.config, limits=limits))
    first = stubs.connect(session)
    first.until("opened")
    name, line = code(stubs.connect(session, role=pb.ROLE_VIEWER, resume_token="").rest)
    assert (name, "connections, its limit" in line) == ("RESOURCE_EXHAUSTED", True)
    first.cancel()
    assert eventually(lambda: inside.streams._calls < limits.connections, DEADLINE_S)
    second = stubs.connect(session)
    second.until("opened")
    second.cancel()


def test_a_lead_is_asked_for_and_shown(stubs):
    session = stubs.create(params={"prompt": "sea"}, lead={"seconds": 1})
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=400)])
    stream.frames(20)
    shown = eventually(lambda: (s := stubs.get(session.session_id)).parked and s, DEADLINE_S)
    assert 0.5 < shown.lead_s <= 1.25  # it plays on while this is read
    assert shown.frames_delivered < 400
    stream.frames(16)  # another second, made as the clock goes
    stream.cancel()
    stubs.close(session.session_id)


def test_a_wrong_lead_is_refused(stubs, code):
    name, line = code(lambda: stubs.create(lead={"seconds": -1}))
    assert (name, "lead must be 0..31622400 s, got -1 s" in line) == ("INVALID_ARGUMENT", True)
