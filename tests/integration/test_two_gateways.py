"""A second gateway on the same Ray and store: one catalogue, shared actors, and sessions that know where they live."""

import grpc
import pytest

from riverrun.configs import load_service
from riverrun.protos import riverrun_pb2 as pb

from .conftest import Running, Stubs


@pytest.fixture
def beside(running):
    config = load_service(None, ["port=0", "models=[]", f"redis_url={running.service.store_url}", "drain_s=0.2"])
    service = Running(config)
    service.start()
    with grpc.insecure_channel(service.service.address) as channel:
        yield Stubs(channel)
    service.stop()


def test_a_second_gateway_shares_what_there_is(stubs, beside, code):
    assert sorted(g.name for g in beside.cluster.ListGraphs(pb.ListGraphsRequest(), timeout=30).graphs)[0] == "broken"
    here = stubs.create()
    assert beside.get(here.session_id).state == pb.SESSION_STATE_RUNNING
    name, line = code(beside.connect(here).rest)
    assert name == "UNAVAILABLE"
    assert "which is not this one" in line
    there = beside.create()
    assert there.stages[0].incarnation == here.stages[0].incarnation
    assert beside.connect(there, ports=[pb.PortWish(port="frames", credits=4)]).frames(4)[3].frame == 3
    beside.close(there.session_id)
    stubs.close(here.session_id)
