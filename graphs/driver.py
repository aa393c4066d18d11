"""One stage of one session: takes chunks off its input edges, steps it, puts what it makes on its output edges.

At most one step is in flight. Whether and with what a step is made depends only on what lies on the edges, never on
when it came, so that the same inputs always make the same numbered steps: a stage that says it is ready is stepped
without input; else it gets the one chunk with the lowest pts (the first port, if equal), and only once every port that
has not ended shows one. A source that says it is not ready has ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Protocol

from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.observer import Observer
from riverrun.graphs.ring import OutputRing
from riverrun.graphs.stage import Epoch, InputRefused, StageGone, StageHandle, StepReply, StepRequest
from riverrun.graphs.waiting import Clock, Signal, within
from riverrun.models.base import Chunk, Control, Corrupt, Description

SAMPLES = 100
"""Of so many last steps times are kept."""


class Turn(Enum):
    """What a stage does next."""

    STEP = "step without input"
    PUSH = "push a chunk and step"
    FINISH = "the input has ended: flush"


@dataclass(frozen=True)
class Deadlines:
    """How long a stage may take to answer, seconds of the clock. After `first_s` for the first step: the larger of
    `floor_s` and `factor` times the 99th percentile of the last steps."""

    first_s: float = 120.0
    floor_s: float = 30.0
    factor: float = 20.0

    def of(self, took: Sequence[float]) -> float:
        return max(self.floor_s, self.factor * percentile(took, 0.99)) if took else self.first_s


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank); 0.0 of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


class Session(Protocol):
    """What a driver asks of its runner."""

    clock: Clock
    signal: Signal
    observer: Observer
    sources_ended: bool  # no more is wanted: sources and client inputs end

    @property
    def sources_held(self) -> bool:
        """Paused or parked: nothing new enters the graph."""

    @property
    def session_id(self) -> str: ...

    @property
    def epoch(self) -> Epoch: ...

    def emit(self, ring: OutputRing, chunk: Chunk, release: Callable[[], None]) -> None:
        """A chunk for the clients."""

    async def carried(self, stage: str, controls: Sequence[Control], reply: StepReply, next_chunk: int) -> None:
        """Step `reply.seq` carried these; `next_chunk` is next on the first port. Returns when it is logged."""

    def made(self, stage: str, revision: int, chunk: int, frame: int) -> None:
        """The first chunk of `stage` since it took control `revision`, and the number of its first frame."""

    def consumed(self, edge: EdgeQueue, chunk: Chunk) -> None:
        """A client's chunk was taken by its stage."""

    def refused(self, edge: EdgeQueue, chunk: Chunk, why: InputRefused) -> None:
        """A client's chunk was not taken by its stage, and is left out."""


@dataclass
class StageDriver:
    """inputs: by port, in the order the model names them. outputs, rings: where each output port's chunks go.

    is_stepping: a step has been asked for, and what it makes is not handed on yet."""

    name: str
    handle: StageHandle
    description: Description
    session: Session
    deadlines: Deadlines
    inputs: Mapping[str, EdgeQueue]
    outputs: Mapping[str, Sequence[EdgeQueue]]
    rings: Mapping[str, Sequence[OutputRing]]
    next_seq: int = 0
    held_bytes: int = 0
    finished: bool = False
    is_stepping: bool = False
    controls: deque[Control] = field(default_factory=deque)
    compute_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    wait_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    chunks: dict[str, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ready = not self.inputs
        self._kept: dict[int, int] = {}  # step number -> its chunks that somebody still needs
        self._uncounted: list[int] = []  # revisions taken, with no chunk made since

    async def run(self) -> None:
        """Steps the stage until its input has ended and it is flushed. Raises what the stage raised."""
        while not self.finished:
            turn = await self.session.signal.until(self.turn)
            await self._step(turn)

    def turn(self) -> Turn | None:
        """What to do now; None: wait. What a step takes in depends on the edges and the last reply only."""
        if not self._has_room():
            return None
        if not self.inputs:
            if self.session.sources_ended or not self._ready:
                return Turn.FINISH
            return None if self.session.sources_held else Turn.STEP
        if self._ready:
            return Turn.STEP
        if all(edge.exhausted for edge in self.inputs.values()):
            return Turn.FINISH
        return Turn.PUSH if self._head() else None

    def _has_room(self) -> bool:
        most = self.description.max_chunks
        edges = all(edge.has_room(most) for queues in self.outputs.values() for edge in queues)
        return edges and all(ring.has_room() for rings in self.rings.values() for ring in rings)

    def _head(self) -> EdgeQueue | None:
        open_edges = [edge for edge in self.inputs.values() if not edge.exhausted]
        heads = [(edge.head.pts, i, edge) for i, edge in enumerate(open_edges) if edge.head]
        if len(heads) < len(open_edges):
            return None
        edge = min(heads, key=lambda h: h[:2])[2]
        return None if edge.from_client and self.session.sources_held else edge

    async def _step(self, turn: Turn) -> None:
        edge = self._head() if turn is Turn.PUSH else None
        controls = tuple(self.controls)
        self.controls.clear()
        request = StepRequest(
            session=self.session.session_id,
            epoch=self.session.epoch,
            seq=self.next_seq,
            inputs=(edge.head,) if edge and edge.head else (),
            controls=controls,
            acked=self.acked,
            finish=turn is Turn.FINISH,
        )
        self.is_stepping = True
        try:
            reply = await self._ask(request)
        except InputRefused as refusal:
            if edge is None or not edge.from_client:
                raise
            self._leave_out(edge, controls, refusal)
            return
        self.next_seq += 1
        self.held_bytes, self._ready = reply.held_bytes, reply.ready
        self.compute_ms.append(reply.compute_ms)
        self.wait_ms.append(reply.wait_ms)
        if controls:
            await self.session.carried(self.name, controls, reply, self.next_on_first_port[0])
        if edge:
            self.session.consumed(edge, edge.pop())
        self._hand_on(request, reply)
        self.finished = turn is Turn.FINISH
        if self.finished:
            for queue in (q for queues in self.outputs.values() for q in queues):
                queue.ended = True
        self.is_stepping = False
        self.session.signal.notify()

    def _leave_out(self, edge: EdgeQueue, controls: Sequence[Control], refusal: InputRefused) -> None:
        """A client's chunk that its stage does not take; what came with it waits for the same step, made again."""
        self.controls.extendleft(reversed(controls))
        self.session.refused(edge, edge.pop(), refusal)
        self.is_stepping = False
        self.session.signal.notify()

    async def _ask(self, request: StepRequest) -> StepReply:
        clock, observer = self.session.clock, self.session.observer
        request = observer.asks(self.name, request)
        begun, limit = clock.now(), self.deadlines.of(self.took_s)
        try:
            reply = await within(clock, limit, self.handle.step(request))
        except TimeoutError as error:
            raise StageGone(f"no answer to step {request.seq} for {limit:g} s") from error
        self.took_s.append(clock.now() - begun)
        if reply.seq != request.seq:
            raise Corrupt(f"answered step {reply.seq} when asked for {request.seq}")
        return observer.answered(self.name, request, reply, self.took_s[-1])

    def _hand_on(self, request: StepRequest, reply: StepReply) -> None:
        most = max(Counter(chunk.port for chunk in reply.chunks).values(), default=0)
        if most > self.description.max_chunks and not request.finish:
            raise Corrupt(f"made {most} chunks in a step, said at most {self.description.max_chunks}")
        refused = {revision for revision, _ in reply.rejected}
        self._uncounted += [c.revision for c in request.controls if c.revision not in refused]
        if reply.chunks:
            first = reply.chunks[0]
            for revision in self._uncounted:
                self.session.made(self.name, revision, first.seq, self.frames.get(first.port, 0))
            self._uncounted.clear()
        for chunk in reply.chunks:
            self._check(chunk)
            queues, rings = self.outputs.get(chunk.port, ()), self.rings.get(chunk.port, ())
            self._kept[reply.seq] = self._kept.get(reply.seq, 0) + len(queues) + len(rings)
            for queue in queues:
                queue.put(chunk, partial(self._release, reply.seq))
            for ring in rings:
                self.session.emit(ring, chunk, partial(self._release, reply.seq))
        if not self._kept.get(reply.seq, 1):
            del self._kept[reply.seq]

    def _check(self, chunk: Chunk) -> None:
        expected = self.chunks.get(chunk.port, 0)
        if chunk.port not in {p.name for p in self.description.outputs}:
            raise Corrupt(f"made a chunk on port {chunk.port!r}, which it did not name")
        if chunk.seq != expected:
            raise Corrupt(f"made chunk {chunk.seq} on port {chunk.port!r} where {expected} was next")
        self.chunks[chunk.port] = expected + 1
        self.frames[chunk.port] = self.frames.get(chunk.port, 0) + chunk.frames

    def _release(self, seq: int) -> None:
        self._kept[seq] -= 1
        if not self._kept[seq]:
            del self._kept[seq]

    @property
    def next_on_first_port(self) -> tuple[int, int]:
        """Number of the next chunk on the first output port, and of its first frame."""
        port = self.description.outputs[0].name
        return self.chunks.get(port, 0), self.frames.get(port, 0)

    @property
    def acked(self) -> int:
        """Replies up to this one are needed by nobody any more."""
        return min(self._kept) - 1 if self._kept else self.next_seq - 1

    def check(self) -> None:
        """Raises Corrupt unless the replies asked to be kept are those whose chunks lie on an edge or in a ring."""
        queued = sum(len(queue) for queues in self.outputs.values() for queue in queues)
        lying = queued + sum(len(ring) for rings in self.rings.values() for ring in rings)
        kept = sum(self._kept.values())
        if lying != kept or not all(0 <= seq < self.next_seq for seq in self._kept):
            raise Corrupt(f"stage {self.name!r}: {kept} chunks of its replies are kept, {lying} lie behind it")
