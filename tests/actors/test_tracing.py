"""One trace of a chunk through all stages, connected, and none at all when nobody wants one."""

import asyncio
import contextlib
import threading
import time
from collections import defaultdict
from dataclasses import replace

import pytest

from riverrun.actors.metrics import Metrics
from riverrun.actors.stage import StageWorker
from riverrun.actors.telemetry import Watch
from riverrun.actors.tracing import Spans, spans_to
from riverrun.configs.telemetry import TraceConfig
from riverrun.graphs.consumer import ConsumerSpec, Role
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame
from riverrun.graphs.runner import Runner
from riverrun.graphs.waiting import SystemClock
from riverrun.models.synthetic import Synthetic
from riverrun.store.memory import MemoryStore
from riverrun.store.records import SessionRecord

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

CHAIN = Graph(
    "chain",
    (StageSpec("make", "synthetic"), StageSpec("turn", "synthetic")),
    {"frames": Endpoint("turn", "frames")},
    edges=(Edge(Endpoint("make", "frames"), Endpoint("turn", "frames")),),
)
CLIENTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Local:
    """A stage worker behind a runner, with the spans an actor notes. asked: every request it got."""

    def __init__(self, name, spans):
        self._name, self._spans, self.asked = name, spans, []
        self.worker = StageWorker(Synthetic(), "i1", max_sessions=4)

    async def open(self, request):
        return self.worker.open(replace(request, session=f"{request.session}/{self._name}"))

    async def step(self, request):
        self.asked.append(request)
        named, arrived_ns = replace(request, session=f"{request.session}/{self._name}"), time.time_ns()
        reply = await asyncio.to_thread(self.worker.step, named)
        if named.trace and self._spans:
            self._spans.note_step(named, reply, arrived_ns, "i1")
        return reply

    async def close(self, session, epoch, life=None):
        self.worker.close(f"{session}/{self._name}", epoch)

    async def fetch(self, data):
        return data


@contextlib.contextmanager
def running(stages):
    threads = [threading.Thread(target=stage.worker.run) for stage in stages]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for stage in stages:
            stage.worker.stop()
        for thread in threads:
            thread.join(60)


def stream(watch, spans, frames, takes=4, wanted=""):
    """Runs a session of `frames` frames through the chain: its stages and the frames a client was given."""

    async def body():
        store = MemoryStore()
        params = {"make": {"chunk_frames": 4}, "turn": {"takes": takes, "chunk_frames": 4}}
        record = SessionRecord("s1", "chain", params=params, nonce="n", max_frames=frames)
        stages = {name: Local(name, spans) for name in ("make", "turn")}
        with running(stages.values()):
            observer = watch.observer(CHAIN, "s1")
            observer.wanted(wanted)
            runner = Runner(await store.create(record), CHAIN, stages, {}, store, SystemClock(), observer=observer)
            await runner.open()
            observer.wanted(wanted)  # as it connects, after it asked at the creation
            got = []
            consumer = runner.attach(ConsumerSpec(Role.CONTROLLER, credits=frames))
            async for item in consumer:
                if isinstance(item, Frame):
                    observer.sent(item, "raw", item.array.nbytes, 0.0, 0.0)
                    got.append(item)
            await runner.ended()
        return stages, got

    return asyncio.run(asyncio.wait_for(body(), 60))


@pytest.fixture
def traced():
    """Spans into memory, and a reading of them by trace."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def by_trace():
        found = defaultdict(list)
        for span in exporter.get_finished_spans():
            found[span.context.trace_id].append(span)
        return list(found.values())

    return Spans(provider), by_trace


def tree(spans):
    """Each span as (name, stage), by that of its parent; the trace must be connected, with one root."""
    ids = {span.context.span_id: span for span in spans}
    outside = [span for span in spans if span.parent is None or span.parent.span_id not in ids]
    assert len(outside) == 1, [span.name for span in outside]

    def label(span):
        return span.name, span.attributes.get("riverrun.stage", "")

    return {(label(span), label(ids[span.parent.span_id])) for span in spans if span not in outside}


def test_a_chunk_is_one_connected_trace_through_two_stages(traced):
    spans, by_trace = traced
    _, got = stream(Watch(spans=spans, every=3), spans, frames=16)
    traces = by_trace()
    assert len(traces) == 2, "chunks 0 and 3 of 4"
    make, turn, fetch = ("runner.step", "make"), ("runner.step", "turn"), ("runner.fetch", "turn")
    for trace in traces:
        assert tree(trace) == {
            (("actor.queue", "make"), make),
            (("model.step", "make"), make),
            (turn, make),
            (("actor.queue", "turn"), turn),
            (("model.step", "turn"), turn),
            (fetch, turn),
            (("gateway.encode", ""), fetch),
            (("gateway.send", ""), fetch),
        }
        assert {span.attributes["riverrun.session"] for span in trace} == {"s1"}
    assert [bool(frame.trace) for frame in got] == [True] * 4 + [False] * 8 + [True] * 4
    sent = sorted(s.attributes["riverrun.frame"] for t in traces for s in t if s.name == "gateway.send")
    assert sent == [0, 1, 2, 3, 12, 13, 14, 15]


def test_a_step_lies_within_its_call_and_after_its_wait(traced):
    spans, by_trace = traced
    stream(Watch(spans=spans, every=100), spans, frames=4)
    (trace,) = by_trace()
    for stage in ("make", "turn"):
        of = {s.name: s for s in trace if s.attributes.get("riverrun.stage") == stage}
        assert of["actor.queue"].end_time == of["model.step"].start_time
        assert of["runner.step"].start_time <= of["actor.queue"].start_time


def test_a_stage_that_needs_more_frames_first_hands_the_trace_on_later(traced):
    spans, by_trace = traced
    stages, got = stream(Watch(spans=spans, every=100), spans, frames=8, takes=8)
    (trace,) = by_trace()
    assert tree(trace) >= {(("runner.step", "turn"), ("runner.step", "make"))}
    assert [bool(r.trace) for r in stages["turn"].asked][:2] == [True, False]
    assert [bool(frame.trace) for frame in got[:4]] == [True] * 4


def test_a_client_may_ask_for_a_trace_of_its_next_chunk(traced):
    spans, by_trace = traced
    stream(Watch(spans=spans), spans, frames=12, wanted=CLIENTS)
    (trace,) = by_trace()
    assert f"{trace[0].context.trace_id:032x}" == CLIENTS.split("-")[1]
    (root,) = [s for s in trace if s.attributes.get("riverrun.stage") == "make" and s.name == "runner.step"]
    assert f"{root.parent.span_id:016x}" == CLIENTS.split("-")[2]
    assert root.attributes["riverrun.seq"] == 0


@pytest.mark.parametrize("nonsense", ["", "nonsense", "00-0-0-01", CLIENTS.replace("00-", "ff-", 1)])
def test_a_client_s_nonsense_is_no_parent(traced, nonsense):
    spans, by_trace = traced
    stream(Watch(spans=spans, every=100), spans, frames=4, wanted=nonsense)
    (trace,) = by_trace()
    tree(trace)


def test_metrics_and_traces_see_the_same_steps(traced):
    spans, by_trace = traced
    metrics = Metrics()
    stages, _ = stream(Watch(metrics, spans, every=1), spans, frames=8)
    steps = [span.attributes for trace in by_trace() for span in trace if span.name == "model.step"]
    for name, stage in stages.items():
        about = {"graph": "chain", "stage": name, "part": "compute"}
        assert metrics.registry.get_sample_value("riverrun_chunk_seconds_count", about) == len(stage.asked)
        traced_steps = {of["riverrun.seq"] for of in steps if of["riverrun.stage"] == name}
        assert traced_steps == {request.seq for request in stage.asked if not request.finish}


def test_when_it_is_off_nothing_carries_a_trace():
    assert spans_to(TraceConfig(), "gateway") is None
    stages, got = stream(Watch(), None, frames=8)
    assert not any(request.trace for stage in stages.values() for request in stage.asked)
    assert not any(chunk.trace for request in stages["turn"].asked for chunk in request.inputs)
    assert not any(frame.trace for frame in got)
