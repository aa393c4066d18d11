"""Jobs through the real port: rendered to MP4 and PNG with no client attached, controls exactly at their frame."""

import av
import numpy as np
import pytest
from PIL import Image

from riverrun.models.synthetic import colour, source_frame
from riverrun.protos import riverrun_pb2 as pb

from .conftest import DEADLINE_S

SEED = 3


def submit(stubs, **fields) -> pb.Job:
    params = fields.pop("params", {})
    fields.setdefault("graph", "synthetic")
    request = pb.SubmitJobRequest(seed=SEED, **fields)
    request.params.update({"prompt": "sea", "height": 64, "width": 64} | params)
    return stubs.jobs.Submit(request, timeout=DEADLINE_S)


def watch(stubs, job: pb.Job) -> list[pb.Job]:
    return list(stubs.jobs.Watch(pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE_S))


def test_a_job_writes_an_mp4_and_switches_the_prompt_at_its_frame(stubs, tmp_path):
    path = tmp_path / "new folder" / "sea.mp4"
    controls = [pb.TimedControl(at_frame=9, control=pb.Control(revision=1, prompt="sand"))]
    job = submit(stubs, frames=30, controls=controls, sinks={"frames": path.as_uri()})
    seen = watch(stubs, job)
    assert (seen[-1].state, seen[-1].reason) == (pb.JOB_STATE_SUCCEEDED, "")
    done = [each.frames_done for each in seen]
    assert done == sorted(done)
    assert (seen[-1].frames_done, seen[-1].frames_total) == (30, 30)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 16)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 30
    for number, pixels in enumerate(frames):
        wanted = colour(SEED, "sea" if number < 12 else "sand", number // 4)  # 12 is the first chunk from 9 on
        assert np.abs(pixels[32, 32].astype(int) - wanted).max() <= 12, number
    assert [p.name for p in path.parent.iterdir()] == ["sea.mp4"]


def test_a_job_writes_pngs(stubs, tmp_path):
    job = submit(stubs, frames=6, sinks={"frames": tmp_path.as_uri() + "/"})
    assert watch(stubs, job)[-1].state == pb.JOB_STATE_SUCCEEDED
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == [f"frame_{n:06d}.png" for n in range(6)]
    for number, file in enumerate(files):
        assert (np.asarray(Image.open(file)) == source_frame(SEED, "sea", number // 4, number, 64, 64)).all()


def test_jobs_are_found_listed_and_repeated(stubs, tmp_path):
    sinks = {"frames": (tmp_path / "a.mp4").as_uri()}
    job = submit(stubs, frames=4, client_id="one", sinks=sinks)
    assert submit(stubs, frames=4, client_id="one", sinks=sinks).job_id == job.job_id
    assert watch(stubs, job)[-1].state == pb.JOB_STATE_SUCCEEDED
    found = stubs.jobs.Get(pb.GetJobRequest(job_id=job.job_id), timeout=10)
    assert (found.state, found.graph, dict(found.sinks)) == (pb.JOB_STATE_SUCCEEDED, "synthetic", sinks)
    assert job.job_id in [j.job_id for j in stubs.jobs.List(pb.ListJobsRequest(), timeout=10).jobs]
    assert stubs.get(job.session_id).state == pb.SESSION_STATE_CLOSED


def test_a_cancelled_job_leaves_no_file(stubs, tmp_path):
    job = submit(stubs, frames=100_000, sinks={"frames": (tmp_path / "a.mp4").as_uri()})
    seen = stubs.jobs.Watch(pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE_S)
    while next(seen).frames_done < 8:
        pass
    cancelled = stubs.jobs.Cancel(pb.CancelJobRequest(job_id=job.job_id), timeout=DEADLINE_S)
    assert (cancelled.state, cancelled.reason) == (pb.JOB_STATE_CANCELLED, "cancelled")
    assert list(seen)[-1].state == pb.JOB_STATE_CANCELLED
    assert list(tmp_path.iterdir()) == []
    assert stubs.get(job.session_id).state == pb.SESSION_STATE_CLOSED


def test_a_failing_model_fails_its_job(stubs, tmp_path):
    job = submit(stubs, frames=40, params={"fail_at": 3}, sinks={"frames": (tmp_path / "a.mp4").as_uri()})
    last = watch(stubs, job)[-1]
    assert last.state == pb.JOB_STATE_FAILED
    assert "told to fail at step 3" in last.reason
    assert list(tmp_path.iterdir()) == []


PROMPT = pb.TimedControl(at_frame=1, control=pb.Control(revision=1, prompt="sand"))


@pytest.mark.parametrize(
    ("fields", "expected", "words"),
    [
        ({"frames": 0}, "INVALID_ARGUMENT", "frames must be 1..1000000, got 0"),
        ({"sinks": {}}, "INVALID_ARGUMENT", "sinks is empty"),
        ({"sinks": {"depth": "file:///x/a.mp4"}}, "INVALID_ARGUMENT", "no output 'depth'; it has frames"),
        ({"sinks": {"frames": "s3://bucket/a.mp4"}}, "INVALID_ARGUMENT", "must be file:///path/name.mp4"),
        ({"sinks": {"frames": "file:///x/a.gif"}}, "INVALID_ARGUMENT", "must end in .mp4, or in /"),
        ({"sinks": {"frames": "file:///proc/nope/a.mp4"}}, "INVALID_ARGUMENT", "No such file or directory"),
        ({"params": {"height": 33}}, "INVALID_ARGUMENT", "H.264 needs even height and width, got 33 x 64"),
        ({"graph": "nope"}, "NOT_FOUND", "there is no graph 'nope'"),
        ({"params": {"promt": "x"}}, "INVALID_ARGUMENT", "unknown parameter 'promt'"),
        ({"controls": [PROMPT, PROMPT]}, "INVALID_ARGUMENT", "must rise, got [1, 1]"),
        (
            {"controls": [pb.TimedControl(control=pb.Control(revision=1, pause=True))]},
            "INVALID_ARGUMENT",
            "takes no pause",
        ),
    ],
)
def test_wrong_jobs_get_the_right_code_and_one_line(stubs, code, tmp_path, fields, expected, words):
    right = {"frames": 4, "sinks": {"frames": (tmp_path / "a.mp4").as_uri()}}
    name, line = code(lambda: submit(stubs, **(right | fields)))
    assert name == expected
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_jobs_are_not_found(stubs, code):
    for call, request in ((stubs.jobs.Get, pb.GetJobRequest), (stubs.jobs.Cancel, pb.CancelJobRequest)):
        assert code(lambda call=call, request=request: call(request(job_id="x"), timeout=10))[0] == "NOT_FOUND"
    assert code(lambda: list(stubs.jobs.Watch(pb.GetJobRequest(job_id="x"), timeout=10)))[0] == "NOT_FOUND"
