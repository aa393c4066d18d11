"""Who watches a gateway's sessions: metrics, traces, both or nobody, as the configuration says."""

from __future__ import annotations

from collections.abc import Sequence

from riverrun.actors.metrics import Metrics
from riverrun.actors.tracing import SessionTrace, Spans
from riverrun.graphs.graph import Graph
from riverrun.graphs.items import Frame
from riverrun.graphs.observer import SILENT, Observer
from riverrun.graphs.stage import StepReply, StepRequest
from riverrun.models.base import Chunk


class Watch:
    """metrics, spans: None where nobody wants them. every: see `TraceConfig`."""

    def __init__(self, metrics: Metrics | None = None, spans: Spans | None = None, every: int = 0) -> None:
        self._metrics, self._spans, self._every = metrics, spans, every

    def observer(self, graph: Graph, session: str) -> Observer:
        """For one session."""
        found: list[Observer] = []
        if self._spans:
            found.append(SessionTrace(self._spans, graph, session, self._every))
        if self._metrics:
            found.append(self._metrics.observer(graph.name))
        if len(found) > 1:
            return Several(found)
        return found[0] if found else SILENT


class Several(Observer):
    """Tells each of them, in order; what one returns goes to the next."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._all = observers

    def asks(self, stage: str, request: StepRequest) -> StepRequest:
        for each in self._all:
            request = each.asks(stage, request)
        return request

    def answered(self, stage: str, request: StepRequest, reply: StepReply, call_s: float) -> StepReply:
        for each in self._all:
            reply = each.answered(stage, request, reply, call_s)
        return reply

    def fetched(self, stage: str, chunk: Chunk, fetch_s: float) -> Chunk:
        for each in self._all:
            chunk = each.fetched(stage, chunk, fetch_s)
        return chunk

    def sent(self, frame: Frame, codec: str, size: int, encode_s: float, send_s: float) -> None:
        for each in self._all:
            each.sent(frame, codec, size, encode_s, send_s)

    def played(self, played_s: float, stalled_s: float) -> None:
        for each in self._all:
            each.played(played_s, stalled_s)

    def moved(self, stage: str) -> None:
        for each in self._all:
            each.moved(stage)

    def recovered(self, stage: str) -> None:
        for each in self._all:
            each.recovered(stage)

    def wanted(self, trace: str) -> None:
        for each in self._all:
            each.wanted(trace)

    def ended(self, state: str) -> None:
        for each in self._all:
            each.ended(state)
