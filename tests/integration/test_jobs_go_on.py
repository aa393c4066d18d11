"""A job's gateway dies in mid-job, or leaves: another one goes on, and the files are those of an undisturbed job."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import ray

from riverrun.protos import riverrun_pb2 as pb

from .conftest import DEADLINE_S, Running, Stubs, eventually
from .pair import started, two_gateways

GRAPHS = {"one": "stages: {a: {model: pair}}\noutputs: {frames: a.frames}\n"}
FRAMES = 240
CONTROLS = [
    pb.TimedControl(at_frame=at, control=pb.Control(revision=n, prompt=f"p{n}")) for n, at in ((1, 30), (2, 180))
]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory, ray_cluster):
    with two_gateways(tmp_path_factory.mktemp("jobs"), GRAPHS) as pair:
        yield pair


def submit(stubs: Stubs, sink: str, step_ms: float = 0.0) -> pb.Job:
    request = pb.SubmitJobRequest(graph="one", seed=3, frames=FRAMES, controls=CONTROLS, sinks={"frames": sink})
    request.params.update({"prompt": "sea", "height": 64, "width": 64, "step_ms": step_ms})
    return stubs.jobs.Submit(request, timeout=DEADLINE_S)


def get(stubs: Stubs, job: pb.Job) -> pb.Job:
    return stubs.jobs.Get(pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE_S)


def ended(stubs: Stubs, job: pb.Job) -> pb.Job:
    return list(stubs.jobs.Watch(pb.GetJobRequest(job_id=job.job_id), timeout=4 * DEADLINE_S))[-1]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at_work(stubs: Stubs, job: pb.Job) -> None:
    """Returns when some parts of its files are written, and others are not."""
    for seen in stubs.jobs.Watch(pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE_S):
        assert seen.state == pb.JOB_STATE_RUNNING
        if seen.frames_done >= 65:
            return


def freeze(running: Running) -> None:
    """As SIGSTOP: it does nothing any more, not even let go of anything."""
    running._loop.call_soon_threadsafe(running._loop.stop)
    running._thread.join(DEADLINE_S)


def wake(running: Running) -> None:
    running._thread = threading.Thread(target=running._loop.run_forever, daemon=True)
    running._thread.start()


def test_a_gateway_stops_dead_and_the_other_goes_on(gateways, tmp_path):
    (_, stays), (running, dies) = gateways
    for name in ("wanted", "got"):
        (tmp_path / name).mkdir()
    sinks = ("film.mp4", "pictures/")
    for sink in sinks:
        assert ended(stays, submit(stays, f"{(tmp_path / 'wanted').as_uri()}/{sink}")).state == pb.JOB_STATE_SUCCEEDED
    jobs = [submit(dies, f"{(tmp_path / 'got').as_uri()}/{sink}", step_ms=60) for sink in sinks]
    for job in jobs:
        at_work(dies, job)
    freeze(running)
    try:
        last = [ended(stays, job) for job in jobs]
        assert [(job.state, job.reason) for job in last] == [(pb.JOB_STATE_SUCCEEDED, "")] * 2
        assert [job.session_id for job in last] == [job.session_id for job in jobs]  # not begun again
        assert len(files(tmp_path / "wanted")) == 1 + FRAMES
        assert files(tmp_path / "got") == files(tmp_path / "wanted")
    finally:
        wake(running)
    for job in jobs:  # it finds that they are another's, and harms nothing
        eventually(lambda job=job: get(dies, job).state == pb.JOB_STATE_SUCCEEDED)
    eventually(lambda: not running.service._gateway._jobs._running)
    assert files(tmp_path / "got") == files(tmp_path / "wanted")
    running.call(running.service.check())


def test_a_gateway_leaves_and_hands_its_job_over(gateways, tmp_path):
    (running, stays), _ = gateways
    for name in ("wanted", "got"):
        (tmp_path / name).mkdir()
    assert ended(stays, submit(stays, (tmp_path / "wanted" / "film.mp4").as_uri())).state == pb.JOB_STATE_SUCCEEDED
    at = [f"ray_address={ray.get_runtime_context().gcs_address}", f"redis_url={running.service.store_url}"]
    with started("models=[]", *at) as (_, leaves):
        job = submit(leaves, (tmp_path / "got" / "film.mp4").as_uri(), step_ms=60)
        at_work(leaves, job)
    last = ended(stays, job)
    assert (last.state, last.reason, last.session_id) == (pb.JOB_STATE_SUCCEEDED, "", job.session_id)
    assert files(tmp_path / "got") == files(tmp_path / "wanted")


def test_a_job_is_cancelled_at_the_other_gateway(gateways, tmp_path):
    (_, here), (_, there) = gateways
    job = submit(there, (tmp_path / "film.mp4").as_uri(), step_ms=60)
    at_work(there, job)
    assert job.job_id in [each.job_id for each in here.jobs.List(pb.ListJobsRequest(), timeout=DEADLINE_S).jobs]
    cancelled = here.jobs.Cancel(pb.CancelJobRequest(job_id=job.job_id), timeout=DEADLINE_S)
    assert (cancelled.state, cancelled.reason) == (pb.JOB_STATE_CANCELLED, "cancelled")
    assert ended(there, job).state == pb.JOB_STATE_CANCELLED
    eventually(lambda: not files(tmp_path))


def test_the_session_of_a_job_is_not_put_away_by_hand(gateways, code, tmp_path):
    (_, stubs), _ = gateways
    job = submit(stubs, (tmp_path / "film.mp4").as_uri(), step_ms=60)
    request = pb.SuspendSessionRequest(session_id=job.session_id)
    name, line = code(lambda: stubs.sessions.Suspend(request, timeout=DEADLINE_S))
    assert (name, line.endswith("which would wait: cancel the job")) == ("INVALID_ARGUMENT", True)
    assert stubs.jobs.Cancel(pb.CancelJobRequest(job_id=job.job_id), timeout=DEADLINE_S).state == 4
