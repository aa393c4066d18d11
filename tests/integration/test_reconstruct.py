"""`reconstruct` and `world` through the service: frames in, geometry out, one clock through all stages, files to take.

How good the geometry is, is measured elsewhere (`bench/geometry`).
"""

import math
import re
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest

from riverrun.client.errors import Error
from riverrun.client.geometry.views import PORTS, Views
from riverrun.protos import riverrun_pb2 as pb
from riverrun.tests.client.test_sources import film

from .bad_input import parts_of, refused
from .conftest import DEADLINE_S, Stubs, client_of, serving

SIDE = 112  # of the picture in the shipped network
MODELS = ("longlive-world", "world-text", "infvsr-world", "infinitevggt-world")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    blobs = f"checkpoints.uri={tmp_path_factory.mktemp('blobs')}"
    with serving(f"models=[{','.join(MODELS)}]", blobs) as running:
        yield running


@pytest.fixture(scope="module")
def rr(service):
    with client_of(service, *(name for name in MODELS if name != "world-text")) as client:
        yield client


def video(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    rows, columns = np.mgrid[:height, :width]
    return [
        np.stack([(columns + 3 * t) % 256, rows * 5 % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
        for t in range(count)
    ]


def reconstructed(rr, frames, **params) -> list:
    """All frames of all ports."""
    with rr.stream("reconstruct", **params) as stream:

        def feed():
            try:
                for number, frame in enumerate(frames):
                    stream.send(frame, number / 10)
                stream.finish()
            except Error:
                return  # whoever takes frames is told

        feeding = threading.Thread(target=feed)
        feeding.start()
        try:
            return list(stream)
        finally:
            feeding.join()


def views_of(made) -> list:
    views = Views()
    return [view for frame in made if (view := views.add(frame))]


@pytest.mark.parametrize("count", [1, 7])
def test_each_frame_s_geometry_comes_out_whole(rr, count):
    made = reconstructed(rr, video(count))
    views = views_of(made)
    assert [view.number for view in views] == list(range(count))
    assert [view.seconds for view in views] == pytest.approx([n / 10 for n in range(count)])
    assert len(made) == count * len(PORTS)
    for view in views:
        height = 84  # 48 x 64 becomes as wide as the network, in whole patches
        assert view.image.shape == (height, SIDE, 3)
        assert view.depth.shape == view.confidence.shape == (height, SIDE)
        assert view.points.shape == (height, SIDE, 3)
        assert (view.confidence > 1).all()
        assert math.isclose(np.linalg.det(view.camera.world_to_camera[:3, :3]), 1, abs_tol=1e-5)


@pytest.mark.parametrize("value", [0, 255, 117])
def test_a_video_without_anything_in_it_gives_finite_numbers(rr, value):
    frames = [np.full((48, 64, 3), value, np.uint8)] * 3
    for frame in reconstructed(rr, frames, memory_frames=6):
        assert np.isfinite(frame.array).all()


def test_frames_may_change_their_size_where_they_look_alike_inside(rr):
    assert len(views_of(reconstructed(rr, video(2) + video(2, 96, 128)))) == 4


@pytest.mark.parametrize(
    ("frames", "params", "message"),
    [
        (video(2) + video(1, 64, 64), {}, "48 x 64|64 x 64 are 112 x 112 in the network"),
        (video(3), {"memory": "full", "memory_frames": 2}, "'full' holds 2 frames within its bound"),
        (video(1), {"memory_frames": 1}, "total_budget must be at least"),
        (video(1), {"memory": "all"}, "memory must be one of diverse_keys, sink_window, full"),
        (video(1), {"total_budget": 5000, "memory_mb": 3}, "one bound"),
        (video(1, 2, 100), {}, "too narrow"),
    ],
)
def test_what_can_not_be_done_is_said(service, rr, frames, params, message):
    with grpc.insecure_channel(service.service.address) as channel:
        _, line = refused(lambda: fed(Stubs(channel), frames, params))
    assert re.search(message, line)


def fed(stubs, frames, params) -> None:
    """By a call that nobody writes to any more when it ends: else grpc.aio may lose how it did."""
    session = stubs.create("reconstruct", params=params)
    try:
        stream = stubs.connect(session, ports=[pb.PortWish(port="camera", credits=100)])
        for number, frame in enumerate(frames):
            for part in parts_of(frame, number, port="frames"):
                stream.say(frame=part)
        stream.rest()
    finally:
        stubs.close(session.session_id)


def test_world_is_one_stream_with_one_clock(rr):
    with rr.stream("world", prompt="a large red ball on grass by day, the camera orbits left", frames=24) as stream:
        made = list(stream)
    times = {}
    for frame in made:
        times.setdefault(frame.port, []).append((frame.number, round(frame.seconds, 6)))
    assert set(times) == {"frames", "sharp", *PORTS}
    generated = times["frames"]
    assert len(generated) == 24
    for port in times:
        assert times[port] == generated[: len(times[port])], port
    shapes = {frame.port: frame.array.shape for frame in made}
    assert (shapes["frames"], shapes["sharp"], shapes["image"]) == ((64, 64, 3), (256, 256, 3), (SIDE, SIDE, 3))
    sharp = {f.number: f.array for f in made if f.port == "sharp"}
    images = {f.number: f.array for f in made if f.port == "image"}
    assert images
    for number, image in images.items():  # the network saw the sharpened frame, made smaller
        blocks = sharp[number][:252, :252].astype(float).mean(axis=(0, 1))
        assert np.abs(blocks - image.astype(float).mean(axis=(0, 1))).max() < 6


def test_run_writes_geometry_in_the_formats_asked_for(service, tmp_path):
    clip = film(tmp_path / "clip.mp4", list(range(0, 6000, 1000)))
    words = ["run", "reconstruct", "--in", clip, "--out", tmp_path / "room", "--formats", "ply,tum,npz,colmap"]
    line = [sys.executable, "-c", "from riverrun.client.cli import main; main()", *map(str, words)]
    address = service.service.address
    done = subprocess.run([*line, "--address", address], capture_output=True, text=True, timeout=4 * DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "room").iterdir()} == {"points.ply", "trajectory.txt", "frames", "colmap"}
    assert len(np.loadtxt(tmp_path / "room" / "trajectory.txt")) == 6
    assert len(list((tmp_path / "room" / "colmap" / "images").iterdir())) == 6
    wrong = subprocess.run([*line[:-1], "obj"], capture_output=True, text=True, timeout=4 * DEADLINE_S)
    assert wrong.returncode == 2
    assert "knows ply, glb, colmap, tum, npz, rrd, not obj" in " ".join(wrong.stderr.split())
