"""Drives one session through the stages of its graph: the sequencer of design §4, and the one writer of its record.

The way of a frame: a `StageDriver` a stage steps its model when there is room behind it -> the chunk goes by reference
onto the `EdgeQueue`s of the next stages, and into an `OutputRing` where it is a graph output -> a `Consumer` finds its
next frame there, has the chunk fetched, and is given one frame against one credit. Nothing is ever dropped in between:
a full queue or a controller without credits stalls the stage before it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from riverrun.graphs.consumer import Consumer, ConsumerSpec, Lane, PortWish, Role
from riverrun.graphs.controls import PROMPT, ControlDesk
from riverrun.graphs.driver import Deadlines, StageDriver, percentile
from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.graph import Endpoint, Graph, validate
from riverrun.graphs.items import Event, EventType, InputAck, Receipt
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.ring import OutputRing
from riverrun.graphs.stage import (
    EncoderHandle,
    Epoch,
    OpenReply,
    OpenRequest,
    StageGone,
    StageHandle,
    StaleEpoch,
    StepFailed,
    StepReply,
    UnknownSession,
)
from riverrun.graphs.status import OutputStatus, RunnerStatus, StageStatus
from riverrun.graphs.waiting import Clock, Signal, within
from riverrun.graphs.wiring import wire
from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Description, Unavailable
from riverrun.store.records import Conflict, Placement, PortMark, SessionRecord, SessionState, Store, advance

log = logging.getLogger(__name__)
T = TypeVar("T")
_WHAT: Mapping[type, str] = {
    StageGone: "is gone",
    UnknownSession: "lost its state",
    StaleEpoch: "was taken over by another gateway",
    StepFailed: "can't go on",
}


class SessionEnded(BadRequest):
    """The session has ended, so this can't be done to it any more."""


@dataclass(frozen=True)
class RunnerConfig:
    """edge_chunks: chunks that may lie on an interior edge, the one being worked on included (at least the producer's
    `max_chunks`). ring_frames: sent but unacked frames kept a port for a reconnect (at least the credits given).
    idle_timeout_s: for records that name none; 0: never. Times are seconds of the clock.
    """

    edge_chunks: int = 2
    ring_frames: int = 64
    idle_timeout_s: float = 300.0
    deadlines: Deadlines = field(default_factory=Deadlines)
    encode_s: float = 60.0
    close_s: float = 10.0
    store_s: float = 2.0
    commit_every_s: float = 5.0
    log_entries: int = 256


class Runner:
    """One session. `open` starts it, `ended` returns when everything it held is freed; all else may be called between.

    graph: checked again against what the stages say on opening. stages, encoders: handles by stage name (encoders: only
    of stages whose model names one). record: as the store has it, state OPENING; the runner goes on writing it.
    """

    def __init__(
        self,
        record: SessionRecord,
        graph: Graph,
        stages: Mapping[str, StageHandle],
        encoders: Mapping[str, EncoderHandle],
        store: Store,
        clock: Clock,
        config: RunnerConfig = RunnerConfig(),
    ):
        self.clock = clock
        self.signal = Signal()
        self.sources_held = False
        self.sources_ended = False
        self._graph = graph
        self._stages = stages
        self._encoders = encoders
        self._config = config
        self._keeper = RecordKeeper(record, store, clock, config.log_entries, config.store_s)
        self._epoch = Epoch(record.epoch, record.nonce)
        self._state = record.state
        self._reason = record.reason
        self._failed_open: BaseException | None = None
        self._stop: tuple[SessionState, str] | None = None
        self._main: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup
        self._desk: ControlDesk
        self._descriptions: dict[str, Description] = {}
        self._drivers: dict[str, StageDriver] = {}
        self._edges: dict[Endpoint, EdgeQueue] = {}
        self._rings: dict[str, OutputRing] = {}
        self._consumers: set[Consumer] = set()
        self._end_pts: int | None = None
        self._last_busy = clock.now()

    # ---- what the gateway calls ----

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def record(self) -> SessionRecord:
        """As last changed here; it may be newer than the store's."""
        return self._keeper.record

    async def open(self) -> None:
        """Opens every stage, prompts encoded; the stream begins. Raises what a stage raised (BadRequest for a
        parameter, Unavailable for no room), with nothing left open."""
        if self._main:
            raise Corrupt(f"session {self.record.id} was opened before")
        self._main = asyncio.create_task(self._run(), name=f"session {self.record.id}")
        try:
            await self.signal.until(lambda: self._state is not SessionState.OPENING)
        except asyncio.CancelledError:
            self._end(SessionState.CLOSED, "given up while it was opening")
            raise
        if self._failed_open:
            await self.ended()
            raise self._failed_open

    def attach(self, spec: ConsumerSpec) -> Consumer:
        """A new reader. A new controller replaces the old one (which gets REPLACED).

        Raises BadRequest (unknown port, credits), Corrupt (the frames after last_received are gone), SessionEnded.
        """
        self._must_live()
        wishes = spec.ports or tuple(PortWish(name, spec.credits) for name in self._rings)
        for wish in wishes:
            if wish.port not in self._rings:
                raise BadRequest(f"no output {wish.port!r}; there are {', '.join(sorted(self._rings))}")
        lanes = {wish.port: Lane(self._rings[wish.port], -1) for wish in wishes}
        for wish in wishes:
            lanes[wish.port].add(wish.credits)
        if spec.role is Role.CONTROLLER:
            self._begin_controller(wishes, lanes)
        consumer = Consumer(spec.role, lanes, self.signal, self._sent, self._detached)
        for lane in lanes.values():
            lane.ring.readers += 1
        self._consumers.add(consumer)
        self._last_busy = self.clock.now()
        self.signal.notify()
        return consumer

    async def control(self, control: Control, stage: str = "") -> None:
        """Takes a control in (without embedding); its receipts go to the controller. stage "": all that take the kind.

        Raises BadRequest (kind, stage, revision), Unavailable (too many are waiting), SessionEnded.
        """
        self._must_live()
        self._desk.take(control, stage)

    async def push(self, port: str, chunk: Chunk) -> None:
        """Takes the next chunk of a graph input (numbered here); returns when there was room for it.

        Raises BadRequest (unknown input, or after `finish`), SessionEnded.
        """
        self._must_live()
        if port not in self._graph.inputs:
            raise BadRequest(f"no input {port!r}; there are {', '.join(sorted(self._graph.inputs)) or 'none'}")
        edge = self._edges[self._graph.inputs[port]]
        await self.signal.until(lambda: edge.ended or self._state.ended or edge.has_room(1))
        self._must_live()
        if edge.ended:
            raise BadRequest(f"input {port!r} has ended, it takes no more")
        edge.push(chunk, self._epoch.number)
        self.signal.notify()

    async def finish(self) -> None:
        """No more input: sources stop, every stage is flushed in order, and when the controller has all frames the
        session is CLOSED. Returns at once."""
        self._must_live()
        self._end_sources("finished")

    async def close(self, reason: str) -> None:
        """Ends the session now; returns when all is freed. Closing an ended session is no error."""
        self._end(SessionState.CLOSED, reason)
        await self.ended()

    async def ended(self) -> SessionRecord:
        """Returns when the session has ended and all is freed."""
        if self._main:
            await asyncio.wait({self._main})
        return self.record

    def status(self) -> RunnerStatus:
        return RunnerStatus(
            session=self.record.id,
            graph=self._graph.name,
            state=self._state,
            reason=self._reason,
            created=self.record.created,
            paused=self.sources_held,
            frames_delivered=sum(ring.sent for ring in self._rings.values()),
            stages=tuple(self._stage_status(spec.name) for spec in self._graph.stages),
            outputs=tuple(self._output_status(name) for name in self._graph.outputs if self._descriptions),
        )

    def check(self) -> None:
        """Raises Corrupt if the books of edges and rings do not add up."""
        for edge in self._edges.values():
            edge.check()
        for ring in self._rings.values():
            ring.check()

    # ---- the life of the session ----

    async def _run(self) -> None:
        """Opens, streams, and frees everything whichever way that ends."""
        work = asyncio.create_task(self._work())
        stop = asyncio.create_task(self.signal.until(lambda: self._stop))
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            ending = self._stop or self._ending(work)
            await self._free(*ending)

    def _ending(self, work: asyncio.Task[None]) -> tuple[SessionState, str]:
        if work.cancelled():
            return SessionState.CLOSED, "the gateway shut down"
        error: BaseException | None = work.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            return SessionState.CLOSED, self._reason or "the stream has ended"
        if self._state is SessionState.OPENING:
            self._failed_open = error
        if isinstance(error, BadRequest | Unavailable | Corrupt):
            return SessionState.FAILED, str(error)
        log.error("session %s: internal error", self.record.id, exc_info=error)
        return SessionState.FAILED, f"internal error: {type(error).__name__}: {error}"

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            await self._open()
            background = [self._tasks.create_task(each) for each in self._background()]
            async with asyncio.TaskGroup() as stages:
                for driver in self._drivers.values():
                    stages.create_task(self._drive(driver))
            if self._state is SessionState.RUNNING:
                self._to(SessionState.DRAINING, "every source has ended")
            await self.signal.until(lambda: all(ring.drained for ring in self._rings.values()))
            for task in background:
                task.cancel()

    def _background(self) -> list[Coroutine[None, None, None]]:
        return [self._desk.receive(), self._desk.encode(), self._commit_often(), self._watch_idle()]

    async def _free(self, state: SessionState, reason: str) -> None:
        """Tells everybody that and why it ended, then closes all stages (opened or not) and writes the record."""
        self._to(state, reason)
        event = Event(EventType.ENDED, reason, failed=state is SessionState.FAILED)
        for consumer in self._consumers:
            consumer.end(event)
        self.signal.notify()
        await asyncio.gather(*(self._close_stage(name) for name in self._stages))
        for ring in self._rings.values():
            ring.close()
        try:
            await self._commit()
        except Conflict as error:
            log.warning("%s", error)

    async def _close_stage(self, name: str) -> None:
        work = self._stages[name].close(self.record.id, self._epoch)
        try:
            await within(self.clock, self._config.close_s, work)
        except (Unavailable, Corrupt, TimeoutError) as error:
            log.warning("session %s: stage %r was not closed: %s", self.record.id, name, error)

    def _to(self, state: SessionState, reason: str = "") -> None:
        self._state, self._reason = advance(self._state, state), reason
        self.signal.notify()

    def _end(self, state: SessionState, reason: str) -> None:
        if not self._stop and not self._state.ended:
            self._stop = (state, reason)
            self.signal.notify()

    def _end_sources(self, reason: str) -> None:
        if not self.sources_ended:
            self.sources_ended = True
            for edge in self._edges.values():
                edge.ended = edge.ended or edge.from_client
            self._to(SessionState.DRAINING, reason)

    def _must_live(self) -> None:
        if self._state.ended:
            raise SessionEnded(f"session {self.record.id} is {self._state.value}: {self._reason}")
        if self._state is SessionState.OPENING:
            raise Unavailable(f"session {self.record.id} is still opening")

    async def _open(self) -> None:
        async with asyncio.TaskGroup() as opening:
            replies = {n: opening.create_task(self._open_stage(n)) for n in self._graph.order()}
        self._descriptions = {name: task.result().description for name, task in replies.items()}
        validate(self._graph, self._descriptions)
        self._rings |= {name: self._ring(name, at) for name, at in self._graph.outputs.items()}
        wiring = wire(
            self._graph,
            self._descriptions,
            self._stages,
            self._rings,
            self,
            self.record.id,
            self._epoch,
            self._config.deadlines,
            self._config.edge_chunks,
        )
        self._edges, self._drivers = dict(wiring.edges), dict(wiring.drivers)
        self._desk = ControlDesk(
            self._descriptions,
            self._encoders,
            self._keeper,
            self.clock,
            self._config.encode_s,
            tell=self._tell_controller,
            hand=self._hand,
            pause=self._pause,
        )
        placement = {n: self._placed(n, task.result()) for n, task in replies.items()}
        self._to(SessionState.RUNNING)
        self._last_busy = self.clock.now()
        await self._commit(placement=placement)

    async def _open_stage(self, name: str) -> OpenReply:
        params = self.record.params.get(name, {})
        embedding = None
        if name in self._encoders and PROMPT in params:
            embedding = await self._in_time(
                self._config.encode_s, self._encoders[name].encode(params[PROMPT]), "encoder"
            )
        request = OpenRequest(self.record.id, self._epoch, params, self.record.seed, embedding)
        return await self._in_time(self._config.deadlines.first_s, self._stages[name].open(request), f"stage {name!r}")

    async def _in_time(self, seconds: float, work: Awaitable[T], who: str) -> T:
        try:
            return await within(self.clock, seconds, work)
        except TimeoutError as error:
            raise StageGone(f"{who} did not answer for {seconds:g} s") from error

    def _placed(self, name: str, reply: OpenReply) -> Placement:
        place = self.record.placement.get(name, Placement(actor="", model=self._graph.stage(name).model))
        return replace(place, incarnation=reply.incarnation)

    def _ring(self, name: str, at: Endpoint) -> OutputRing:
        async def fetch(chunk: Chunk) -> np.ndarray:
            work = self._stages[at.stage].fetch(chunk.data)
            return await self._in_time(self._config.deadlines.floor_s, work, f"stage {at.stage!r} (fetch)")

        return OutputRing(name, self._config.ring_frames, fetch, self._tasks.create_task, self.signal)

    async def _drive(self, driver: StageDriver) -> None:
        try:
            await driver.run()
        except (Unavailable, Corrupt, BadRequest) as error:
            kind = type(error) if isinstance(error, StageGone | StepFailed | UnknownSession | StaleEpoch) else Corrupt
            raise kind(f"stage {driver.name!r}: {_WHAT.get(kind, 'failed')}: {error}") from error

    # ---- what the drivers and consumers call ----

    def emit(self, ring: OutputRing, chunk: Chunk, release: Callable[[], None]) -> None:
        """Puts a chunk before the clients, cut where `max_frames` of the first output end."""
        limit = self.record.max_frames
        is_first = ring is next(iter(self._rings.values()))
        if limit and is_first and self._end_pts is None and ring.next_frame + chunk.frames >= limit:
            self._end_pts = chunk.pts + (limit - ring.next_frame) * chunk.frame_ticks
            self._end_sources(f"all {limit} frames were made")
        if self._end_pts is not None:
            left = math.ceil((self._end_pts - chunk.pts) / chunk.frame_ticks)
            chunk = replace(chunk, frames=min(chunk.frames, max(0, left)))
        ring.put(chunk, release)

    async def carried(self, stage: str, controls: Sequence[Control], reply: StepReply) -> None:
        made = self._drivers[stage].chunks
        await self._desk.carried(stage, controls, reply, next_chunk=max(made.values(), default=0))

    def made(self, stage: str, revision: int, chunk: int, frame: int) -> None:
        self._desk.made(stage, revision, chunk, frame)

    def consumed(self, edge: EdgeQueue, chunk: Chunk) -> None:
        if edge.from_client:
            port = next(name for name, at in self._graph.inputs.items() if at == edge.target)
            self._tell_controller(InputAck(port, chunk.first_frame + chunk.frames - 1))

    def _hand(self, stage: str, control: Control) -> None:
        self._drivers[stage].controls.append(control)

    def _pause(self, pause: bool) -> tuple[int, int]:
        if pause != self.sources_held:
            self.sources_held = pause
            for consumer in self._consumers:
                consumer.tell(Event(EventType.PAUSED if pause else EventType.RESUMED))
            self.signal.notify()
        first = next(iter(self._rings.values()))
        return first.next_chunk, first.next_frame

    def _tell_controller(self, notice: Receipt | InputAck) -> None:
        for consumer in self._consumers:
            if consumer.role is Role.CONTROLLER:
                consumer.tell(notice)
        self.signal.notify()

    def _begin_controller(self, wishes: Sequence[PortWish], lanes: Mapping[str, Lane]) -> None:
        for wish in wishes:
            self._rings[wish.port].begin(wish.last_received, wish.credits)
            lanes[wish.port].position = self._rings[wish.port].cursor
        for old in [c for c in self._consumers if c.role is Role.CONTROLLER]:
            old.end(Event(EventType.REPLACED, "another controller took over"))
            self._detached(old)
        for name, ring in self._rings.items():
            ring.set_lossless(name in lanes)

    def _sent(self) -> None:
        self._last_busy = self.clock.now()

    def _detached(self, consumer: Consumer) -> None:
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            self._last_busy = self.clock.now()
            for port in consumer.ports:
                self._rings[port].readers -= 1

    # ---- in the background ----

    async def _watch_idle(self) -> None:
        """Ends the session when nobody is attached and nothing was delivered for the idle timeout."""
        limit = self.record.idle_timeout_s or self._config.idle_timeout_s
        while limit:
            idle = 0.0 if self._consumers else self.clock.now() - self._last_busy
            if idle >= limit:
                self._end(SessionState.CLOSED, f"idle: nobody was connected for {limit:g} s")
            await self.clock.sleep(max(limit - idle, limit / 100))

    async def _commit_often(self) -> None:
        while True:
            await self.clock.sleep(self._config.commit_every_s)
            await self._commit()

    async def _commit(self, **changes: Any) -> None:
        await self._keeper.commit(
            state=self._state,
            reason=self._reason,
            steps={name: d.next_seq for name, d in self._drivers.items()},
            consumed={str(at): edge.taken for at, edge in self._edges.items()},
            ports={n: PortMark(r.next_chunk, r.next_frame, r.sent, r.acked) for n, r in self._rings.items()},
            **changes,
        )

    # ---- status ----

    def _stage_status(self, name: str) -> StageStatus:
        place = self.record.placement.get(name, Placement(actor="", model=self._graph.stage(name).model))
        driver = self._drivers.get(name)
        times = list(driver.compute_ms) if driver else []
        return StageStatus(
            stage=name,
            model=self._graph.stage(name).model,
            actor=place.actor,
            incarnation=place.incarnation,
            steps=driver.next_seq if driver else 0,
            held_bytes=driver.held_bytes if driver else 0,
            compute_ms_p50=percentile(times, 0.5),
            compute_ms_p99=percentile(times, 0.99),
        )

    def _output_status(self, name: str) -> OutputStatus:
        at = self._graph.outputs[name]
        about = self._descriptions[at.stage]
        return OutputStatus(
            port=name,
            kind=next(p.kind for p in about.outputs if p.name == at.port),
            fps=about.fps,
            frame_shape=about.frame_shape,
            chunk_frames=about.chunk_frames,
            first_frames=about.chunk_frames if about.first_frames is None else about.first_frames,
        )
