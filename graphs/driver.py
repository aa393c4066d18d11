"""One stage of one session: takes chunks off its input edges, steps it, puts what it makes on its output edges.

A stage that is lost is brought back at an earlier step (`rewind`), and its steps from there are made again with what
they carried before; what comes out a second time only fills the places of what was lost. There is no other replay.

At most one step is in flight. Whether and with what a step is made depends only on what lies on the edges, never on
when it came, so that the same inputs always make the same numbered steps: a stage that says it is ready is stepped
without input; else it gets the one chunk with the lowest pts (the first port, if equal), and only once every port that
has not ended shows one. A source that says it is not ready has ended; one is also what takes a single chunk on each of
its ports (`Port.once`), when it has them.
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
from riverrun.graphs.script import Script
from riverrun.graphs.stage import (
    Epoch,
    InputLost,
    InputRefused,
    SaveOrder,
    StageGone,
    StageHandle,
    StepFailed,
    StepReply,
    StepRequest,
    UnknownSession,
)
from riverrun.graphs.steplog import StepLog
from riverrun.graphs.waiting import Clock, Signal, within
from riverrun.models.base import Chunk, Control, Corrupt, Description
from riverrun.store.checkpoints import Mark

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
    `floor_s` and `factor` times the 99th percentile of the last steps. That never exceeds `first_s`, unless steps take
    so long that they need `least` times their percentile: one answer that was late would cost minutes once one is lost.
    """

    first_s: float = 120.0
    floor_s: float = 30.0
    factor: float = 20.0
    least: float = 3.0

    def of(self, took: Sequence[float]) -> float:
        if not took:
            return self.first_s
        slowest = percentile(took, 0.99)
        return max(self.floor_s, min(self.factor * slowest, max(self.first_s, self.least * slowest)))


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
    def is_behind(self) -> bool:
        """Whether something is still to be made again that others are known to have had under the runner before: until
        then every step must be what it was."""

    @property
    def slack_s(self) -> float | None:
        """Media made and not played, seconds; None while nobody plays."""

    @property
    def session_id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def epoch(self) -> Epoch: ...

    def emit(self, ring: OutputRing, chunk: Chunk, release: Callable[[], None]) -> bool:
        """A chunk for the clients; whether it is new to them."""

    async def bring_back(self, driver: StageDriver, fault: Exception) -> None:
        """Puts the stage on its feet again and calls `rewind`. Raises `fault`, or why that can't be done."""

    def save_due(self, driver: StageDriver) -> SaveOrder | None:
        """The checkpoint to be taken with the step about to be made, if any."""

    def save_begun(self, driver: StageDriver, seq: int) -> None:
        """Step `seq` was made, and its checkpoint is being written."""

    async def ends(self, driver: StageDriver, seq: int) -> None:
        """A source is flushed by step `seq`. Returns when it is logged."""

    async def decided(self, driver: StageDriver, reply: StepReply) -> None:
        """A step decided something that a replay must decide alike. Returns when it is logged."""

    def input_lost(self, edge: EdgeQueue, chunk: Chunk, error: InputLost) -> None:
        """The head of an edge, which was `chunk`, can't be read any more: its maker must make it again."""

    async def carried(self, stage: str, controls: Sequence[Control], reply: StepReply, next_chunk: int) -> None:
        """Step `reply.seq` carried these; `next_chunk` is next on the first port. Returns when it is logged."""

    def made(self, stage: str, revision: int, chunk: int, frame: int) -> None:
        """The first chunk of `stage` since it took control `revision`, and the number of its first frame."""

    def consumed(self, driver: StageDriver) -> None:
        """The stage has taken a chunk."""

    def refused(self, edge: EdgeQueue, chunk: Chunk, why: InputRefused) -> None:
        """A client's chunk was not taken by its stage, and is left out."""


@dataclass
class StageDriver:
    """inputs: by port, in the order the model names them. outputs, rings: where each output port's chunks go.

    is_stepping: a step has been asked for, and what it makes is not handed on yet. answered_at: when the last one was
    made. is_held, is_moving: no step may begin. log: what its steps carried. script: controls that it puts into steps
    by itself, at their frames. life: how often it was put on an actor. fault: why it must be brought back before it can
    go on.
    """

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
    answered_at: float = 0.0
    is_held: bool = False
    is_moving: bool = False
    life: int = 0
    fault: Exception | None = None
    log: StepLog = field(default_factory=StepLog)
    controls: deque[Control] = field(default_factory=deque)
    script: Script = field(default_factory=Script)
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
        """Steps the stage until its input has ended and it is flushed, and makes again what is lost, until cancelled.
        Raises what the stage raised and could not be mended."""
        while True:
            await self.session.signal.until(lambda: self._is_lost or self.turn())
            if self._is_lost and self.fault:
                await self.session.bring_back(self, self.fault)
            elif turn := self.turn():
                await self._try(turn)

    @property
    def _is_lost(self) -> bool:
        """Whether it must be brought back now; where it is being moved, when that is over."""
        return self.fault is not None and not self.is_moving

    def turn(self) -> Turn | None:
        """What to do now; None: wait. What a step takes in depends on the edges and the last reply only."""
        if self.is_held or self.is_moving or self.finished or not (self.is_repeating or self._has_room()):
            return None
        if self._is_source:
            return self._source_turn()
        if self._ready:
            return Turn.STEP
        if all(edge.exhausted for edge in self.inputs.values()):
            return Turn.FINISH
        return Turn.PUSH if self._head() else None

    @property
    def _is_source(self) -> bool:
        """Whether it takes nothing in, any more: it is stepped for as long as frames are wanted."""
        return all(edge.spent for edge in self.inputs.values())

    def _source_turn(self) -> Turn | None:
        at_end = self.log.ends_at is not None and self.next_seq >= self.log.ends_at
        if at_end or not self._ready:
            return Turn.FINISH
        if self.is_repeating or self.log.ends_at is not None:
            return Turn.STEP
        if self.session.sources_ended:
            return Turn.STEP if self.session.is_behind else Turn.FINISH
        return None if self.session.sources_held else Turn.STEP

    def lose(self, why: Exception) -> None:
        """It must be brought back before it can go on."""
        if self.fault is None:
            self.fault = why
            self.session.signal.notify()

    @property
    def is_repeating(self) -> bool:
        """Whether the next step was made before."""
        return self.next_seq < self.log.done

    def rewind(self, handle: StageHandle, mark: Mark) -> None:
        """The stage stands at `mark`, on `handle`: its steps from there are made again. Raises Corrupt."""
        for port, edge in self.inputs.items():
            edge.rewind(mark.consumed.get(port, 0), mark.consumed_frames.get(port, 0))
        self.handle, self.fault = handle, None
        self.next_seq, self.finished = mark.seq, mark.flushed
        self._ready = mark.ready if mark.seq else not self.inputs
        self.session.signal.notify()

    def resume(self, mark: Mark, kept: Sequence[StepReply]) -> None:
        """Goes on where a State that lives stands: `kept` are its replies that somebody may still want."""
        self.next_seq = self.log.done = mark.seq
        self._ready, self.finished = mark.ready if mark.seq else not self.inputs, mark.flushed
        for chunk in (chunk for reply in kept for chunk in reply.chunks):
            self.chunks.setdefault(chunk.port, chunk.seq)
            self.frames.setdefault(chunk.port, chunk.first_frame)
        for reply in kept:
            self._hand_on(reply)
        self.begin_at(mark)
        if self.finished:
            self._end_outputs()

    async def log_decisions(self, kept: Sequence[StepReply]) -> None:
        """Of replies that the runner before may not have come to log."""
        for reply in kept:
            if reply.decisions is not None and reply.seq >= self.log.base and reply.seq not in self.log.decisions:
                self.log.decisions[reply.seq] = reply.decisions
                await self.session.decided(self, reply)

    def begin_at(self, mark: Mark) -> None:
        """What it has made so far, as others have counted it."""
        self.chunks, self.frames = dict(mark.chunks), dict(mark.frames)

    def _has_room(self) -> bool:
        most = self.description.max_chunks
        edges = all(e.has_room(most, self.chunks.get(p, 0)) for p, queues in self.outputs.items() for e in queues)
        return edges and all(ring.has_room() for rings in self.rings.values() for ring in rings)

    def _head(self) -> EdgeQueue | None:
        open_edges = [edge for edge in self.inputs.values() if not edge.exhausted]
        heads = [(edge.head.pts, i, edge) for i, edge in enumerate(open_edges) if edge.head]
        if len(heads) < len(open_edges):
            return None
        edge = min(heads, key=lambda h: h[:2])[2]
        return None if edge.from_client and self.session.sources_held and not self.is_repeating else edge

    async def _try(self, turn: Turn) -> None:
        """A step, or the fault that kept it from being made."""
        self.is_stepping = True
        try:
            await self._step(turn)
        except (StageGone, UnknownSession, StepFailed) as error:
            self.fault = error
        finally:
            self.is_stepping = False
            self.session.signal.notify()

    async def _step(self, turn: Turn) -> None:
        edge = self._head() if turn is Turn.PUSH else None
        if turn is Turn.FINISH and self._is_source and self.log.ends_at is None:
            self.log.ends_at = self.next_seq
            await self.session.ends(self, self.next_seq)
        request = self._request(turn, edge)
        try:
            reply = await self._ask(request)
        except InputLost as error:
            if edge is None:
                raise
            self.session.input_lost(edge, request.inputs[0], error)
        except InputRefused as refusal:
            if edge is None or not edge.from_client:
                raise
            is_news = not edge.is_repeating
            chunk = edge.pop()
            edge.refused += is_news
            if is_news:
                self.session.refused(edge, chunk, refusal)
            self.session.consumed(self)
        else:
            await self._take(request, reply, edge)

    def _request(self, turn: Turn, edge: EdgeQueue | None) -> StepRequest:
        seq, ins = self.next_seq, self.inputs.items()
        if not self.is_repeating:
            self.controls.extend(self.script.due(self.next_on_first_port[1]))
        return StepRequest(
            session=self.session.session_id,
            epoch=self.session.epoch,
            seq=seq,
            inputs=(edge.head,) if edge is not None and edge.head else (),
            controls=self.log.carry(seq, self._new_controls()),
            acked=min(self.acked, seq - 1),  # the reply to this one is wanted, if by nobody but us
            finish=turn is Turn.FINISH,
            save=None if self.is_repeating or turn is Turn.FINISH else self.session.save_due(self),
            forced=self.log.decisions.get(seq),
            taken={port: each.taken + (each is edge) for port, each in ins},
            taken_frames={port: each.frames_with_head if each is edge else each.taken_frames for port, each in ins},
            lead_s=self.session.slack_s,
            tenant=self.session.tenant,
        )

    def _new_controls(self) -> deque[Control]:
        return deque() if self.controls and self.session.is_behind else self.controls

    async def _take(self, request: StepRequest, reply: StepReply, edge: EdgeQueue | None) -> None:
        """A step was made: logged first, where it must be, then handed on."""
        self.held_bytes, self._ready = reply.held_bytes, reply.ready
        self.compute_ms.append(reply.compute_ms)
        self.wait_ms.append(reply.wait_ms)
        self.answered_at = self.session.clock.now()
        if not self.is_repeating:
            if reply.decisions is not None:
                self.log.decisions[reply.seq] = reply.decisions
                await self.session.decided(self, reply)
            if request.controls:
                await self.session.carried(self.name, request.controls, reply, self.next_on_first_port[0])
                self.script.check(reply.rejected)
            self._count_controls(request, reply)
        if edge is not None:
            edge.pop()
        self._hand_on(reply, is_flush=request.finish)
        self.next_seq += 1
        self.log.done = max(self.log.done, self.next_seq)
        self.finished = request.finish
        if self.finished:
            self._end_outputs()
        if edge is not None:
            self.session.consumed(self)
        if request.save:
            self.session.save_begun(self, reply.seq)

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
        asked = tuple(control.revision for control in request.controls)
        if reply.given != asked:  # a request to an earlier life of the State came late, and has moved it on
            raise UnknownSession(f"step {request.seq} was made with controls {reply.given} when asked for {asked}")
        return observer.answered(self.name, request, reply, self.took_s[-1])

    def _count_controls(self, request: StepRequest, reply: StepReply) -> None:
        """The first chunk made since it took a control says from where that is in force."""
        refused = {revision for revision, _ in reply.rejected}
        self._uncounted += [c.revision for c in request.controls if c.revision not in refused]
        if reply.chunks:
            first = reply.chunks[0]
            for revision in self._uncounted:
                self.session.made(self.name, revision, first.seq, self.frames.get(first.port, 0))
            self._uncounted.clear()

    def _hand_on(self, reply: StepReply, is_flush: bool = True) -> None:
        most = max(Counter(chunk.port for chunk in reply.chunks).values(), default=0)
        if most > self.description.max_chunks and not is_flush:
            raise Corrupt(f"made {most} chunks in a step, said at most {self.description.max_chunks}")
        for chunk in reply.chunks:
            self._count(chunk)
            release = partial(self._release, reply.seq)
            for queue in self.outputs.get(chunk.port, ()):
                self._keep(reply.seq)
                if not queue.put(chunk, release):
                    release()
            for ring in self.rings.get(chunk.port, ()):
                self._keep(reply.seq)
                if not self.session.emit(ring, chunk, release):
                    release()

    def _count(self, chunk: Chunk) -> None:
        """Chunks come without gaps; those of a repeated step have been counted."""
        due = self.chunks.get(chunk.port, 0)
        if chunk.port not in {p.name for p in self.description.outputs}:
            raise Corrupt(f"made a chunk on port {chunk.port!r}, which it did not name")
        if chunk.seq > due or (chunk.seq < due and not self.is_repeating):
            raise Corrupt(f"made chunk {chunk.seq} on port {chunk.port!r} where {due} was next")
        if chunk.seq == due:
            self.chunks[chunk.port] = due + 1
            self.frames[chunk.port] = self.frames.get(chunk.port, 0) + chunk.frames

    def _end_outputs(self) -> None:
        """Nothing more will come out."""
        for queue in (q for queues in self.outputs.values() for q in queues):
            queue.ended = True

    def _keep(self, seq: int) -> None:
        self._kept[seq] = self._kept.get(seq, 0) + 1

    def _release(self, seq: int) -> None:
        self._kept[seq] -= 1
        if not self._kept[seq]:
            del self._kept[seq]

    @property
    def acked(self) -> int:
        """Replies up to this one are needed by nobody any more."""
        return min(self._kept) - 1 if self._kept else self.log.done - 1

    def check(self) -> None:
        """Raises Corrupt unless the replies asked to be kept are those whose chunks lie on an edge or in a ring."""
        lying = sum(edge.held for queues in self.outputs.values() for edge in queues)
        lying += sum(ring.held for rings in self.rings.values() for ring in rings)
        kept = sum(self._kept.values())
        if lying != kept or not all(0 <= seq < self.log.done for seq in self._kept):
            raise Corrupt(f"stage {self.name!r}: {kept} chunks of its replies are kept, {lying} lie behind it")

    @property
    def next_on_first_port(self) -> tuple[int, int]:
        """Number of the next chunk on the first output port, and of its first frame."""
        port = self.description.outputs[0].name
        return self.chunks.get(port, 0), self.frames.get(port, 0)
