"""`generate` with the weights that are shipped: a prompt goes in over gRPC, frames come out, and the prompt changes.

One service for the module. What the pictures show is measured elsewhere (`bench/adherence.py`); here they only must be
pictures, the same for the same seed, and others after a switch.
"""

import json
import os
import signal
import subprocess
import sys

import av
import grpc
import numpy as np
import pytest

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner

from .conftest import DEADLINE_S, Stubs, eventually

RED, BLUE = "a large red ball on grass by day", "a large blue cube on snow at sunset"
FIRST, CHUNK = 9, 12


@pytest.fixture(scope="module")
def stubs():
    """In a process of its own, as users have it: this one's Ray may be the other modules' service already."""
    settings = ["port=0", "models=[world-text,longlive-world]", "ray_address=local", "drain_s=0.2"]
    command = [sys.executable, "-c", "from riverrun.client.cli import main; main()", "serve", "--json", *settings]
    without = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "RAY_ADDRESS")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without) as service:
        try:
            address = json.loads(service.stdout.readline())["address"]
            with grpc.insecure_channel(address) as channel:
                yield Stubs(channel)
        finally:
            service.send_signal(signal.SIGTERM)
            rest = service.communicate(timeout=DEADLINE_S)[0]
    assert (service.returncode, rest) == (0, "")


@pytest.fixture
def session(stubs):
    made = stubs.create(graph="generate", params={"prompt": RED}, seed=1)
    yield made
    stubs.close(made.session_id)


def wish(credits: int) -> list[pb.PortWish]:
    return [pb.PortWish(port="frames", credits=credits)]


def pixels(part: pb.FramePart) -> np.ndarray:
    return Joiner().add(part).array


def difference(a: pb.FramePart, b: pb.FramePart) -> float:
    return float(np.abs(pixels(a).astype(int) - pixels(b)).mean())


def test_a_prompt_goes_in_frames_come_out_and_a_switch_is_in_force_where_its_receipt_says(stubs, session):
    (output,) = session.outputs
    assert (output.height, output.width, output.first_frames, output.chunk_frames) == (64, 64, FIRST, CHUNK)
    stream = stubs.connect(session, ports=wish(FIRST))
    frames = stream.frames(FIRST)
    stream.control(1, prompt=BLUE)
    stream.credit(3 * CHUNK)
    receipts = []
    while len(frames) < FIRST + 3 * CHUNK:
        message = stream.next()
        if message.WhichOneof("message") == "receipt":
            receipts.append(message.receipt)
        elif message.WhichOneof("message") == "frame":
            frames.append(message.frame)
    stream.cancel()
    assert [r.stage for r in receipts] == [pb.Receipt.STAGE_RECEIVED, pb.Receipt.STAGE_APPLIED]
    applied = receipts[-1].frame
    assert applied in (FIRST, FIRST + CHUNK)  # one chunk may have been made ahead
    assert applied == FIRST + (receipts[-1].chunk - 1) * CHUNK
    assert [f.frame for f in frames] == list(range(len(frames)))
    assert [f.revision for f in frames] == [0] * applied + [1] * (len(frames) - applied)
    assert [f.pts for f in frames] == [n * 5625 for n in range(len(frames))]
    assert all(pixels(f).shape == (64, 64, 3) and pixels(f).std() > 5 for f in frames)
    assert difference(frames[-1], frames[0]) > 10


def test_two_sessions_at_once_make_what_each_makes_alone(stubs, session):
    twin = stubs.create(graph="generate", params={"prompt": RED}, seed=1)
    other = stubs.create(graph="generate", params={"prompt": BLUE}, seed=2)
    streams = [stubs.connect(s, ports=wish(FIRST + CHUNK)) for s in (session, twin, other)]
    one, two, three = ([f.data for f in stream.frames(FIRST + CHUNK)] for stream in streams)
    for stream, made in zip(streams, (session, twin, other), strict=True):
        stream.cancel()
        stubs.close(made.session_id)
    assert len(set(one)) == len(one)
    images = [np.frombuffer(b"".join(each), np.uint8).astype(int) for each in (one, two, three)]
    assert np.abs(images[0] - images[1]).max() <= 2  # shared steps round differently
    assert np.abs(images[0] - images[2]).mean() > 10


def test_nothing_is_held_when_sessions_have_ended(stubs):
    def held() -> list[tuple[int, int]]:
        return [(a.sessions, a.held_bytes) for a in stubs.status().actors if a.model == "longlive-world"]

    assert eventually(lambda: held() == [(0, 0)])


@pytest.mark.parametrize(
    ("fields", "expected", "line"),
    [
        ({"graph": "genrate"}, "NOT_FOUND", "there is no graph 'genrate'; there are generate"),
        ({"params": {}}, "INVALID_ARGUMENT", "parameter 'prompt' is missing"),
        ({"params": {"prompt": "  "}}, "INVALID_ARGUMENT", "the prompt is empty; say what to show"),
        ({"params": {"prompt": 3}}, "INVALID_ARGUMENT", "the prompt must be a text, got 3.0"),
        (
            {"params": {"prompt": RED, "heigth": 64}},
            "INVALID_ARGUMENT",
            "unknown parameter 'heigth'; there are",
        ),
        ({"params": {"prompt": RED, "height": 65}}, "INVALID_ARGUMENT", "must be multiples of 16, got 65 x 64"),
        ({"params": {"prompt": RED, "height": 640}}, "INVALID_ARGUMENT", "at most 4096 pixels a frame here"),
        ({"params": {"prompt": RED, "height": float("nan")}}, "INVALID_ARGUMENT", "finite numbers"),
        ({"params": {"prompt": "x" * 70_000}}, "INVALID_ARGUMENT", "at most 65536"),
        ({"idle_timeout": {"seconds": -1}}, "INVALID_ARGUMENT", "idle_timeout must be 0.."),
        ({"idle_timeout": {"seconds": 2**60}}, "INVALID_ARGUMENT", "idle_timeout must be 0.."),
    ],
)
def test_wrong_requests_get_the_right_code_and_one_line(stubs, code, fields, expected, line):
    name, said = code(lambda: stubs.create(**({"graph": "generate", "params": {"prompt": RED}} | fields)))
    assert (name, line in said) == (expected, True), said


def test_wrong_controls_are_rejected_and_the_stream_goes_on(stubs, session):
    stream = stubs.connect(session, ports=wish(500))
    for revision, control, line in (
        (1, {"prompt": " "}, "the prompt is empty; say what to show"),
        (2, {"parameters": {"sink": 2}}, "no stage takes control 'parameters'; there are pause, prompt"),
        (3, {"prompt": "x" * 70_000}, "at most 65536"),
    ):
        stream.control(revision, **control)
        last = stream.receipts(revision)[-1]
        assert (last.stage, line in last.message) == (pb.Receipt.STAGE_REJECTED, True), last.message
    assert stream.frames(1)[0].revision == 0
    stream.cancel()


def test_a_prompt_while_paused_waits_and_two_are_in_force_together(stubs, session):
    stream = stubs.connect(session, ports=wish(FIRST))
    stream.frames(FIRST)
    stream.control(1, pause=True)
    assert stream.receipts(1)[-1].stage == pb.Receipt.STAGE_APPLIED
    stream.control(2, prompt=BLUE)
    stream.control(3, prompt=RED)
    for revision in (2, 3):
        receipt = stream.until("receipt")
        assert (receipt.revision, receipt.stage) == (revision, pb.Receipt.STAGE_RECEIVED)
    stream.control(4, pause=False)
    stream.credit(3 * CHUNK)
    settled = [r for r in (stream.until("receipt") for _ in range(4)) if r.stage == pb.Receipt.STAGE_APPLIED]
    assert [r.revision for r in settled] == [4, 2, 3]
    assert settled[1].frame == settled[2].frame
    stream.cancel()


def test_a_closed_session_takes_neither_client_nor_control(stubs, session, code):
    stream = stubs.connect(session, ports=wish(FIRST))
    stream.frames(1)
    stubs.close(session.session_id)
    stream.control(1, prompt=BLUE)
    assert stream.until("event").reason == "closed by a client"
    stream.half_close()
    assert stream.rest() == []
    said = code(stubs.connect(session).rest)
    assert said == ("FAILED_PRECONDITION", f"session {session.session_id} is closed: closed by a client")


def test_a_job_renders_an_mp4(stubs, code, tmp_path):
    request = pb.SubmitJobRequest(graph="generate", seed=1, frames=FIRST + CHUNK)
    request.params.update({"prompt": RED})
    request.sinks["frames"] = (tmp_path / "film.mp4").as_uri()
    request.controls.add(at_frame=FIRST, control=pb.Control(revision=1, prompt=BLUE))
    job = stubs.jobs.Submit(request, timeout=DEADLINE_S)
    last = list(stubs.jobs.Watch(pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE_S))[-1]
    assert (last.state, last.frames_done, last.reason) == (pb.JOB_STATE_SUCCEEDED, FIRST + CHUNK, "")
    with av.open(str(tmp_path / "film.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == FIRST + CHUNK
    assert min(frame.std() for frame in frames) > 5
    request.controls.add(at_frame=FIRST, control=pb.Control(revision=2, parameters={"sink": 2}))
    said = code(lambda: stubs.jobs.Submit(request, timeout=DEADLINE_S))
    assert said == ("INVALID_ARGUMENT", "control 2: no stage takes 'parameters'")
