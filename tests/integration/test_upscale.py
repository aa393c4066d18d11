"""`upscale` with the weights that are shipped: frames go in while frames come out, one for one, whatever they are.

What the pictures look like is measured elsewhere (`bench/vsr`). A neighbour streams all the while, and must not notice.
"""

import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction

import av
import grpc
import numpy as np
import pytest
from PIL import Image

from riverrun.client.errors import BadRequest, Error
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Header, Joiner, encode, split
from riverrun.tests.client.test_sources import UNEVEN, film

from .conftest import DEADLINE_S, Stubs, client_of, eventually, serving

HEIGHT, WIDTH = 12, 16
SIZE = {"height": HEIGHT, "width": WIDTH}
TICKS = 3600


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    blobs = f"checkpoints.uri={tmp_path_factory.mktemp('blobs')}"
    with serving("models=[synthetic,infvsr-world]", "checkpoints.chunks=4", blobs) as running:
        yield running


@pytest.fixture(scope="module")
def rr(service):
    with client_of(service, "infvsr-world") as client:
        yield client


@pytest.fixture(scope="module")
def stubs(service, rr):
    with grpc.insecure_channel(service.service.address) as channel:
        yield Stubs(channel)


@pytest.fixture
def neighbour(rr):
    """A stream beside the one that is tested: it is there before and after, and misses nothing."""
    with rr.stream("synthetic", seed=3, chunk_frames=2) as stream:
        before = next(stream).number
        yield stream
        after = [next(stream).number for _ in range(4)]
    assert (before, after) == (0, [1, 2, 3, 4])


def video(count: int, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[np.ndarray]:
    """A picture that drifts: no cut in it."""
    rng = np.random.default_rng(seed)
    base, drift = rng.integers(60, 180, (*size, 3)), rng.normal(0, 0.4, (*size, 3))
    return [(base + 20 * np.sin(drift * i / 3)).clip(0, 255).astype(np.uint8) for i in range(count)]


def with_a_cut() -> list[np.ndarray]:
    return [frame // 4 for frame in video(20)] + [255 - frame // 4 for frame in video(25, seed=3)]


def fed(stream, frames, times=None, finish=True) -> threading.Thread:
    """Sends in a thread, as who takes frames is another one."""

    def run():
        try:
            for number, frame in enumerate(frames):
                stream.send(frame, times[number] if times else number / 25)
            if finish:
                stream.finish()
        except Error:
            return  # whoever takes frames is told

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def upscaled(rr, frames, times=None, **params):
    with rr.stream("upscale", **(SIZE | params)) as stream:
        feeding = fed(stream, frames, times)
        made = list(stream)
        feeding.join()
    return made


def equal(made, others) -> bool:
    return len(made) == len(others) and all(np.array_equal(a.array, b.array) for a, b in zip(made, others, strict=True))


@pytest.fixture(scope="module")
def whole(rr):
    """`with_a_cut`, upscaled without disturbance."""
    return upscaled(rr, with_a_cut())


@pytest.mark.parametrize("find_scenes", [True, False])
@pytest.mark.parametrize("count", [1, 10, 31])
def test_a_frame_comes_out_for_every_frame_and_the_rest_at_the_end(rr, count, find_scenes):
    made = upscaled(rr, video(count), find_scenes=find_scenes)
    assert [frame.number for frame in made] == list(range(count))
    assert [frame.seconds for frame in made] == pytest.approx([n / 25 for n in range(count)])
    assert {frame.array.shape for frame in made} == {(4 * HEIGHT, 4 * WIDTH, 3)}


def test_uneven_times_are_kept(rr):
    times = [float(t) for t in np.cumsum(np.random.default_rng(1).integers(1, 9, 25)) / 100]
    made = upscaled(rr, video(25), times)
    assert [frame.seconds for frame in made] == pytest.approx(times, abs=1e-5)


def test_frames_come_out_while_frames_go_in(rr):
    with rr.stream("upscale", **SIZE, find_scenes=False) as stream:
        fed(stream, video(9), finish=False).join()
        assert [next(stream).number for _ in range(9)] == list(range(9))  # before anything was finished
        stream.finish()
        assert list(stream) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (7, 13)])
def test_odd_sizes_are_padded_inside_and_cropped_at_the_end(rr, size):
    made = upscaled(rr, video(10, size=size), height=size[0], width=size[1])
    assert [frame.array.shape for frame in made] == [(4 * size[0], 4 * size[1], 3)] * 10


def test_another_size_is_another_scene(rr):
    small = (6, 10)
    made = upscaled(rr, video(14) + video(11, seed=4, size=small))
    assert [frame.array.shape[:2] for frame in made] == [(4 * HEIGHT, 4 * WIDTH)] * 14 + [(24, 40)] * 11
    assert equal(made[14:], upscaled(rr, video(11, seed=4, size=small)))


# ---- how the frames arrive ----


def sent_raw(stubs, frames, cut) -> list[np.ndarray]:
    """Over a connection written by hand. cut: makes messages of (frame, header)."""
    session = stubs.create(graph="upscale", params=SIZE)
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=len(frames))])
    for number, frame in enumerate(frames):
        header = Header("frames", number, chunk=0, index_in_chunk=0, pts=number * TICKS, epoch=0, revision=0)
        for part in cut(frame, header):
            stream.say(frame=part)
    stream.say(finish=pb.Finish())
    stream.half_close()
    joiner = Joiner()
    found = [joiner.add(m.frame) for m in stream.rest() if m.WhichOneof("message") == "frame"]
    return [joined.array for joined in found]


def by(size):
    def cut(frame, header):
        encoded = encode(frame, header)
        data = bytes(encoded.data)
        parts = -(-len(data) // size)
        for part in range(parts):
            message = pb.FramePart()
            message.CopyFrom(encoded.about)
            message.part, message.parts, message.data = part, parts, data[part * size : (part + 1) * size]
            yield message

    return cut


def test_how_the_input_is_cut_into_messages_changes_no_bit(stubs, whole):
    frames = with_a_cut()
    for cut in (by(7), by(400), lambda frame, header: split(frame, header, pb.CODEC_PNG)):
        made = sent_raw(stubs, frames, cut)
        assert len(made) == len(frames)
        assert all(np.array_equal(a, b.array) for a, b in zip(made, whole, strict=True))


# ---- faults ----


def test_a_worker_that_is_killed_costs_no_frame_and_changes_none(rr, stubs, whole):
    """Its checkpoints, the frames that lie on the edge, and the cuts that were decided bring it back."""
    with rr.stream("upscale", **SIZE) as stream:
        feeding = fed(stream, with_a_cut())
        made = [next(stream) for _ in range(12)]
        (victim,) = [a.pid for a in stubs.status().actors if a.model == "infvsr-world"]
        os.kill(victim, signal.SIGKILL)
        made += list(stream)
        feeding.join()
    assert equal(made, whole)


def test_a_lost_connection_costs_no_frame_on_either_side(rr, stubs, whole):
    """The session is taken over by another connection of its own client; what was not acked goes in again."""
    with rr.stream("upscale", **SIZE) as stream:
        feeding = fed(stream, with_a_cut())
        made = [next(stream) for _ in range(5)]
        lost = stream._stream._link
        stream._loop.run(_broken(lost))
        made += list(stream)
        feeding.join()
        assert stream.reconnects >= 1
    assert equal(made, whole)


async def _broken(link):
    """As a gateway that is gone looks to it."""
    from riverrun.client.link import Lost

    async def lost():
        raise Lost("the wire was cut")

    link._read = lost
    link._call.cancel()


# ---- films, by the command ----


def command(address, *words) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", "from riverrun.client.cli import main; main()", "run", "upscale", *map(str, words)]
    return subprocess.run([*line, "--address", address], capture_output=True, text=True, timeout=4 * DEADLINE_S)


def times_of(path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def test_a_film_goes_in_and_a_film_like_it_comes_out(service, tmp_path):
    path = film(tmp_path / "in.mp4", UNEVEN, rotation=90, sound=True)
    done = command(service.service.address, "--in", path, "--out", tmp_path / "out.mp4")
    assert (done.returncode, "8 frames of upscale" in done.stdout) == (0, True), done.stderr
    assert times_of(tmp_path / "out.mp4") == times_of(path)
    with av.open(str(tmp_path / "out.mp4")) as container:
        first = next(container.decode(video=0))
        assert (first.height, first.width, first.rotation) == (96, 128, 90)
        assert container.streams.audio


def test_a_damaged_folder_is_upscaled_to_where_it_breaks(service, tmp_path):
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(video(5)):
        Image.fromarray(frame).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "3.png").write_bytes(b"no picture")
    done = command(service.service.address, "--in", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "frame 3 (3.png) can't be read" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{n:06d}.png" for n in range(3)]


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((HEIGHT, WIDTH, 3), np.float32), r"takes uint8 \[H, W, 3\] a frame, got float32 \[12, 16, 3\]"),
        (np.full((HEIGHT, WIDTH, 3), np.nan, np.float32), r"takes uint8 \[H, W, 3\] a frame, got float32"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), r"takes uint8 \[H, W, 3\] a frame, got uint8 \[12, 16\]"),
        (np.zeros((HEIGHT, WIDTH, 4), np.uint8), r"takes uint8 \[H, W, 3\] a frame, got uint8 \[12, 16, 4\]"),
        (np.zeros((0, WIDTH, 3), np.uint8), r"got uint8 \[0, 16, 3\]"),
        (np.zeros((64, 64, 3), np.uint8), r"frames as large as 12 x 16, got 64 x 64"),
    ],
)
def test_a_frame_that_is_wrong_is_named(rr, neighbour, wrong, message):
    frames = [*video(3), wrong, *video(4)]
    with rr.stream("upscale", **SIZE) as stream:
        feeding = fed(stream, frames)
        with pytest.raises(BadRequest, match=message) as caught:
            list(stream)
        feeding.join()
    assert "frame 3" in str(caught.value)


def test_frames_of_8k_are_refused_before_any_is_sent(rr, neighbour):
    with pytest.raises(BadRequest, match=r"at most \d+ pixels a frame here, got 4320 x 7680"):
        rr.stream("upscale", height=4320, width=7680)


def test_an_input_without_frames_ends_without_frames(rr, neighbour):
    assert upscaled(rr, []) == []


def test_a_graph_without_inputs_says_so(rr, neighbour):
    with rr.stream("synthetic", seed=1) as stream:
        stream.send(video(1)[0], 0.0)
        with pytest.raises(BadRequest, match="no input 'frames'; there are none"):
            for _ in stream:
                pass


def test_what_is_left_behind(rr, stubs):
    """Nothing: each of the sessions above is gone with its memory."""
    eventually(lambda: [(a.sessions, a.held_bytes) for a in stubs.status().actors if a.up][-1] == (0, 0))
