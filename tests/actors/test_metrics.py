"""Figures add up, have bounded labels, and are served over HTTP."""

import asyncio
import socket
import urllib.request
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from prometheus_client.registry import Collector

from riverrun.actors import live
from riverrun.actors.health import StageHealth
from riverrun.actors.live import LiveCollector
from riverrun.actors.metrics import Metrics
from riverrun.actors.pool import MemberHealth
from riverrun.actors.ray_metrics import RayExport
from riverrun.actors.telemetry import Several, Watch
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame
from riverrun.graphs.observer import SILENT
from riverrun.graphs.stage import Epoch, StepReply, StepRequest
from riverrun.graphs.status import RunnerStatus, StageStatus
from riverrun.models.base import Chunk, Unavailable
from riverrun.store.records import SessionState

GRAPH = Graph("g", (StageSpec("gen", "m"),), {"frames": Endpoint("gen", "frames")})
ASKED = StepRequest("s1", Epoch(1, "n"), 0)
CHUNK = Chunk("frames", np.zeros((4, 2, 2, 3), np.uint8), 0, 5625, 4)
SPLIT = ("queue", "compute", "transport", "whole")
REPLY = StepReply(0, (CHUNK,), compute_ms=30.0, wait_ms=5.0, batched=2)
FRAME = Frame("frames", 0, 0, 0, 0, 1, 0, CHUNK.data[0])
STAGE = StageStatus("gen", "m", "m-0", "i1", steps=3, held_bytes=600, queued=1, retained_bytes=800)


def status(session="s1", graph="g", **fields):
    told = {"state": SessionState.RUNNING, "reason": "", "created": 0.0, "paused": False, "parked": False}
    told |= {"lead_s": 0.5, "frames_delivered": 4, "stages": (STAGE,), "outputs": ()}
    return RunnerStatus(session, graph, **(told | fields))


def samples(families):
    """Value by name and labels."""
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_a_step_is_split_into_queue_compute_and_transport():
    metrics = Metrics()
    seen = metrics.observer("g").answered("gen", ASKED, REPLY, call_s=0.04)
    assert seen is REPLY
    parts = {p: value(metrics, "riverrun_chunk_seconds_sum", graph="g", stage="gen", part=p) for p in SPLIT}
    assert parts == pytest.approx({"queue": 0.005, "compute": 0.03, "transport": 0.005, "whole": 0.04})
    bucket = {"graph": "g", "stage": "gen", "part": "compute"}
    assert value(metrics, "riverrun_chunk_seconds_bucket", **bucket, le="0.025") == 0
    assert value(metrics, "riverrun_chunk_seconds_bucket", **bucket, le="0.05") == 1
    assert value(metrics, "riverrun_frames_total", graph="g", stage="gen") == 4
    assert value(metrics, "riverrun_step_sessions_sum", graph="g", stage="gen") == 2


def test_frames_sent_are_counted_by_codec():
    metrics = Metrics()
    for codec, size in (("raw", 12), ("raw", 12), ("jpeg", 5)):
        metrics.observer("g").sent(FRAME, codec, size, encode_s=0.001, send_s=0.002)
    assert value(metrics, "riverrun_sent_bytes_total", graph="g", port="frames", codec="raw") == 24
    assert value(metrics, "riverrun_sent_frames_total", graph="g", port="frames", codec="jpeg") == 1
    assert value(metrics, "riverrun_frame_seconds_count", graph="g", port="frames", part="send") == 3


def test_the_number_of_figures_does_not_grow_with_sessions():
    metrics = Metrics()
    watch = Watch(metrics)

    def one(session):
        observer = watch.observer(GRAPH, session)
        observer.answered("gen", replace(ASKED, session=session), REPLY, 0.04)
        observer.fetched("gen", CHUNK, 0.001)
        observer.sent(FRAME, "raw", 12, 0.001, 0.001)
        observer.ended("closed")
        text = str(list(metrics.registry.collect()))
        assert session not in text
        return sum(len(family.samples) for family in metrics.registry.collect())

    assert one("session-a") == one("session-b") == one("session-c")
    assert value(metrics, "riverrun_sessions_ended_total", graph="g", state="closed") == 3


def test_what_players_had_and_what_moved_is_counted():
    metrics = Metrics()
    for observer in (metrics.observer("g"), Several([metrics.observer("g")])):
        observer.played(2.0, 0.5)
        observer.moved("gen")
        observer.recovered("gen")
    assert value(metrics, "riverrun_played_seconds_total", graph="g") == 4
    assert value(metrics, "riverrun_stalled_seconds_total", graph="g") == 1
    assert value(metrics, "riverrun_moves_total", graph="g", stage="gen") == 2
    assert value(metrics, "riverrun_recoveries_total", graph="g", stage="gen") == 2


class Told:
    """A gauge as Ray makes them: the last value by labels."""

    made: ClassVar[dict] = {}

    def __init__(self, name, about, labels):
        self.labels, self.values = labels, {}
        self.made[name] = self

    def set(self, value, tags):
        assert set(tags) == set(self.labels)
        self.values[tuple(sorted(tags.items()))] = value


def test_ray_is_told_every_sample_and_what_is_gone_is_said_to_be_nothing(monkeypatch):
    monkeypatch.setattr(Told, "made", {})
    metrics = Metrics()
    states = [status("a"), status("b", state=SessionState.DRAINING)]

    class Found(Collector):
        def collect(self):
            return live.sessions(states)

    metrics.registry.register(Found())
    metrics.observer("g").answered("gen", ASKED, REPLY, call_s=0.04)
    export = RayExport(metrics.registry, Told)
    export.push()
    mine = {s.name for f in metrics.registry.collect() for s in f.samples if s.name.startswith("riverrun_")}
    assert set(Told.made) == mine
    by = {name: told.values for name, told in Told.made.items()}
    step = (("graph", "g"), ("le", "0.05"), ("part", "compute"), ("stage", "gen"))
    assert by["riverrun_chunk_seconds_bucket"][step] == 1
    draining = (("graph", "g"), ("state", "draining"))
    assert by["riverrun_sessions"][draining] == 1
    states.pop()
    export.push()
    assert by["riverrun_sessions"] == {draining: 0, (("graph", "g"), ("state", "running")): 1}


def test_nobody_watches_unless_asked_to():
    assert Watch().observer(GRAPH, "s1") is SILENT


def test_sessions_are_counted_by_state_and_their_leads_summed_up():
    leads = [status("a", lead_s=0.1), status("b", lead_s=2.0, parked=True), status("c", lead_s=0.4)]
    found = samples(live.sessions([*leads, status("d", "other", state=SessionState.DRAINING)]))
    assert found["riverrun_sessions", ("graph", "g"), ("state", "running")] == 3
    assert found["riverrun_sessions", ("graph", "other"), ("state", "draining")] == 1
    assert found["riverrun_sessions_parked", ("graph", "g")] == 1
    assert [found["riverrun_lead_seconds", ("graph", "g"), ("stat", s)] for s in ("min", "p50", "max")] == [0.1, 0.4, 2]


def test_bytes_queues_and_fill_are_summed_by_stage():
    found = samples(live.stages([status("a"), status("b", stages=(replace(STAGE, held_bytes=200),))]))
    labels = (("graph", "g"), ("stage", "gen"))
    assert found["riverrun_stage_held_bytes", *labels] == 800
    assert found["riverrun_edge_chunks", *labels] == 2
    assert found["riverrun_cache_fill_ratio", *labels] == 0.5


def test_a_stage_that_keeps_nothing_has_no_fill():
    found = samples(live.stages([status(stages=(replace(STAGE, held_bytes=0, retained_bytes=0),))]))
    assert not [key for key in found if key[0] == "riverrun_cache_fill_ratio"]


def test_actors_are_up_or_not():
    health = StageHealth("i1", 2, 8, 600, 1600, steps=9, running_s=0.25, p99_ms=40.0)
    found = samples(live.actors([MemberHealth("m-0", "m", "i1", health), MemberHealth("m-1", "m", "i2", None)]))
    at = ("actor", "m-0"), ("model", "m")
    assert found["riverrun_actor_up", *at] == 1
    assert found["riverrun_actor_up", ("actor", "m-1"), ("model", "m")] == 0
    assert found["riverrun_actor_steps_total", *at] == 9
    assert found["riverrun_actor_step_p99_seconds", *at] == 0.04
    assert ("riverrun_actor_steps_total", ("actor", "m-1"), ("model", "m")) not in found
    assert samples(live.actors(None))["riverrun_controller_up",] == 0


def test_wanted_nodes_are_said_by_model():
    found = samples([live.wanted({"m": 3, "n": 0})])
    assert (found["riverrun_wanted_nodes", ("model", "m")], found["riverrun_wanted_nodes", ("model", "n")]) == (3, 0)
    assert samples([live.wanted(None)]) == {}


def scrape(at):
    with urllib.request.urlopen(f"http://{at}/metrics", timeout=60) as answer:
        return answer.read().decode()


async def away():
    raise Unavailable("gone")


def test_a_scrape_looks_at_the_sessions_on_their_own_loop_and_says_what_is_away():
    async def body():
        directory = SimpleNamespace(actors=away, wanted=away)
        host = SimpleNamespace(directory=directory, statuses=lambda: [status()])
        metrics = Metrics()
        metrics.registry.register(LiveCollector(host, away))
        with metrics.served("127.0.0.1", 0) as at:
            return await asyncio.to_thread(scrape, at)

    text = asyncio.run(body())
    assert 'riverrun_sessions{graph="g",state="running"} 1.0' in text
    assert "riverrun_store_up 0.0" in text
    assert "riverrun_controller_up 0.0" in text


def test_a_taken_port_is_said():
    async def body():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            serving = Metrics().served("127.0.0.1", port)
            with pytest.raises(Unavailable, match=f"can't serve metrics on 127.0.0.1:{port}"), serving:
                pass

    asyncio.run(body())
