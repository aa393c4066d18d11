"""One trace of a chunk through all stages: OpenTelemetry spans, each the child of what caused it.

    runner.step (gen) ── actor.queue, model.step
      └─ runner.step (next stage) ── actor.queue, model.step
           └─ runner.fetch ── gateway.encode, gateway.send (one each a frame)

The extra `otel` is needed for it, and imported only where an endpoint is configured. A chunk is traced from a stage
that nothing in the graph feeds, through every stage that takes it, to the chunks those make of it. Where a stage makes
nothing of it yet (it needs more frames first), its next chunks go on with the trace.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from riverrun.configs.telemetry import TraceConfig
from riverrun.graphs.graph import Graph
from riverrun.graphs.items import Frame
from riverrun.graphs.observer import Observer
from riverrun.graphs.stage import StepReply, StepRequest
from riverrun.models.base import BadRequest, Chunk

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span, TracerProvider

EXPORT_MS = 1000


class Spans:
    """Spans of one process, handed to the exporter of `provider`. Times are nanoseconds since 1970."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._tracer, self._trace = provider, provider.get_tracer("riverrun"), trace
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, parent: str, start_ns: int | None = None, **about: Any) -> Span:
        """parent: a traceparent; "" begins a trace. about: becomes attributes `riverrun.<name>`."""
        within = self._propagator.extract({"traceparent": parent})
        attributes = {f"riverrun.{key}": value for key, value in about.items()}
        return self._tracer.start_span(name, within, start_time=start_ns, attributes=attributes)  # type: ignore[return-value]

    def note(self, name: str, parent: str, end_ns: int, took_s: float, **about: Any) -> str:
        """A span of the past; its traceparent."""
        span = self.begin(name, parent, end_ns - int(took_s * 1e9), **about)
        span.end(end_ns)
        return self.traceparent(span)

    def note_step(self, request: StepRequest, reply: StepReply, arrived_ns: int, incarnation: str) -> None:
        """What a stage actor did with a request: it waited, then the model ran."""
        session, _, stage = request.session.partition("/")
        about: dict[str, Any] = {"session": session, "stage": stage, "seq": request.seq, "incarnation": incarnation}
        began = arrived_ns + int(reply.wait_ms * 1e6)
        self.note("actor.queue", request.trace, began, reply.wait_ms / 1000, **about)
        ended = began + int(reply.compute_ms * 1e6)
        self.note("model.step", request.trace, ended, reply.compute_ms / 1000, batched=reply.batched, **about)

    def traceparent(self, span: Span) -> str:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier["traceparent"]

    def close(self) -> None:
        """Hands over what has not gone yet."""
        self._provider.shutdown()


def spans_to(config: TraceConfig, process: str) -> Spans | None:
    """Spans sent to the configured endpoint, in batches off the hot path; None where tracing is off.

    process: "gateway" or an actor's name. Raises BadRequest if the extra is not installed.
    """
    if not config.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise BadRequest(f"trace.endpoint needs the extra otel: pip install 'riverrun[otel]' ({error})") from error
    resource = Resource.create({"service.name": "riverrun", "riverrun.process": process})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(config.endpoint, insecure=not config.endpoint.startswith("https"), timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_MS))
    return Spans(provider)


class SessionTrace(Observer):
    """One session's. every: one chunk in so many, of each stage that nothing feeds; 0: only those asked for."""

    def __init__(self, spans: Spans, graph: Graph, session: str, every: int) -> None:
        self._spans, self._every = spans, every
        self._about = {"graph": graph.name, "session": session}
        fed = {edge.target.stage for edge in graph.edges}
        self._entries = {stage.name for stage in graph.stages if stage.name not in fed}
        self._wanted = self._asked = ""
        self._running: dict[str, Span] = {}
        self._waiting: dict[str, str] = {}  # by stage: the trace it took in and has made no chunk of yet

    def asks(self, stage: str, request: StepRequest) -> StepRequest:
        parent = next((chunk.trace for chunk in request.inputs if chunk.trace), "")
        if not parent:
            if request.finish or not self._begins(stage, request.seq):
                return request
            parent, self._wanted = self._wanted, ""
        about: dict[str, Any] = {"stage": stage, "seq": request.seq, "epoch": request.epoch.number, **self._about}
        self._running[stage] = span = self._spans.begin("runner.step", parent, **about)
        return replace(request, trace=self._spans.traceparent(span))

    def answered(self, stage: str, request: StepRequest, reply: StepReply, call_s: float) -> StepReply:
        if request.trace:
            self._running.pop(stage).end()
            self._waiting[stage] = request.trace
        if not reply.chunks or stage not in self._waiting:
            return reply
        trace = self._waiting.pop(stage)
        return replace(reply, chunks=tuple(replace(chunk, trace=trace) for chunk in reply.chunks))

    def fetched(self, stage: str, chunk: Chunk, fetch_s: float) -> Chunk:
        if not chunk.trace:
            return chunk
        about: dict[str, Any] = {"stage": stage, "chunk": chunk.seq, **self._about}
        return replace(chunk, trace=self._spans.note("runner.fetch", chunk.trace, time.time_ns(), fetch_s, **about))

    def sent(self, frame: Frame, codec: str, size: int, encode_s: float, send_s: float) -> None:
        if not frame.trace:
            return
        now = time.time_ns()
        about: dict[str, Any] = {"port": frame.port, "frame": frame.number, **self._about}
        self._spans.note("gateway.encode", frame.trace, now - int(send_s * 1e9), encode_s, codec=codec, **about)
        self._spans.note("gateway.send", frame.trace, now, send_s, bytes=size, **about)

    def wanted(self, trace: str) -> None:
        if trace != self._asked:  # a client asks at its session's creation, and again as it connects
            self._wanted = self._asked = trace

    def _begins(self, stage: str, seq: int) -> bool:
        due = bool(self._every) and seq % self._every == 0
        return stage in self._entries and (due or bool(self._wanted))
