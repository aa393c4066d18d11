"""`Connect` through the real port: every frame exactly once, controls, credits, reconnects, ends, and wrong clients."""

import numpy as np
import pytest

from riverrun.models.synthetic import colour, frame_number
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Header, Joiner, split

from .conftest import eventually

SEED = 5


def picture(part: pb.FramePart) -> np.ndarray:
    return Joiner().add(part).array


def check(frames: list[pb.FramePart], first: int = 0, prompt: str = "sea") -> None:
    """Each frame once, in order, with the pixels of its chunk."""
    assert [part.frame for part in frames] == list(range(first, first + len(frames)))
    for part in frames:
        pixels = picture(part)
        assert frame_number(pixels) == part.frame
        assert (part.chunk, part.index_in_chunk, part.pts) == (part.frame // 4, part.frame % 4, part.frame * 5625)
        assert (pixels[1, 1] == colour(SEED, prompt, part.chunk)).all()


@pytest.fixture
def session(stubs):
    made = stubs.create(params={"prompt": "sea"}, seed=SEED)
    yield made
    stubs.close(made.session_id)


def test_frames_come_in_order_once_and_only_against_credits(stubs, session):
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=6)])
    opened = stream.until("opened")
    assert (opened.session.session_id, opened.epoch, opened.session.resume_token) == (session.session_id, 1, "")
    frames = stream.frames(6)
    stream.say(ping=pb.Ping(nonce=7))
    assert stream.next().pong.nonce == 7  # no seventh frame came first
    assert stubs.get(session.session_id).frames_delivered == 6
    stream.credit(5)
    frames += stream.frames(5)
    check(frames)
    stream.say(ack=pb.Ack(port="frames", frame=10))
    stream.say(finish=pb.Finish())
    stream.credit(20)
    rest = stream.rest()
    tail = [message.frame for message in rest if message.WhichOneof("message") == "frame"]
    check(tail, first=11)
    assert (rest[-1].event.type, rest[-1].event.reason) == (pb.Event.TYPE_ENDED, "finished")
    assert eventually(lambda: stubs.get(session.session_id).state == pb.SESSION_STATE_CLOSED)


def test_a_prompt_switch_gets_two_receipts_and_the_pixels_change_there(stubs, session):
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=4)])
    stream.frames(4)
    stream.control(1, prompt="sand")
    stream.credit(8)
    messages: list[pb.ServerMessage] = []
    while sum(m.frame.revision for m in messages) < 8:  # credit for one as one comes, to the eighth of the new prompt
        messages.append(stream.next())
        if messages[-1].WhichOneof("message") == "frame":
            stream.credit(1)
    receipts = [m.receipt for m in messages if m.WhichOneof("message") == "receipt"]
    assert [r.stage for r in receipts] == [pb.Receipt.STAGE_RECEIVED, pb.Receipt.STAGE_APPLIED]
    applied = receipts[1]
    assert applied.frame == 4 * applied.chunk
    frames = [m.frame for m in messages if m.WhichOneof("message") == "frame"]
    before = [f for f in frames if f.frame < applied.frame]
    check(before, first=4, prompt="sea")
    check(frames[len(before) :], first=applied.frame, prompt="sand")
    assert {f.revision for f in before} <= {0}
    assert {f.revision for f in frames[len(before) :]} == {1}
    stream.cancel()


def test_a_control_that_can_not_be_taken_is_rejected_and_the_stream_goes_on(stubs, session):
    stream = stubs.connect(session)
    for revision, kind, words in (
        (1, {"prompt": " "}, "at least one character"),
        (2, {"parameters": {"height": 4}}, "can change while it runs: step_ms"),
        (3, {"prompt": "x", "stage": "nope"}, "no stage 'nope'"),
        (4, {}, "needs one of prompt, pause, parameters"),
    ):
        stream.control(revision, **kind)
        stream.credit(8)
        last = stream.receipts(revision)[-1]
        assert last.stage == pb.Receipt.STAGE_REJECTED
        assert words in last.message
    stream.cancel()


def test_pause_and_go_on(stubs, session):
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=2)])
    stream.frames(2)
    stream.control(1, pause=True)
    assert stream.until("event").type == pb.Event.TYPE_PAUSED
    stream.credit(100)
    steps = stubs.get(session.session_id).stages[0].steps
    stream.control(2, pause=False)
    assert stream.until("event").type == pb.Event.TYPE_RESUMED
    assert stream.frames(40)[-1].frame > 4 * steps
    stream.cancel()


def test_a_reconnect_gives_every_frame_exactly_once(stubs, session):
    received = []
    for _ in range(4):
        last = {"last_received": received[-1].frame} if received else {}
        stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=30, **last)])
        received += stream.frames(11)  # more are on their way when the line is cut
        stream.cancel()
    check(received)


def test_a_second_controller_replaces_the_first(stubs, session):
    first = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=3)])
    first.frames(3)
    second = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=3, last_received=2)])
    check(second.frames(3), first=3)
    first.half_close()
    end = first.rest()
    assert end[-1].event.type == pb.Event.TYPE_REPLACED
    second.cancel()


def test_a_viewer_watches_and_may_not_steer(stubs, session, code):
    controller = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=60)])
    viewer = stubs.connect(session, role=pb.ROLE_VIEWER, resume_token="", ports=[pb.PortWish(port="frames", credits=2)])
    viewer.until("opened")
    controller.frames(60)
    numbers = [part.frame for part in viewer.frames(2)]
    assert numbers == sorted(numbers)
    viewer.control(1, prompt="mine")
    name, line = code(viewer.rest)
    assert (name, "a viewer watches" in line) == ("PERMISSION_DENIED", True)
    controller.cancel()


@pytest.mark.parametrize(("codec", "exact"), [(pb.CODEC_PNG, True), (pb.CODEC_JPEG, False)])
def test_pictures_come_in_the_codec_that_was_asked_for(stubs, codec, exact):
    session = stubs.create(params={"prompt": "sea", "height": 64, "width": 96}, seed=SEED)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", codec=codec, credits=8)])
    for part in stream.frames(8):
        assert (part.codec, list(part.shape), part.layout) == (codec, [64, 96, 3], "HWC")
        difference = np.abs(picture(part)[32, 48].astype(int) - colour(SEED, "sea", part.chunk))
        assert difference.max() <= (0 if exact else 12)
    stream.cancel()
    stubs.close(session.session_id)


def test_a_frame_of_many_parts(stubs):
    session = stubs.create(params={"prompt": "sea", "height": 720, "width": 1280, "chunk_frames": 2}, seed=SEED)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=3)])
    joiner, whole = Joiner(), []
    while len(whole) < 3:
        part = stream.until("frame")
        assert part.parts == 3
        whole += [joined.array for joined in [joiner.add(part)] if joined]
    assert [frame_number(array) for array in whole] == [0, 1, 2]
    stream.cancel()
    stubs.close(session.session_id)


def test_closing_elsewhere_ends_the_stream_well(stubs):
    session = stubs.create()
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=1)])
    stream.frames(1)
    stubs.close(session.session_id)
    event = stream.until("event")
    stream.half_close()
    assert (event.type, event.reason) == (pb.Event.TYPE_ENDED, "closed by a client")
    assert stream.rest() == []


def test_max_frames_and_half_close(stubs):
    session = stubs.create(max_frames=10, seed=SEED, params={"prompt": "sea"})
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=100)])
    stream.half_close()  # like a client that says all it has to say at once
    messages = stream.rest()
    check([m.frame for m in messages if m.WhichOneof("message") == "frame"])
    assert messages[-1].event.type == pb.Event.TYPE_ENDED
    assert stubs.get(session.session_id).frames_delivered == 10


def test_a_client_that_half_closes_gets_what_it_gave_credit_for(stubs, session):
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=5)])
    stream.half_close()
    check([m.frame for m in stream.rest() if m.WhichOneof("message") == "frame"])
    assert stubs.get(session.session_id).state == pb.SESSION_STATE_RUNNING


def test_a_session_nobody_wants_ends(stubs):
    request = {"idle_timeout": {"seconds": 0, "nanos": 200_000_000}}
    session = stubs.create(**request)
    assert eventually(lambda: stubs.get(session.session_id).state == pb.SESSION_STATE_CLOSED)
    assert "idle: nobody was connected for 0.2 s" in stubs.get(session.session_id).reason


def test_a_chain_of_two_stages_and_large_chunks_by_reference(stubs):
    params = {"make.height": 256, "make.width": 512, "turn.height": 256, "turn.width": 512, "turn.takes": 2}
    params |= {"turn.chunk_frames": 1, "make.prompt": "sea", "make.chunk_frames": 4}
    session = stubs.create(graph="chain", params=params, seed=SEED)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=6)])
    for n, part in enumerate(stream.frames(6)):
        assert (part.frame, part.pts) == (n, 2 * n * 5625)
        assert (255 - picture(part)[1, 1] == colour(SEED, "sea", n // 2)).all()
    stream.cancel()
    stubs.close(session.session_id)


def test_input_goes_in_and_is_acknowledged(stubs):
    params = {"takes": 2, "chunk_frames": 1, "height": 4, "width": 4}
    session = stubs.create(graph="turn", params=params)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=3)])
    for n in range(6):
        header = Header(port="video", frame=n, chunk=0, index_in_chunk=0, pts=n * 5625, epoch=0, revision=0)
        for part in split(np.full((4, 4, 3), n, np.uint8), header):
            stream.say(frame=part)
    found = [stream.next() for _ in range(10)]
    assert [m.input_ack.frame for m in found if m.WhichOneof("message") == "input_ack"] == [0, 1, 2, 3, 4, 5]
    values = [picture(m.frame)[0, 0, 0] for m in found if m.WhichOneof("message") == "frame"]
    assert values == [255, 253, 251]
    stream.say(finish=pb.Finish())
    assert stream.until("event").type == pb.Event.TYPE_ENDED
    stream.half_close()
    assert stream.rest() == []


def test_input_is_taken_once_whatever_the_client_repeats_and_finish_waits_for_it(stubs, code):
    params = {"takes": 1, "chunk_frames": 1, "height": 4, "width": 4}
    session = stubs.create(graph="turn", params=params)

    def send(stream, *numbers: int) -> None:
        for n in numbers:
            header = Header(port="video", frame=n, chunk=0, index_in_chunk=0, pts=n * 5625, epoch=0, revision=0)
            for part in split(np.full((4, 4, 3), n, np.uint8), header):
                stream.say(frame=part)

    first = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=1)])
    send(first, 0, 1)
    assert first.until("input_ack").frame == 0
    first.frames(1)
    first.cancel()
    second = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=40, last_received=0)])
    send(second, *range(1, 20))
    second.say(finish=pb.Finish())
    second.half_close()
    values = [picture(m.frame)[0, 0, 0] for m in second.rest() if m.WhichOneof("message") == "frame"]
    assert values == [255 - n for n in range(1, 20)]
    gap = stubs.create(graph="turn", params=params)
    stream = stubs.connect(gap)
    send(stream, 3)
    assert code(stream.rest) == ("INVALID_ARGUMENT", "input 'video': frame 3 came where 0 was due")
    stubs.close(gap.session_id)


def test_wrong_clients_get_the_right_code_and_one_line(stubs, session, code):
    stream = stubs.connect(session)
    stream.until("opened")
    stream.credit(1, port="depth")
    assert code(stream.rest) == ("INVALID_ARGUMENT", "no port 'depth' here; there are frames")
    ports = [pb.PortWish(port="depth")]
    assert code(stubs.connect(session, ports=ports).rest) == ("INVALID_ARGUMENT", "no output 'depth'; there are frames")
    name, line = code(stubs.connect(session, resume_token="guess").rest)
    assert (name, "resume_token is not this session's" in line) == ("PERMISSION_DENIED", True)
    name, line = code(stubs.connect(session, role=pb.ROLE_UNSPECIFIED).rest)
    assert (name, line) == ("INVALID_ARGUMENT", "role must be ROLE_CONTROLLER or ROLE_VIEWER")
    ports = [pb.PortWish(port="frames", last_received=999)]
    name, line = code(stubs.connect(session, ports=ports).rest)
    assert (name, "frame 999 was never sent" in line) == ("INVALID_ARGUMENT", True)
    first = iter([pb.ClientMessage(ping=pb.Ping())])
    name, line = code(lambda: list(stubs.streams.Connect(first, timeout=10)))
    assert (name, line) == ("INVALID_ARGUMENT", "the first message must be `open`, got ping")
    ports = [pb.PortWish(port="frames", codec=pb.CODEC_JPEG, quality=101)]
    name, line = code(stubs.connect(session, ports=ports).rest)
    assert (name, line) == ("INVALID_ARGUMENT", "quality must be 1..100 (0 for 90), got 101")
    unknown = pb.Session(session_id="nope")
    assert code(stubs.connect(unknown).rest)[0] == "NOT_FOUND"


def test_a_closed_session_takes_no_client(stubs, code):
    session = stubs.create()
    stubs.close(session.session_id)
    name, line = code(stubs.connect(session).rest)
    assert name == "FAILED_PRECONDITION"
    assert line == f"session {session.session_id} is closed: closed by a client"
