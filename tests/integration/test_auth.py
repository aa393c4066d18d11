"""Callers through the real port: tokens, roles, tenants that see nothing of each other, quotas; what no log says."""

import asyncio
import logging
import os
import threading
import time
from pathlib import Path

import grpc
import pytest
import ray
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import riverrun
from riverrun.actors.auth import NEEDED
from riverrun.actors.principal import Role
from riverrun.actors.serve import Service
from riverrun.configs import load_service
from riverrun.models.base import BadRequest
from riverrun.protos import riverrun_pb2 as pb

from .guarded import FRAMES, PEOPLE, ROWS, TIMEOUT_S, TOKENS, Bearer, guarded


@pytest.fixture(scope="module")
def own(running, tmp_path_factory):
    with guarded(running, tmp_path_factory.mktemp("guarded"), "ray_address=local") as service:
        yield service


@pytest.fixture
def sessions(own):
    """Opens sessions for whom one says, and ends them."""
    made = []

    def create(who="ann", **fields):
        made.append(own.stubs(who).create(**fields))
        return made[-1]

    yield create
    for session in made:
        own.stubs("root").close(session.session_id)


def every_method(session="none", job="none"):
    """(name, method, request, whether that names a session or job) of each method there is."""
    given = {"session_id": session, "job_id": job}
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            if method.name == "Connect":
                message = pb.ClientMessage(open=pb.Open(session_id=session, role=pb.ROLE_VIEWER))
                yield f"{service.name}/{method.name}", method, message, True
                continue
            message = getattr(pb, method.input_type.name)()
            named = [field for field in given if field in message.DESCRIPTOR.fields_by_name]
            for field in named:
                setattr(message, field, given[field])
            yield f"{service.name}/{method.name}", method, message, bool(named)


def called(channel, method, message):
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(path, lambda m: m.SerializeToString(), lambda data: data)
    answer = call(iter([message]) if method.client_streaming else message, timeout=TIMEOUT_S)
    return list(answer) if method.server_streaming else answer


# ---- who calls ----


@pytest.mark.parametrize("token", ["", "wrong-wrong-wrong-wrong", ROWS[0]["token_sha256"]])
def test_without_a_right_token_nothing_is_answered(own, code, token):
    for _, method, message, _ in every_method():
        name, line = code(lambda m=method, r=message: called(Bearer(own.channel, token), m, r))
        assert name == "UNAUTHENTICATED"
        assert ("none of this service's" if token else "no token: send metadata `authorization: Bearer TOKEN`") in line
        assert not token or token not in line


def test_health_is_told_to_all_and_reflection_to_those_who_are_known(own, code):
    channel = own.channel
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    assert code(lambda: list(info(iter([asked]), timeout=TIMEOUT_S)))[0] == "UNAUTHENTICATED"
    info = reflection_pb2_grpc.ServerReflectionStub(Bearer(channel, TOKENS["wall"])).ServerReflectionInfo
    (found,) = info(iter([asked]))
    assert "riverrun.v1.Sessions" in {service.name for service in found.list_services_response.service}


def test_a_role_may_do_what_the_table_says(own, code):
    for who in ("wall", "ann"):
        role = Role[PEOPLE[who][1].upper()]
        for name, method, message, _ in every_method():
            needs, seen = NEEDED.get(name, Role.ADMIN), "OK"
            try:
                called(Bearer(own.channel, TOKENS[who]), method, message)
            except grpc.RpcError as error:
                seen = error.code().name
            assert (seen == "PERMISSION_DENIED") == (role < needs), (who, name, seen)
    name, line = code(lambda: own.stubs("wall").create())
    said = "riverrun.v1.Sessions/Create takes role controller; yours is viewer"
    assert (name, line) == ("PERMISSION_DENIED", said)


def test_a_viewer_watches_and_does_not_steer(own, code, sessions):
    session = sessions("ann", params={"step_ms": 5})
    leader = own.stubs("ann").connect(session, ports=FRAMES)
    watcher = own.stubs("wall").connect(session, role=pb.ROLE_VIEWER, resume_token="", ports=FRAMES)
    assert watcher.frames(1)
    leader.frames(4)
    name, line = code(own.stubs("wall").connect(session, ports=FRAMES).rest)
    assert (name, line) == ("PERMISSION_DENIED", "to connect as controller takes role controller; yours is viewer")
    leader.cancel()
    watcher.cancel()


# ---- tenants ----


def test_another_tenants_session_is_not_there(own, code, sessions, tmp_path):
    """Nothing tells a session of somebody else's from one that there is not; who has it streams on meanwhile."""
    session = sessions("ann", params={"step_ms": 5})
    stream = own.stubs("ann").connect(session, ports=FRAMES)
    request = pb.SubmitJobRequest(
        graph="synthetic", frames=4, client_id="mine", sinks={"frames": sink(own, "acme/a.mp4")}
    )
    job = own.stubs("ann").jobs.Submit(request)
    asked = 0
    for name, method, message, names_one in every_method(session.session_id, job.job_id):
        if not names_one or NEEDED.get(name) is None:  # an admin's method: every tenant's things are there for it
            continue
        asked += 1
        found, line = code(lambda m=method, r=message: called(Bearer(own.channel, TOKENS["bob"]), m, r))
        assert found == "NOT_FOUND", name
        which = session.session_id if session.session_id in line else job.job_id
        kind = "session" if which == session.session_id else "job"
        assert line == f"there is no {kind} {which!r}; it may have ended and been forgotten"
    assert asked == 8
    assert stream.frames(8)[-1].frame == 7
    stream.cancel()
    assert own.stubs("ann").get(session.session_id).state == pb.SESSION_STATE_RUNNING
    assert own.stubs("root").get(session.session_id).session_id == session.session_id
    watched = own.stubs("root").connect(session, role=pb.ROLE_VIEWER, resume_token="", ports=FRAMES)
    assert watched.frames(1)
    watched.cancel()


def test_lists_and_counts_are_a_tenants_own(own, sessions):
    ours, theirs = sessions("ann"), sessions("bob")

    def listed(who):
        request = pb.ListSessionsRequest(page_size=200, include_ended=True)
        found = own.stubs(who).sessions.List(request)
        return {s.session_id for s in found.sessions} & {ours.session_id, theirs.session_id}

    assert listed("ann") == listed("wall") == {ours.session_id}
    assert listed("bob") == {theirs.session_id}
    assert listed("root") == {ours.session_id, theirs.session_id}
    assert [own.stubs(who).status().sessions for who in ("ann", "bob", "cat", "root")] == [1, 1, 0, 2]
    assert [bool(own.stubs(who).status().actors[0].pid) for who in ("ann", "root")] == [False, True]


def test_a_client_id_is_of_its_tenant_alone(own, sessions):
    first, again = sessions("ann", client_id="one"), sessions("ann", client_id="one")
    other = sessions("bob", client_id="one")
    assert again.session_id == first.session_id
    assert other.session_id != first.session_id


def test_ids_can_not_be_guessed(own, sessions):
    ids = {sessions("ann").session_id for _ in range(4)}
    assert len(ids) == 4
    assert all(len(one) >= 32 and int(one, 16) for one in ids)
    assert len({one[:8] for one in ids}) == 4


def sink(own, path):
    return f"file://{own.service.config.jobs_dir}/{path}"


def test_jobs_are_their_tenants_and_write_into_its_folder(own, code):
    def submit(who, path):
        request = pb.SubmitJobRequest(graph="synthetic", frames=4, client_id="job", sinks={"frames": sink(own, path)})
        return own.stubs(who).jobs.Submit(request)

    for path in ("a.mp4", "acme/a.mp4", "bird/../acme/a.mp4"):
        name, line = code(lambda path=path: submit("bob", path))
        assert (name, "/jobs/bird/ (jobs_dir)" in line) == ("INVALID_ARGUMENT", True)
    job = submit("bob", "bird/a.mp4")
    *_, last = own.stubs("bob").jobs.Watch(pb.GetJobRequest(job_id=job.job_id))
    assert last.state == pb.JOB_STATE_SUCCEEDED
    assert (Path(own.service.config.jobs_dir) / "bird" / "a.mp4").is_file()
    listed = {
        who: {j.job_id for j in own.stubs(who).jobs.List(pb.ListJobsRequest()).jobs} for who in ("ann", "bob", "root")
    }
    assert [job.job_id in listed[who] for who in ("ann", "bob", "root")] == [False, True, True]
    assert submit("ann", "acme/a.mp4").job_id != job.job_id
    assert submit("bob", "bird/a.mp4").job_id == job.job_id


# ---- quotas ----


def test_a_quota_of_sessions_holds_over_all_gateways(running, own, code, tmp_path):
    with guarded(running, tmp_path, "ray_address=local") as second:
        here, there = own.stubs("bob").create(client_id="first"), second.stubs("bob").create()
        for gateway in (own, second):
            name, line = code(lambda gateway=gateway: gateway.stubs("bob").create())
            said = "tenant 'bird' has 2 sessions, its quota of 2; one must end first"
            assert (name, line) == ("RESOURCE_EXHAUSTED", said)
        assert own.stubs("bob").create(client_id="first").session_id == here.session_id
        others = own.stubs("ann").create()
        own.stubs("ann").close(others.session_id)
        second.stubs("bob").close(there.session_id)
        again = own.stubs("bob").create()
        for session in (again, here):
            own.stubs("bob").close(session.session_id)


def test_a_failed_opening_takes_no_place(own, code):
    for _ in range(3):
        assert code(lambda: own.stubs("bob").create(params={"height": 0}))[0] == "INVALID_ARGUMENT"
    made = [own.stubs("bob").create() for _ in range(2)]
    for session in made:
        own.stubs("bob").close(session.session_id)


def test_frames_of_all_a_tenants_connections_are_paced_together(own, sessions):
    """8 frames a second: 32 of them can't come in less than (32 - 8 at once - 1) / 8 seconds, however many ask."""
    streams = [own.stubs("cat").connect(sessions("cat"), ports=FRAMES) for _ in range(2)]
    begun = time.monotonic()
    numbers = {}

    def read(stream):
        numbers[stream] = [part.frame for part in stream.frames(16)]

    threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert time.monotonic() - begun >= (32 - 8 - 1) / 8
    assert list(numbers.values()) == [list(range(16))] * 2
    for stream in streams:
        stream.cancel()


# ---- our client ----


def test_the_client_shows_its_token_on_every_way(own, tmp_path):
    with own.client("ann") as rr, rr.stream("synthetic", frames=8) as stream:
        assert [frame.number for frame in stream] == list(range(8))
        job = rr.submit("synthetic", Path(own.service.config.jobs_dir) / "acme" / "b.mp4", frames=4)
        assert [j.state for j in rr.watch_job(job.job_id)][-1] == pb.JOB_STATE_SUCCEEDED
    with own.client("wall") as rr, pytest.raises(riverrun.Denied, match="takes role controller; yours is viewer"):
        rr.stream("synthetic")
    with own.client("nobody-nobody-nobody") as rr:
        assert rr.reachable()
        with pytest.raises(
            riverrun.Denied, match=r"does not know you: the token is none of this service's.*RIVERRUN_TOKEN"
        ):
            rr.sessions()


# ---- what is not said ----


def test_prompts_and_tokens_are_in_no_log(own, code, caplog):
    """Neither what this process logs, nor what Ray keeps of the actors' words: not on success, and not on a fault."""
    secret, steer = "a-very-secret-prompt", "another-secret-prompt"
    caplog.set_level(logging.INFO)
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    stubs = own.stubs("ann")
    session = stubs.create(params={"prompt": secret, "fail_at": 6}, client_id="for the log")
    stream = stubs.connect(session, ports=FRAMES)
    stream.control(1, prompt=steer)
    stream.control(2, parameters={"height": steer})
    assert stream.receipts(2)[-1].stage == pb.Receipt.STAGE_REJECTED
    code(stream.rest)
    code(lambda: stubs.create(params={"prompt": secret, "promt": secret}))
    code(lambda: stubs.create(params={"height": secret}))
    code(lambda: own.stubs("not-a-token-of-this-service").create(params={"prompt": secret}))
    request = pb.SubmitJobRequest(graph="synthetic", frames=100, sinks={"frames": sink(own, "acme/c.mp4")})
    request.params.update({"prompt": secret, "fail_at": 2})
    job = stubs.jobs.Submit(request)
    list(stubs.jobs.Watch(pb.GetJobRequest(job_id=job.job_id)))
    words = [secret, steer, session.resume_token, "not-a-token-of-this-service", *TOKENS.values()]
    assert session.session_id in caplog.text  # so that something was logged at all
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".sock"]
    texts = [caplog.text, *(path.read_text(errors="replace") for path in files)]
    assert any("told to fail at step 6" in text for text in texts)
    assert [word for word in words if any(word in text for text in texts)] == []


def test_an_open_bind_is_refused_before_anything_starts(tmp_path):
    async def start():
        async with Service(
            load_service(None, ["host=0.0.0.0", "port=0", f"jobs_dir={tmp_path}", "models=[synthetic]"])
        ):
            pass

    before = len(os.listdir("/proc/self/task"))
    with pytest.raises(BadRequest, match=r"nobody is asked who they are: set auth\.tokens_file"):
        asyncio.run(start())
    assert len(os.listdir("/proc/self/task")) <= before
