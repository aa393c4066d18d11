"""What an operator sees of a real service: figures over HTTP, spans at a collector, `riverrun top`."""

import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import riverrun
from riverrun.client.cli import app
from riverrun.protos import riverrun_pb2 as pb

from .collector import attributes
from .conftest import eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def scrape(running):
    """The figures now, by name and labels."""

    def look():
        with urllib.request.urlopen(f"http://{running.service.metrics_address}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}

    return look


def labelled(found, name, **labels):
    return found.get((name, *sorted(labels.items())), 0)


@pytest.fixture
def chain(stubs):
    """A session of two stages whose client has had 8 frames; it is open until the test ends."""
    session = stubs.create("chain", params={"turn.takes": 4, "make.state_bytes": 1000})
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=8)])
    assert len(stream.frames(8)) == 8
    yield session
    stream.cancel()
    stubs.close(session.session_id)


def test_a_scrape_shows_the_session_its_steps_and_its_actor(chain, scrape):
    def sent():
        return labelled(scrape(), "riverrun_sent_frames_total", graph="chain", port="frames", codec="raw") >= 8

    eventually(sent, 60)  # the last frame is counted when it has been written
    found = scrape()
    for stage in ("make", "turn"):
        for part in ("queue", "compute", "transport"):
            steps = labelled(found, "riverrun_chunk_seconds_count", graph="chain", stage=stage, part=part)
            assert steps >= 2, (stage, part)
    assert labelled(found, "riverrun_chunk_seconds_count", graph="chain", stage="turn", part="fetch") >= 2
    # An earlier test's session may still be about to leave.
    eventually(lambda: labelled(scrape(), "riverrun_sessions", graph="chain", state="running") == 1, 60)
    eventually(lambda: labelled(scrape(), "riverrun_stage_held_bytes", graph="chain", stage="make") == 1000, 60)
    eventually(lambda: labelled(scrape(), "riverrun_cache_fill_ratio", graph="chain", stage="make") == 1, 60)
    assert labelled(found, "riverrun_actor_up", actor="synthetic-0", model="synthetic") == 1
    assert labelled(found, "riverrun_store_up") == labelled(found, "riverrun_controller_up") == 1
    assert not [key for key in found if chain.session_id in str(key)]


def test_calls_are_counted_by_code(stubs, scrape, code):
    def counted(method, name):
        return labelled(scrape(), "riverrun_grpc_calls_total", method=f"/riverrun.v1.{method}", code=name)

    before = counted("Sessions/Get", "NOT_FOUND"), counted("Cluster/Status", "OK")
    assert code(lambda: stubs.get("nobody"))[0] == "NOT_FOUND"
    stubs.status()
    eventually(lambda: counted("Sessions/Get", "NOT_FOUND") == before[0] + 1, 60)
    eventually(lambda: counted("Cluster/Status", "OK") > before[1], 60)


def test_a_session_that_never_opened_has_not_failed(stubs, scrape, code):
    def failed():
        return labelled(scrape(), "riverrun_sessions_ended_total", graph="synthetic", state="failed")

    before = failed()
    assert code(lambda: stubs.create(params={"prompt": ""}))[0] == "INVALID_ARGUMENT"
    assert failed() == before


def test_a_stream_that_its_client_leaves_is_counted(stubs, scrape):
    def cancelled():
        method = "/riverrun.v1.Streams/Connect"
        return labelled(scrape(), "riverrun_grpc_calls_total", method=method, code="CANCELLED")

    before = cancelled()
    session = stubs.create()
    stream = stubs.connect(session)
    stream.until("opened")
    stream.cancel()
    eventually(lambda: cancelled() > before, 60)
    stubs.close(session.session_id)


def test_an_unknown_method_makes_no_figure(running, scrape):
    with grpc.insecure_channel(running.service.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/riverrun.v1.Nobody/Knows")(b"", timeout=60)
    assert not [key for key in scrape() if "Nobody" in str(key)]


def test_one_trace_goes_through_gateway_and_actors(running, collector, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-00f067aa0ba902b7-01")
    with (
        riverrun.connect(running.service.address) as rr,
        rr.stream("chain", frames=8, **{"turn.takes": 4}) as stream,
    ):
        assert len(list(stream)) == 8

    names = {
        ("gateway", "runner.step", "make"),
        ("gateway", "runner.step", "turn"),
        ("synthetic", "actor.queue", "make"),
        ("synthetic", "model.step", "make"),
        ("synthetic", "actor.queue", "turn"),
        ("synthetic", "model.step", "turn"),
        ("gateway", "runner.fetch", "turn"),
        ("gateway", "gateway.encode", ""),
        ("gateway", "gateway.send", ""),
    }

    def seen():
        return {(p, s.name, attributes(s).get("riverrun.stage", "")) for p, s in collector.spans(TRACE)}

    eventually(lambda: seen() == names, 60)
    spans = {span.span_id: span for _, span in collector.spans(TRACE)}
    outside = [span for span in spans.values() if span.parent_span_id not in spans]
    assert [(s.name, s.parent_span_id.hex()) for s in outside] == [("runner.step", "00f067aa0ba902b7")]


def test_top_prints_actors_and_sessions_once(running, chain):
    done = CliRunner().invoke(app, ["top", "--once", "--interval", "0.1", "--address", running.service.address])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert running.service.address in lines[0]
    (actor,) = [line.split() for line in lines if line.startswith("synthetic-0")]
    assert actor[1] == "synthetic"
    stages = [line.split() for line in lines if line.startswith(chain.session_id)]
    assert [row[1:5] for row in stages] == [
        ["chain", "running", "make", "synthetic-0"],
        ["chain", "running", "turn", "synthetic-0"],
    ]
