"""Sessions through the real port: opened, found, listed, closed; what a user types wrong; health and reflection."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from riverrun.protos import riverrun_pb2 as pb
from riverrun.store.records import SessionRecord, SessionState
from riverrun.store.sessions import SessionStore


def test_a_session_is_created_found_listed_and_closed(stubs):
    session = stubs.create(params={"prompt": "sea"}, seed=5)
    assert session.state == pb.SESSION_STATE_RUNNING
    assert session.resume_token
    (output,) = session.outputs
    assert (output.port, output.kind, output.height, output.width, output.chunk_frames) == (
        "frames",
        "frames",
        32,
        32,
        4,
    )
    assert (session.stages[0].model, session.stages[0].actor) == ("synthetic", "synthetic-0")
    found = stubs.get(session.session_id)
    assert (found.session_id, found.resume_token) == (session.session_id, "")
    listed = stubs.sessions.List(pb.ListSessionsRequest(), timeout=10)
    assert session.session_id in [s.session_id for s in listed.sessions]
    closed = stubs.close(session.session_id)
    assert (closed.state, closed.reason) == (pb.SESSION_STATE_CLOSED, "closed by a client")
    assert stubs.close(session.session_id).state == pb.SESSION_STATE_CLOSED
    live = stubs.sessions.List(pb.ListSessionsRequest(), timeout=10)
    assert session.session_id not in [s.session_id for s in live.sessions]
    ended = stubs.sessions.List(pb.ListSessionsRequest(include_ended=True), timeout=10)
    assert session.session_id in [s.session_id for s in ended.sessions]


def test_a_repeated_client_id_returns_the_live_session(stubs):
    first = stubs.create(client_id="mine")
    again = stubs.create(client_id="mine")
    assert (again.session_id, again.resume_token) == (first.session_id, first.resume_token)
    stubs.close(first.session_id)
    other = stubs.create(client_id="mine")
    assert other.session_id != first.session_id
    stubs.close(other.session_id)


def test_creates_with_one_client_id_at_once_make_one_session(stubs):
    requests = [pb.CreateSessionRequest(graph="synthetic", client_id="at once") for _ in range(16)]
    calls = [stubs.sessions.Create.future(request, timeout=30) for request in requests]
    (session,) = {call.result().session_id for call in calls}
    assert stubs.close(session).state == pb.SESSION_STATE_CLOSED


@pytest.mark.parametrize(
    ("fields", "expected", "words"),
    [
        (
            {"graph": "nope"},
            "NOT_FOUND",
            "there is no graph 'nope'; there are broken, chain, grey, measure, mistyped, ",
        ),
        ({"params": {"promt": "x"}}, "INVALID_ARGUMENT", "unknown parameter 'promt'; there are batch, "),
        ({"params": {"height": "tall"}}, "INVALID_ARGUMENT", "parameter 'height' must be int, got 'tall'"),
        ({"params": {"height": 0}}, "INVALID_ARGUMENT", "height must be 1..4096, got 0"),
        ({"params": {"prompt": " "}}, "INVALID_ARGUMENT", "prompt must be a text of at least one character"),
        ({"params": {"height": 4096, "width": 4096, "chunk_frames": 9}}, "INVALID_ARGUMENT", "453 MB, at most 256"),
        ({"params": {"state_bytes": 1e12}}, "RESOURCE_EXHAUSTED", "smaller parameters would fit"),
        ({"client_id": "x" * 129}, "INVALID_ARGUMENT", "client_id has 129 characters, at most 128"),
        ({"graph": "chain", "params": {"height": 8}}, "INVALID_ARGUMENT", "write make.height or turn.height"),
    ],
)
def test_wrong_requests_get_the_right_code_and_one_line(stubs, code, fields, expected, words):
    name, line = code(lambda: stubs.create(**fields))
    assert name == expected
    assert words in line


def test_unknown_sessions_are_not_found(stubs, code):
    for call in (stubs.get, stubs.close):
        name, line = code(lambda call=call: call("nope"))
        assert (name, line) == ("NOT_FOUND", "there is no session 'nope'; it may have ended and been forgotten")


def test_a_full_actor_says_so_with_details(stubs):
    sessions = [stubs.create() for _ in range(32)]
    with pytest.raises(grpc.RpcError) as caught:
        stubs.create()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "all 32 places of model 'synthetic' are taken" in caught.value.details()
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    details = rpc_status.from_call(caught.value).details
    assert details[0].Unpack(info)
    assert details[1].Unpack(retry)
    assert (info.reason, info.domain, retry.retry_delay.seconds) == ("NO_ROOM", "riverrun", 5)
    for session in sessions:
        stubs.close(session.session_id)


def test_models_graphs_and_status(stubs):
    models = {m.name: m for m in stubs.cluster.ListModels(pb.ListModelsRequest(), timeout=30).models}
    assert sorted(models) == ["broken", "grey", "synthetic", "weighed", "wrong"]
    assert [(p.name, p.required) for p in models["grey"].params] == [("level", True)]
    assert list(models["broken"].outputs) == []
    model = models["synthetic"]
    assert (model.stage, model.class_path) == ("generation", "riverrun.models.synthetic:Synthetic")
    assert ("height", "int", "32", False) in [(p.name, p.type, p.default, p.required) for p in model.params]
    graphs = {g.name: g for g in stubs.cluster.ListGraphs(pb.ListGraphsRequest(), timeout=30).graphs}
    assert {"broken", "chain", "grey", "synthetic", "turn"} <= set(graphs)
    assert graphs["chain"].edges[0].source == "make.frames"
    assert graphs["synthetic"].outputs[0].height == 32
    status = stubs.status()
    assert status.store == "embedded"
    assert ("synthetic-0", "synthetic", 32) in [(a.actor, a.model, a.max_sessions) for a in status.actors]


def test_health_and_reflection(stubs):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    for service in ("", "riverrun.v1.Streams"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection.ServerReflectionInfo(iter([asked]), timeout=10)
    names = {service.name for service in answer.list_services_response.service}
    assert {"riverrun.v1.Sessions", "riverrun.v1.Streams", "riverrun.v1.Jobs", "riverrun.v1.Cluster"} <= names


def test_sessions_of_a_gateway_that_is_gone_are_not_listed_as_live(stubs, running):
    async def with_store(work):
        store = SessionStore(running.service.store_url)
        await work(store)
        await store.close()

    async def write(store):
        await store.create(SessionRecord("orphan", "g", state=SessionState.RUNNING, gateway="gone", created=4e9))
        await store.create(SessionRecord("elsewhere", "g", state=SessionState.RUNNING, gateway="other", created=4e9))
        await store.heartbeat("other", "x:1", ttl_s=60)

    async def delete(store):
        await store.delete("orphan")
        await store.delete("elsewhere")

    asyncio.run(with_store(write))
    for include_ended in (False, True):
        request = pb.ListSessionsRequest(include_ended=include_ended, page_size=200)
        listed = {s.session_id: s for s in stubs.sessions.List(request, timeout=10).sessions}
        assert listed["elsewhere"].state == pb.SESSION_STATE_RUNNING
        assert ("orphan" in listed) == include_ended
    for shown in (listed["orphan"], stubs.get("orphan")):
        assert (shown.state, shown.reason) == (pb.SESSION_STATE_FAILED, "its gateway gone is gone")
    asyncio.run(with_store(delete))
