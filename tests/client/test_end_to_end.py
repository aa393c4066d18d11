"""The client and the command line against a real service (the synthetic model, whose frames say who they are)."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import riverrun
from riverrun.client.cli import app
from riverrun.client.commands.demo import PROMPTS, film
from riverrun.client.loop import LoopThread
from riverrun.client.proof import Account, Kill, undisturbed
from riverrun.client.types import Frame
from riverrun.models.synthetic import frame_number

av = pytest.importorskip("av")
CLI = [sys.executable, "-c", "from riverrun.client.cli import main; main()"]


class CuttingProxy:
    """A TCP proxy that, once armed, drops every connection when the service has sent `cut_after` bytes more on it."""

    def __init__(self, target: str, cut_after: int) -> None:
        self.loop = LoopThread("proxy")
        self._target, self._cut_after = target, cut_after
        self._left: int | None = None
        self._server = self.loop.run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @contextlib.contextmanager
    def armed(self):
        self._left = self._cut_after
        yield

    def stop(self):
        self.loop.run(_closed(self._server))
        self.loop.stop()

    async def _serve(self, reader, writer):
        host, port = self._target.split(":")
        service_reader, service_writer = await asyncio.open_connection(host, int(port))
        up = asyncio.create_task(self._pump(reader, service_writer))
        down = asyncio.create_task(self._pump(service_reader, writer, limited=True))
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        for task, end in ((up, writer), (down, service_writer)):
            task.cancel()
            end.transport.abort()

    async def _pump(self, reader, writer, limited=False):
        while data := await reader.read(1024):
            if limited and self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    return
            writer.write(data)
            await writer.drain()


async def _closed(server):
    server.close()


@pytest.fixture(scope="module")
def rr(ray_cluster):
    with riverrun.serve(overrides=["models=[synthetic]", "port=0", "drain_s=1"]) as client:
        yield client


def cli(rr, *args):
    return CliRunner().invoke(app, [*args, "--address", rr.address])


def test_every_frame_comes_once_with_its_own_pixels(rr):
    with rr.stream("synthetic", prompt="a", frames=64) as stream:
        frames = list(stream)
    assert [frame.number for frame in frames] == list(range(64))
    assert [frame_number(frame.array) for frame in frames] == list(range(64))
    assert [frame.seconds for frame in frames] == [n / 16 for n in range(64)]
    assert "64" in stream.ended_reason


@pytest.mark.parametrize("buffer", [1, 3, 8])
def test_a_client_that_lags_behind_the_end_still_gets_the_last_frame(rr, buffer):
    with rr.stream("synthetic", prompt="a", frames=30, buffer=buffer, chunk_frames=8) as stream:
        first = next(stream)
        stream.ping()  # whatever the service could do meanwhile, it has
        assert [first.number, *(frame.number for frame in stream)] == list(range(30))


@pytest.mark.parametrize("cut_after", [700, 9_000, 60_000, 150_000])
def test_a_connection_cut_at_any_byte_loses_and_repeats_nothing(rr, cut_after):
    proxy = CuttingProxy(rr.address, cut_after)
    with rr.stream("synthetic", prompt="a", frames=96) as whole:
        pixels = [frame.array for frame in whole]
    with riverrun.Client(proxy.address, loop=proxy.loop) as through, proxy.armed():
        stream = through.stream("synthetic", prompt="a", frames=96)
        change = stream.prompt("a")
        frames = list(stream)
        assert change.applied(timeout=30).frame % 4 == 0
    assert stream.reconnects >= 1
    assert [frame.number for frame in frames] == list(range(96))
    assert all((one == frame.array).all() for one, frame in zip(pixels, frames, strict=True))
    proxy.stop()


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_codecs(rr, codec):
    raw = next(rr.stream("synthetic", prompt="a", frames=4)).array
    coded = next(rr.stream("synthetic", prompt="a", frames=4, codec=codec)).array
    assert np.abs(raw.astype(int) - coded)[1:, 1:].max() <= (0 if codec == "png" else 24)


def test_a_large_frame_comes_in_parts(rr):
    frame = next(rr.stream("synthetic", prompt="a", frames=4, height=1080, width=1920))
    assert frame.array.shape == (1080, 1920, 3)


def test_a_prompt_switch_has_its_receipts_and_shows_where_it_says(rr):
    with rr.stream("synthetic", prompt="a", frames=96) as stream:
        frames = [next(stream) for _ in range(8)]
        change = stream.prompt("b")
        change.received(timeout=30)
        frames += list(stream)
        receipt = change.applied(timeout=30)
    assert [frame.revision for frame in frames] == [int(frame.number >= receipt.frame) for frame in frames]
    assert receipt.frame == receipt.chunk * 4


def test_a_refused_control_and_a_live_parameter(rr):
    with rr.stream("synthetic", prompt="a", frames=96) as stream:
        bad, good = stream.prompt(""), stream.set({"step_ms": 1.0})
        assert len(list(stream)) == 96
        with pytest.raises(riverrun.Rejected, match="prompt"):
            bad.applied(timeout=30)
        assert good.applied(timeout=30).frame < 96


def test_pause_and_resume(rr):
    with rr.stream("synthetic", prompt="a", frames=40) as stream:
        stream.pause().received(timeout=30)
        stream.resume().received(timeout=30)
        assert len(list(stream)) == 40


def test_another_client_goes_on_with_the_token_and_the_first_is_told(rr):
    with rr.stream("synthetic", prompt="a", frames=400) as stream:
        next(stream)
        again = rr.attach(stream.session_id, stream.session.resume_token)
        assert next(again).number >= 0
        with pytest.raises(riverrun.Replaced):
            list(stream)
        assert [frame.number for frame in again][-1] == 399


def test_a_wrong_token_is_refused(rr):
    with rr.stream("synthetic", prompt="a") as stream, pytest.raises(riverrun.Error) as caught:
        next(rr.attach(stream.session_id, "wrong"))
    assert caught.value.code in ("PERMISSION_DENIED", "UNAUTHENTICATED")


@pytest.mark.parametrize(
    ("graph", "options", "kind", "says"),
    [
        ("nope", {}, riverrun.NotFound, "nope"),
        ("synthetic", {"hight": 64}, riverrun.BadRequest, "unknown parameter 'hight'; there are .*height"),
        ("synthetic", {"height": -1}, riverrun.BadRequest, "height must be"),
        ("synthetic", {"prompt": " "}, riverrun.BadRequest, "prompt must be"),
        ("synthetic", {"buffer": 100000}, riverrun.BadRequest, "frames may be outstanding"),
    ],
)
def test_what_users_mistype(rr, graph, options, kind, says):
    with pytest.raises(kind, match=says) as caught:
        next(rr.stream(graph, **{"prompt": "a", "frames": 8, **options}))
    assert "\n" not in str(caught.value)


def test_a_model_that_fails_ends_the_stream_with_one_line(rr):
    with pytest.raises(riverrun.Error) as caught:
        list(rr.stream("synthetic", prompt="a", frames=64, fail_at=3))
    assert "told to fail at step 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_is_written_and_read_back(rr, tmp_path):
    job = rr.submit("synthetic", tmp_path / "film.mp4", prompt="a", frames=48, at=[(24, "b")])
    states = list(rr.watch_job(job.job_id))
    assert states[-1].state == 2, states[-1].reason
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert len(list(film.decode(video=0))) == 48


def test_run_from_the_command_line(rr, tmp_path):
    out = ("--out", str(tmp_path / "a.mp4"), "--sheet", str(tmp_path / "a.png"))
    done = cli(rr, "run", "synthetic", "--prompt", "a", "--at", "1:b", "--seconds", "4", *out, "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["frames"] == 64
    assert summary["switches"][0]["applied_frame"] >= 16
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert len(list(film.decode(video=0))) == 64
    with Image.open(tmp_path / "a.png") as page:
        assert page.size[0] > 1000


def test_the_other_commands(rr):
    with rr.stream("synthetic", prompt="a") as stream:
        next(stream)
        assert stream.session_id in cli(rr, "sessions", "ls", "--json").stdout
        assert "synthetic" in cli(rr, "sessions", "get", stream.session_id).stdout
        assert cli(rr, "sessions", "close", stream.session_id).exit_code == 0
        list(stream)
        with pytest.raises(riverrun.BadRequest, match="has ended"):
            stream.prompt("b")
    assert "synthetic" in cli(rr, "models", "ls").stdout
    shown = json.loads(cli(rr, "graphs", "show", "synthetic", "--json").stdout)
    assert shown["outputs"][0]["kind"] == "frames"
    assert cli(rr, "jobs", "ls").exit_code == 0
    assert rr.status().sessions >= 0


def test_doctor_finds_this_machine_well():
    done = CliRunner().invoke(app, ["doctor", "models=[synthetic]", "service.port=0", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == 0, done.stdout
    assert findings["store"]["state"] == "ok"
    assert findings["exposure"]["state"] == "ok"
    opened = CliRunner().invoke(app, ["doctor", "models=[nope]", "host=0.0.0.0", "port=0", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(opened.stdout)}
    assert opened.exit_code == 1
    assert findings["model nope"]["state"] == "missing"
    assert "without authentication" in findings["exposure"]["found"]
    assert (findings["jobs_dir"]["state"], findings["jobs_dir"]["advice"]) == ("missing", "set jobs_dir=FOLDER")


def test_serve_says_where_it_is_and_stops_on_sigterm():
    command = [*CLI, "serve", "models=[synthetic]", "port=0", "drain_s=0.5", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.readline()
    with riverrun.connect(json.loads(said)["address"]) as rr:
        assert rr.reachable()
        stream = rr.stream("synthetic", prompt="a")
        next(stream)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.returncode == 0
        assert not rr.reachable()


def test_the_demo_makes_its_files(tmp_path):
    command = [*CLI, "demo", "--seconds", "3", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ})
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 48
    assert summary["stages"][0]["steps"] > 0
    assert summary["switches"][0]["sent_after_frame"] == 24
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    cloud = {"demo/points.ply", "demo/scene.glb", "demo/trajectory.txt"}
    assert made == {"chain.png", "contact_sheet.png", "demo.json", "demo.mp4", "demo.sharp.mp4", *cloud}
    assert set(summary["files"]) == {str(tmp_path / "out" / name) for name in made}
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["timings"]["fps"] > 0
    survival = summary["survival"]
    assert (survival["killed_after_frame"], survival["lost"], survival["duplicated"]) == (36, 0, 0)
    assert survival["equal"]
    assert set(survival["sha256"]) == {"frames", "sharp"}
    assert survival["next_frame"] > 36


def test_a_film_whose_worker_is_killed_is_the_film_it_would_have_been(tmp_path):
    """The demo's own code, in a short form. Steps take a while, so that some are left to make when it is killed."""
    with riverrun.serve(overrides=["port=0", "models=[synthetic]", "checkpoints.chunks=3"]) as rr:
        summary = film(rr, tmp_path, 6.0, 3, kills=True, graph="synthetic", step_ms=50, height=32, width=32)
        sizes = {"step_ms": 50, "height": 32, "width": 32}
        again = undisturbed(rr, "synthetic", 96, [], ports=["frames"], prompt=PROMPTS[0], seed=4, **sizes)
    survival = summary["survival"]
    assert summary["frames"] == 96
    assert (survival["killed_after_frame"], survival["lost"], survival["duplicated"]) == (72, 0, 0)
    assert survival["sha256"] == survival["sha256_undisturbed"] != again
    assert survival["next_frame_after_s"] > 0


def test_an_account_counts_what_is_missing_and_what_came_twice():
    times = iter([0.0, 1.0, 2.0, 9.0, 10.0])
    account = Account(["frames", "depth"], clock=lambda: next(times))
    frames = [Frame(np.full((2, 2, 3), n, np.uint8), "frames", n, n / 16, 0, 0) for n in (0, 1, 3, 3)]
    account.add(frames[0])
    account.kill = Kill("a", 1, 1.5, frames[0])
    for frame in frames[1:]:
        account.add(frame)
    account.add(Frame(np.zeros((2, 2), np.float32), "depth", 0, 0.0, 0, 0))
    assert (account.lost(5), account.duplicated) == (2 + 4, 1)
    assert (account.ended_by, account.silence_s, account.back_s) == (3, 7.0, 7.5)
    assert account.sha256("frames") == hashlib.sha256(b"".join(frame.array.tobytes() for frame in frames)).hexdigest()
