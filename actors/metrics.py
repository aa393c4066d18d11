"""A gateway's figures for Prometheus: what is counted as it happens, and what is looked up when somebody asks.

Labels are names from the configuration (graph, stage, port, model, actor), states and codes; never a session, a tenant
or anything else that a client makes up. `docs/observability.md` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from riverrun import __version__
from riverrun.graphs.items import Frame
from riverrun.graphs.observer import Observer
from riverrun.graphs.stage import StepReply, StepRequest
from riverrun.models.base import Chunk, Unavailable

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SHARED = (1, 2, 4, 8, 16, 32)
PARTS = ("queue", "compute", "transport", "whole", "fetch")


class Metrics:
    """All figures of one gateway, in a registry of its own. Safe for any thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second line for every figure, which nobody asked for
        self.registry = of = CollectorRegistry()
        ProcessCollector(registry=of)
        Gauge("riverrun_info", "The service's version, always 1.", ["version"], registry=of).labels(__version__).set(1)
        per = ["graph", "stage"]
        self.chunk = Histogram(
            "riverrun_chunk_seconds",
            "What a step of a stage took: waiting in the actor (queue), in the model (compute), on the way there and "
            "back (transport), all three (whole); and bringing its chunks to the gateway (fetch).",
            [*per, "part"],
            buckets=SECONDS,
            registry=of,
        )
        self.shared = Histogram(
            "riverrun_step_sessions", "Sessions that shared a step of the model.", per, buckets=SHARED, registry=of
        )
        self.chunks = Counter("riverrun_chunks_total", "Chunks made.", per, registry=of)
        self.frames = Counter("riverrun_frames_total", "Frames made.", per, registry=of)
        self.frame = Histogram(
            "riverrun_frame_seconds",
            "What a frame took on its way to a client: made into a message (encode), and written, which a client that "
            "reads slowly makes longer (send).",
            ["graph", "port", "part"],
            buckets=SECONDS,
            registry=of,
        )
        wire = ["graph", "port", "codec"]
        self.sent_frames = Counter("riverrun_sent_frames_total", "Frames written to clients.", wire, registry=of)
        self.sent_bytes = Counter("riverrun_sent_bytes_total", "Bytes of frames written to clients.", wire, registry=of)
        self.played = Counter(
            "riverrun_played_seconds_total", "For so long players had something to play.", ["graph"], registry=of
        )
        self.stalled = Counter(
            "riverrun_stalled_seconds_total",
            "For so long players stood, after their first frame, until another one came.",
            ["graph"],
            registry=of,
        )
        self.moves = Counter("riverrun_moves_total", "Stages of sessions given to another actor.", per, registry=of)
        self.recoveries = Counter(
            "riverrun_recoveries_total", "Stages of sessions that were lost and brought back.", per, registry=of
        )
        self.over = Counter("riverrun_sessions_ended_total", "Sessions that ended.", ["graph", "state"], registry=of)
        self.calls = Counter("riverrun_grpc_calls_total", "gRPC calls that ended.", ["method", "code"], registry=of)

    def count_call(self, method: str, code: str) -> None:
        self.calls.labels(method, code).inc()

    def observer(self, graph: str) -> Observer:
        """For one session of `graph`."""
        return SessionMetrics(self, graph)

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[str]:
        """Answers GET /metrics on a thread of its own; the address. Raises Unavailable if the port is taken."""
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise Unavailable(f"can't serve metrics on {host}:{port}: {error.strerror or error}") from error
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class SessionMetrics(Observer):
    """Adds one session to the figures of its graph. Looks each figure up by its labels once."""

    def __init__(self, metrics: Metrics, graph: str) -> None:
        self._metrics, self._graph = metrics, graph
        self._stages: dict[str, StageMetrics] = {}
        self._wires: dict[tuple[str, str], WireMetrics] = {}

    def answered(self, stage: str, request: StepRequest, reply: StepReply, call_s: float) -> StepReply:
        self._stage(stage).add(reply, call_s)
        return reply

    def fetched(self, stage: str, chunk: Chunk, fetch_s: float) -> Chunk:
        self._stage(stage).fetch.observe(fetch_s)
        return chunk

    def sent(self, frame: Frame, codec: str, size: int, encode_s: float, send_s: float) -> None:
        key = (frame.port, codec)
        if key not in self._wires:
            self._wires[key] = WireMetrics(self._metrics, self._graph, frame.port, codec)
        self._wires[key].add(size, encode_s, send_s)

    def played(self, played_s: float, stalled_s: float) -> None:
        self._metrics.played.labels(self._graph).inc(played_s)
        self._metrics.stalled.labels(self._graph).inc(stalled_s)

    def moved(self, stage: str) -> None:
        self._metrics.moves.labels(self._graph, stage).inc()

    def recovered(self, stage: str) -> None:
        self._metrics.recoveries.labels(self._graph, stage).inc()

    def ended(self, state: str) -> None:
        self._metrics.over.labels(self._graph, state).inc()

    def _stage(self, stage: str) -> StageMetrics:
        if stage not in self._stages:
            self._stages[stage] = StageMetrics(self._metrics, self._graph, stage)
        return self._stages[stage]


class StageMetrics:
    """The figures of one stage of one graph."""

    def __init__(self, metrics: Metrics, graph: str, stage: str) -> None:
        parts = (metrics.chunk.labels(graph, stage, part) for part in PARTS)
        self.queue, self.compute, self.transport, self.whole, self.fetch = parts
        self.shared = metrics.shared.labels(graph, stage)
        self.chunks, self.frames = (figure.labels(graph, stage) for figure in (metrics.chunks, metrics.frames))

    def add(self, reply: StepReply, call_s: float) -> None:
        """A step that took `call_s` from asking to answer."""
        queue, compute = reply.wait_ms / 1000, reply.compute_ms / 1000
        self.queue.observe(queue)
        self.compute.observe(compute)
        self.transport.observe(max(0.0, call_s - queue - compute))
        self.whole.observe(call_s)
        self.shared.observe(reply.batched)
        self.chunks.inc(len(reply.chunks))
        self.frames.inc(sum(chunk.frames for chunk in reply.chunks))


class WireMetrics:
    """The figures of one port of one graph on its way to clients with one codec."""

    def __init__(self, metrics: Metrics, graph: str, port: str, codec: str) -> None:
        self._encode, self._send = (metrics.frame.labels(graph, port, part) for part in ("encode", "send"))
        self._frames, self._bytes = (
            figure.labels(graph, port, codec) for figure in (metrics.sent_frames, metrics.sent_bytes)
        )

    def add(self, size: int, encode_s: float, send_s: float) -> None:
        self._encode.observe(encode_s)
        self._send.observe(send_s)
        self._frames.inc()
        self._bytes.inc(size)
