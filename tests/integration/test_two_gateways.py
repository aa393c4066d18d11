"""More services in one process: those that join a cluster share what is there, any other has its own."""

import contextlib

import grpc
import pytest
import ray

from riverrun.configs import load_service
from riverrun.protos import riverrun_pb2 as pb

from .conftest import DEADLINE_S, Running, Stubs, end_controller


@contextlib.contextmanager
def beside(running, *overrides):
    """A service beside the folder's, on its store."""
    fixed = ["port=0", f"redis_url={running.service.store_url}", "drain_s=0.2", "checkpoints.chunks=0"]
    service = Running(load_service(None, [*fixed, *overrides]))
    service.start()
    with grpc.insecure_channel(service.service.address) as channel:
        yield Stubs(channel)
    service.stop()


@pytest.fixture
def joined(running):
    """Two that join the Ray which is here as a cluster."""
    address = f"ray_address={ray.get_runtime_context().gcs_address}"
    with beside(running, address, "models=[synthetic]") as first, beside(running, address, "models=[]") as second:
        yield first, second
        end_controller()


def graphs(stubs: Stubs) -> list[str]:
    return sorted(g.name for g in stubs.cluster.ListGraphs(pb.ListGraphsRequest(), timeout=30).graphs)


def test_a_second_gateway_of_a_cluster_shares_what_there_is(joined, code):
    first, second = joined
    assert graphs(second) == ["synthetic"]
    here = first.create()
    assert second.get(here.session_id).state == pb.SESSION_STATE_RUNNING
    name, line = code(second.connect(here).rest)
    assert name == "UNAVAILABLE"
    assert "which is not this one" in line
    there = second.create()
    assert there.stages[0].incarnation == here.stages[0].incarnation
    assert second.connect(there, ports=[pb.PortWish(port="frames", credits=4)]).frames(4)[3].frame == 3
    second.close(there.session_id)
    first.close(here.session_id)


def test_jobs_write_below_the_jobs_folder_alone(running, code, tmp_path):
    def submit(sink):
        request = pb.SubmitJobRequest(graph="synthetic", frames=4, sinks={"frames": f"{tmp_path.as_uri()}/{sink}"})
        return own.jobs.Submit(request, timeout=DEADLINE_S)

    with beside(running, "ray_address=local", "models=[synthetic]", f"jobs_dir={tmp_path}/jobs") as own:
        name, line = code(lambda: submit("a.mp4"))
        assert (name, "must be below file://" in line) == ("INVALID_ARGUMENT", True)
        job = submit("jobs/a.mp4")
        *_, last = own.jobs.Watch(pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE_S)
    assert last.state == pb.JOB_STATE_SUCCEEDED
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["jobs", "jobs/a.mp4"]


def test_a_service_that_joins_none_has_its_own_models_and_graphs(running, stubs):
    with beside(running, "ray_address=local", "models=[synthetic]") as own:
        assert graphs(own) == ["synthetic"]
        there, here = own.create(), stubs.create()
        assert there.stages[0].incarnation != here.stages[0].incarnation
        assert own.connect(there, ports=[pb.PortWish(port="frames", credits=4)]).frames(4)[3].frame == 3
        own.close(there.session_id)
    assert "grey" in graphs(stubs)
    assert stubs.connect(here, ports=[pb.PortWish(port="frames", credits=4)]).frames(4)[3].frame == 3
    stubs.close(here.session_id)
