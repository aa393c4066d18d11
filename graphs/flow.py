"""An opened session's graph with everything that lies in it: drivers, edges, rings, controls, and who reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from riverrun.graphs.audience import Audience
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import Consumer, ConsumerSpec, Role
from riverrun.graphs.controls import ControlDesk
from riverrun.graphs.driver import StageDriver
from riverrun.graphs.durability import Durability
from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.entry import check_input
from riverrun.graphs.graph import Endpoint, Graph
from riverrun.graphs.items import Event, EventType, InputAck, InputRefusal
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.observer import Observer
from riverrun.graphs.opening import answer
from riverrun.graphs.pacer import Pacer
from riverrun.graphs.recovery import NoPlace, Recovery
from riverrun.graphs.ring import OutputRing, frame_bytes
from riverrun.graphs.saver import Saver
from riverrun.graphs.script import Script, ScriptRefused
from riverrun.graphs.stage import (
    ActorDied,
    DiedWith,
    EncoderHandle,
    Epoch,
    InputLost,
    InputRefused,
    Lost,
    Mismatch,
    SaveOrder,
    StageGone,
    StageHandle,
    StaleEpoch,
    StepFailed,
    StepReply,
    UnknownSession,
)
from riverrun.graphs.waiting import Clock, Signal, within
from riverrun.graphs.wiring import wire
from riverrun.models.base import TICKS_PER_SECOND, BadRequest, Chunk, Control, Corrupt, Description, Port, Unavailable
from riverrun.store.records import DECIDED, ENDS, Conflict, ControlEntry, PortMark

T = TypeVar("T")
_WHAT: Mapping[type, str] = {
    StageGone: "is gone",
    UnknownSession: "lost its state",
    StaleEpoch: "was taken over by another gateway",
    StepFailed: "can't go on",
    Mismatch: "can't go on",
    Corrupt: "failed",
}


class Flow:
    """What the stage drivers call is here (see `driver.Session`), and what moves between them.

    on_end: the sources were told to stop, with the reason. on_fault: something in the background failed.
    """

    def __init__(
        self,
        graph: Graph,
        descriptions: Mapping[str, Description],
        stages: Mapping[str, StageHandle],
        encoders: Mapping[str, EncoderHandle],
        keeper: RecordKeeper,
        clock: Clock,
        signal: Signal,
        config: RunnerConfig,
        observer: Observer,
        on_end: Callable[[str], None],
        on_fault: Callable[[BaseException], None],
        durability: Durability | None = None,
    ):
        self.clock = clock
        self.signal = signal
        self.observer = observer
        self.session_id = keeper.record.id
        self.epoch = Epoch(keeper.record.epoch, keeper.record.nonce)
        self.is_paused = self._is_stopped = False
        self.sources_ended = False
        self.graph = graph
        self._keeper = keeper
        self.tenant = keeper.record.tenant
        self._fetch_s = config.deadlines.floor_s
        self._max_frames = keeper.record.max_frames
        self._end_pts = self._foreseen_end(descriptions)
        self._input_ports = {name: _port(descriptions, at) for name, at in graph.inputs.items()}
        self._on_end = on_end
        self._on_fault = on_fault
        self._tasks: set[asyncio.Task[None]] = set()
        self._moves: set[asyncio.Task[Any]] = set()
        self._leaves: set[asyncio.Task[None]] = set()
        self._close_s = config.close_s
        keep = config.ring_frames
        rings = {name: self._ring(name, at, keep, descriptions[at.stage]) for name, at in graph.outputs.items()}
        self.audience = Audience(rings, clock, signal, observer)
        self.edges, self.drivers = wire(graph, descriptions, stages, rings, self, config.edge_chunks, config.deadlines)
        sources = [driver for driver in self.drivers.values() if not driver.inputs]
        self.pacer = Pacer(self.audience, sources, keeper.record.lead_s, clock)
        self.desk = ControlDesk(
            descriptions,
            encoders,
            keeper,
            clock,
            config.encode_s,
            tell=self.audience.tell_controller,
            hand=self._hand,
            pause=self._pause,
        )
        self.saver: Saver | None = None
        self.recovery: Recovery | None = None
        if durability:
            self._protect(durability, encoders, config)

    def _protect(self, durability: Durability, encoders: Mapping[str, EncoderHandle], config: RunnerConfig) -> None:
        self._keeper.is_replayed = True
        self.saver = Saver(
            self._keeper,
            self.epoch,
            durability.blobs,
            self.clock,
            config.cadence,
            config.grace_s,
            self.spawn,
            self._ack_input,
        )
        self.saver.follow(self.drivers)
        self.recovery = Recovery(
            self.graph,
            self._keeper,
            self.epoch,
            durability.placer,
            encoders,
            self.saver,
            self.clock,
            durability.gate,
            config.recovery,
            config.encode_s,
            self.audience.tell_all,
            lambda: self.pacer.lead_s,
            self._leave_behind,
        )

    def follow_script(self, scripts: Mapping[str, Script]) -> None:
        """Before the first step: what each stage is given at which frames."""
        for name, script in scripts.items():
            self.drivers[name].script = script

    def drives(self) -> list[Coroutine[Any, Any, None]]:
        """One a stage, to be run side by side until cancelled. They raise what a stage raised, naming the stage."""
        relief = [self.saver.relieve()] if self.saver and self.graph.inputs else []
        return [*(self._drive(driver) for driver in self.drivers.values()), *relief]

    @property
    def is_over(self) -> bool:
        """Whether every stage has ended and is flushed."""
        return all(driver.finished for driver in self.drivers.values())

    @property
    def has_all_frames(self) -> bool:
        """Whether the first output has the frames that the session was opened for."""
        return bool(self._max_frames) and self.audience.first.next_frame >= self._max_frames

    def cut(self, ring: OutputRing, frames: int) -> int:
        """How many of so many frames that a stage has made are the session's."""
        return min(frames, self._max_frames) if self._max_frames and ring is self.audience.first else frames

    async def hold(self, hold: bool) -> None:
        """Returns when no step is in hand and none will begin, or the session is over; or lets them go on."""
        for driver in self.drivers.values():
            driver.is_held = hold
        self.signal.notify()
        if hold:
            await self.signal.until(
                lambda: (
                    self._is_stopped or not any(d.is_stepping or d.is_moving or d.fault for d in self.drivers.values())
                )
            )

    async def push(self, port: str, chunk: Chunk, gone: Callable[[], bool]) -> None:
        """See `Runner.push`; returns without having taken the chunk when `gone()`."""
        if port not in self.graph.inputs:
            raise BadRequest(f"no input {port!r}; there are {', '.join(sorted(self.graph.inputs)) or 'none'}")
        if chunk.frames < 1:
            raise BadRequest(f"a chunk for input {port!r} needs at least one frame, got {chunk.frames}")
        edge = self.edges[self.graph.inputs[port]]
        if edge.once and edge.due_frame > edge.refused:
            raise BadRequest(f"input {port!r} takes one frame of a stream, and has it")
        check_input(port, self._input_ports[port], chunk.data, edge.due_frame)
        await self.signal.until(lambda: edge.ended or gone() or edge.takes_push)
        if edge.ended and not self.has_all_frames:  # then its client could not know yet, and is not at fault
            raise BadRequest(f"input {port!r} has ended, it takes no more")
        if not (edge.ended or gone()):
            edge.push(chunk, self.epoch.number)
            self.signal.notify()

    def attach(self, spec: ConsumerSpec) -> Consumer:
        """See `Runner.attach`. A controller is told again which input is acked: it may have missed that, and would send
        no more where it holds all that it may."""
        self._check_received(spec)
        consumer = self.audience.attach(spec)
        for edge in self.edges.values():
            if edge.from_client and edge.base_frame and spec.role is Role.CONTROLLER:
                self._ack_input(edge)
        return consumer

    def end_sources(self, reason: str) -> None:
        """Nothing new enters the graph; what is in it is flushed."""
        self.sources_ended = True
        for edge in self.edges.values():
            edge.ended = edge.ended or edge.from_client
        self._on_end(reason)
        self.signal.notify()

    async def unpark(self) -> None:
        """Wakes the sources when the player has come close enough. Runs until cancelled."""
        while True:
            await self.clock.sleep(await self.signal.until(self.pacer.until_known))
            self.signal.notify()

    @property
    def sources_held(self) -> bool:
        """Whether nothing new enters the graph."""
        return self.is_paused or self.is_parked

    @property
    def is_parked(self) -> bool:
        """Whether the session is further ahead of its controller than it may be, or rests between two chunks; what it
        made beyond its last frame is never played."""
        return self.pacer.parked_s > 0 and not self.has_all_frames

    @property
    def slack_s(self) -> float | None:
        """See `Pacer`."""
        return self.pacer.slack_s

    async def moving(self, move: Coroutine[Any, Any, T]) -> T:
        """What a move of a stage gives; at the session's end it is called off. Raises what it raises, Unavailable."""
        task = asyncio.ensure_future(move)
        self._moves.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if (here := asyncio.current_task()) and here.cancelling():
                raise
            raise Unavailable(f"session {self.session_id} ended while it was moved") from None
        finally:
            self._moves.discard(task)

    async def stop(self) -> None:
        """The session is over: nothing is moved, fetched or saved any more, what was put on other actors is freed, and
        what lies between stages is let go."""
        self._is_stopped = True
        self.signal.notify()
        for task in (tasks := [*self._moves, *self._tasks]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if leaves := list(self._leaves):  # last: what was called off leaves something, too
            with suppress(TimeoutError):
                await within(self.clock, self._close_s, asyncio.wait(leaves))
            for task in leaves:
                task.cancel()
            await asyncio.gather(*leaves, return_exceptions=True)
        for edge in self.edges.values():
            edge.clear()

    def marks(self) -> dict[str, Any]:
        """How far everything has come, as fields of the session record."""
        rings = self.audience.rings.items()
        return {
            "steps": {name: driver.next_seq for name, driver in self.drivers.items()},
            "consumed": {str(at): edge.taken for at, edge in self.edges.items()},
            "forgotten": {str(at): edge.base for at, edge in self.edges.items()},
            "ports": {name: PortMark(r.next_chunk, r.next_frame, r.sent, r.acked, r.lossless) for name, r in rings},
        }

    def check(self) -> None:
        """Raises Corrupt if the books of edges, drivers, rings, readers and controls do not add up."""
        for edge in self.edges.values():
            edge.check()
        for driver in self.drivers.values():
            driver.check()
        self.audience.check()
        self.desk.check()

    def check_stopped(self) -> None:
        """Raises Corrupt if something is still being done, or lies between stages."""
        if tasks := len(self._tasks | self._moves | self._leaves):
            raise Corrupt(f"session {self.session_id}: {tasks} tasks run after its end")
        if left := sum(edge.held for edge in self.edges.values()):
            raise Corrupt(f"session {self.session_id}: {left} chunks lie between its stages after its end")

    # ---- what the stage drivers call ----

    def emit(self, ring: OutputRing, chunk: Chunk, release: Callable[[], None]) -> bool:
        """Puts a chunk before the clients; whether it is new. The first output ends after `max_frames`, the others at
        the same time."""
        if chunk.seq < ring.next_chunk:
            ring.again(chunk)
            return False
        if (left := max(0, self._left(ring, chunk))) < chunk.frames:
            ring.cut(chunk, left, release)
        else:
            ring.put(chunk, release)
        return True

    def _left(self, ring: OutputRing, chunk: Chunk) -> int:
        """How many frames of its next chunk a ring takes, if it has them: none where some before them were cut off,
        whatever became known of the end since. They would come under the numbers of those, at a later time."""
        if not self._max_frames:
            return chunk.frames
        if ring is self.audience.first:
            left = self._max_frames - ring.next_frame
            if left <= chunk.frames and not self.sources_ended:  # 0 of one that was taken over at its end
                end = chunk.time_of(left)
                self._end_pts = end if self._end_pts is None else min(self._end_pts, end)
                self.end_sources(f"all {self._max_frames} frames were made")
            return left
        if chunk.first_frame > ring.next_frame:
            return 0
        if self._end_pts is None:
            return chunk.frames
        had = ring.sent - ring.next_frame  # by its client, before the end was known
        return max(had, sum(chunk.time_of(index) < self._end_pts for index in range(chunk.frames)))

    async def carried(self, stage: str, controls: Sequence[Control], reply: StepReply, next_chunk: int) -> None:
        await self.desk.carried(stage, controls, reply, next_chunk)

    def made(self, stage: str, revision: int, chunk: int, frame: int) -> None:
        self.desk.made(stage, revision, chunk, frame)

    async def bring_back(self, driver: StageDriver, fault: Exception) -> None:
        """Also asks for what the stage needs and is not here: its makers make it again."""
        if self.recovery is None:
            raise fault
        if isinstance(fault, ActorDied):
            self._died_with(driver, fault)
        await self.recovery.bring_back(driver, fault)
        self.observer.recovered(driver.name)
        for edge in driver.inputs.values():
            if edge.has_gap and not edge.from_client:
                self._want_again(self._maker(edge), InputLost(f"stage {driver.name!r} needs its chunks again"))

    def _died_with(self, driver: StageDriver, fault: ActorDied) -> None:
        """What else of the session was on that actor is brought back now, not when it is stepped next."""
        at = self._keeper.record.placement
        for other in self.drivers.values():
            if other is not driver and other.fault is None and at.get(other.name) == at.get(driver.name):
                other.fault = DiedWith(f"found by stage {driver.name!r}: {fault}")
        self.signal.notify()

    def leave(self, silent: Sequence[StageHandle]) -> None:
        """Frees what may lie on actors that did not answer when the session was taken over."""
        for handle in silent:
            if self.recovery:
                self.recovery.leave(handle)

    @property
    def is_behind(self) -> bool:
        edges = any(
            driver.chunks.get(port, 0) < edge.end
            for driver in self.drivers.values()
            for port, edges in driver.outputs.items()
            for edge in edges
        )
        return edges or any(ring.is_behind for ring in self.audience.rings.values())

    def save_due(self, driver: StageDriver) -> SaveOrder | None:
        return self.saver.due(driver) if self.saver else None

    def save_begun(self, driver: StageDriver, seq: int) -> None:
        if self.saver:
            self.saver.begun(driver, seq)

    async def ends(self, driver: StageDriver, seq: int) -> None:
        await self._keeper.log(ControlEntry(0, ENDS, None, driver.name, seq))

    async def decided(self, driver: StageDriver, reply: StepReply) -> None:
        await self._keeper.log(ControlEntry(0, DECIDED, reply.decisions, driver.name, reply.seq))

    def input_lost(self, edge: EdgeQueue, chunk: Chunk, error: InputLost) -> None:
        if edge.lose(chunk):
            self._want_again(self._maker(edge), error)

    def consumed(self, driver: StageDriver) -> None:
        if self.saver:
            return  # when the stage has it in its checkpoints
        for edge in driver.inputs.values():
            before = edge.base
            edge.commit(edge.taken, edge.taken_frames)
            if edge.from_client and edge.base > before:
                self._ack_input(edge)

    def refused(self, edge: EdgeQueue, chunk: Chunk, why: InputRefused) -> None:
        port, frame = self._input(edge), chunk.first_frame
        message = f"input {port!r}: frame {frame} is left out, the stream goes on: {why}"
        self.audience.tell_controller(InputRefusal(port, frame, message))

    # ---- its own ----

    def _check_received(self, spec: ConsumerSpec) -> None:
        """What a client has had may be ahead of what was made here, but not of all that there will be."""
        first = self.audience.first.name
        last = next((wish.last_received for wish in spec.ports if wish.port == first), None)
        if self._max_frames and last is not None and last >= self._max_frames:
            raise BadRequest(f"port {first!r}: frame {last} was never sent, the session has {self._max_frames} frames")

    def _ack_input(self, edge: EdgeQueue) -> None:
        self.audience.tell_controller(InputAck(self._input(edge), edge.base_frame - 1))

    def _maker(self, edge: EdgeQueue) -> StageDriver:
        return self.drivers[self.graph.feeders(edge.target.stage)[edge.target.port].source.stage]

    def _want_again(self, driver: StageDriver, why: Exception) -> None:
        """What a stage made is lost: it makes it again, unless it is at that already."""
        if not driver.is_repeating:
            driver.lose(why)

    def _input(self, edge: EdgeQueue) -> str:
        return next(name for name, at in self.graph.inputs.items() if at == edge.target)

    def _foreseen_end(self, descriptions: Mapping[str, Description]) -> int | None:
        """The media time at which the first output will have its `max_frames`: known from its rate where the stream
        begins in the graph; where a client feeds it, only once the last frame is there."""
        if not self._max_frames or self.graph.inputs:
            return None
        first = next(iter(self.graph.outputs.values()))
        return round(self._max_frames * TICKS_PER_SECOND / descriptions[first.stage].fps)

    async def _drive(self, driver: StageDriver) -> None:
        try:
            await driver.run()
        except (NoPlace, ScriptRefused, Lost, Conflict):
            raise
        except (Unavailable, Corrupt, BadRequest) as error:
            kind = next((k for k in _WHAT if isinstance(error, k)), Corrupt)
            raise kind(f"stage {driver.name!r} {_WHAT[kind]}: {error}") from error

    def _hand(self, stage: str, control: Control) -> None:
        self.drivers[stage].controls.append(control)

    async def _pause(self, pause: bool) -> tuple[int, int]:
        """Sources are held at once; the step in hand makes the last chunk before."""
        entries = [d for d in self.drivers.values() if not d.inputs or any(e.from_client for e in d.inputs.values())]
        if pause != self.is_paused:
            self.is_paused = pause
            self.audience.playhead.hold(pause)
            await self.signal.until(lambda: not any(driver.is_stepping for driver in entries if pause))
            self.audience.tell_all(Event(EventType.PAUSED if pause else EventType.RESUMED))
        return max(driver.next_on_first_port for driver in entries)

    def _ring(self, name: str, at: Endpoint, keep: int, about: Description) -> OutputRing:
        stage = at.stage

        async def fetch(chunk: Chunk) -> Chunk:
            begun, work = self.clock.now(), self.drivers[stage].handle.fetch(chunk.data)
            array = await answer(self.clock, self._fetch_s, work, f"stage {stage!r}, asked for a chunk,")
            return self.observer.fetched(stage, replace(chunk, data=array), self.clock.now() - begun)

        def lost(error: StageGone) -> None:
            if self.recovery is None:
                raise error
            self._want_again(self.drivers[stage], error)

        sizes = (frame_bytes(about, at.port), max(about.chunk_frames, about.first_frames or 0))

        return OutputRing(name, keep, fetch, self.spawn, self.signal, lost, *sizes)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it until it is done or the session ends; what it raises ends the session."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _leave_behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Frees what lies on an actor that is not used any more, which the session's end waits for. That it is another
        runner's by now ends the session here."""
        task = asyncio.create_task(work)
        self._leaves.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._leaves.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._on_fault(error)


def _port(descriptions: Mapping[str, Description], at: Endpoint) -> Port:
    return next(port for port in descriptions[at.stage].inputs if port.name == at.port)
