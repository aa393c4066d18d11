"""An opened session's graph with everything that lies in it: drivers, edges, rings, controls, and who reads it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from riverrun.graphs.audience import Audience
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.controls import ControlDesk
from riverrun.graphs.driver import StageDriver
from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.entry import check_input
from riverrun.graphs.graph import Endpoint, Graph
from riverrun.graphs.items import Event, EventType, InputAck, InputRefusal
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.observer import Observer
from riverrun.graphs.opening import answer
from riverrun.graphs.pacing import lead_s, parked_s
from riverrun.graphs.ring import OutputRing, frame_bytes
from riverrun.graphs.stage import (
    EncoderHandle,
    Epoch,
    InputRefused,
    StageGone,
    StageHandle,
    StaleEpoch,
    StepFailed,
    StepReply,
    UnknownSession,
)
from riverrun.graphs.waiting import Clock, Signal
from riverrun.graphs.wiring import wire
from riverrun.models.base import TICKS_PER_SECOND, BadRequest, Chunk, Control, Corrupt, Description, Port, Unavailable
from riverrun.store.records import PortMark

_WHAT: Mapping[type, str] = {
    StageGone: "is gone",
    UnknownSession: "lost its state",
    StaleEpoch: "was taken over by another gateway",
    StepFailed: "can't go on",
    Corrupt: "failed",
}


LEAST_SLEEP_S = 0.001


class Flow:
    """What the stage drivers call is here (see `driver.Session`), and what moves between them.

    on_end: the sources were told to stop, with the reason. on_fault: a fetch failed.
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
    ):
        self.clock = clock
        self.signal = signal
        self.observer = observer
        self.session_id = keeper.record.id
        self.epoch = Epoch(keeper.record.epoch, keeper.record.nonce)
        self.is_paused = False
        self.sources_ended = False
        self._graph = graph
        self._stages = stages
        self._lead_s = keeper.record.lead_s
        self._fetch_s = config.deadlines.floor_s
        self._max_frames = keeper.record.max_frames
        self._end_pts = self._foreseen_end(descriptions)
        self._input_ports = {name: _port(descriptions, at) for name, at in graph.inputs.items()}
        self._on_end = on_end
        self._on_fault = on_fault
        self._fetches: set[asyncio.Task[None]] = set()
        keep = config.ring_frames
        rings = {name: self._ring(name, at, keep, descriptions[at.stage]) for name, at in graph.outputs.items()}
        self.audience = Audience(rings, clock, signal)
        self.edges, self.drivers = wire(graph, descriptions, stages, rings, self, config.edge_chunks, config.deadlines)
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

    async def run(self) -> None:
        """Drives every stage until each has ended and is flushed. Raises what a stage raised, naming the stage."""
        async with asyncio.TaskGroup() as stages:
            for driver in self.drivers.values():
                stages.create_task(self._drive(driver))

    async def push(self, port: str, chunk: Chunk, gone: Callable[[], bool]) -> None:
        """See `Runner.push`; returns without having taken the chunk when `gone()`."""
        if port not in self._graph.inputs:
            raise BadRequest(f"no input {port!r}; there are {', '.join(sorted(self._graph.inputs)) or 'none'}")
        if chunk.frames < 1:
            raise BadRequest(f"a chunk for input {port!r} needs at least one frame, got {chunk.frames}")
        edge = self.edges[self._graph.inputs[port]]
        check_input(port, self._input_ports[port], chunk.data)
        await self.signal.until(lambda: edge.ended or gone() or edge.has_room(1))
        if edge.ended:
            raise BadRequest(f"input {port!r} has ended, it takes no more")
        if not gone():
            edge.push(chunk, self.epoch.number)
            self.signal.notify()

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
            await self.clock.sleep(await self.signal.until(self._parked_until_known))
            self.signal.notify()

    @property
    def sources_held(self) -> bool:
        """Whether nothing new enters the graph."""
        return self.is_paused or self.is_parked

    @property
    def is_parked(self) -> bool:
        """Whether the session is further ahead of its controller than it may be."""
        return self._parked_s() > 0

    @property
    def lead_s(self) -> float:
        """Seconds of media made and not played."""
        return lead_s(self.audience.made, self.audience.playhead.now())

    async def stop(self) -> None:
        """The session is over: nothing more is fetched, and what lies between stages is let go."""
        for fetch in (fetches := list(self._fetches)):
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        for edge in self.edges.values():
            edge.clear()

    def marks(self) -> dict[str, Any]:
        """How far everything has come, as fields of the session record."""
        rings = self.audience.rings.items()
        return {
            "steps": {name: driver.next_seq for name, driver in self.drivers.items()},
            "consumed": {str(at): edge.taken for at, edge in self.edges.items()},
            "ports": {name: PortMark(r.next_chunk, r.next_frame, r.sent, r.acked) for name, r in rings},
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
        """Raises Corrupt if a chunk is still being fetched, or lies between stages."""
        if self._fetches:
            raise Corrupt(f"session {self.session_id}: {len(self._fetches)} chunks are fetched after its end")
        if left := sum(map(len, self.edges.values())):
            raise Corrupt(f"session {self.session_id}: {left} chunks lie between its stages after its end")

    # ---- what the stage drivers call ----

    def emit(self, ring: OutputRing, chunk: Chunk, release: Callable[[], None]) -> None:
        """Puts a chunk before the clients. The first output ends after `max_frames`, the others at the same time."""
        if self._max_frames and ring is self.audience.first:
            left = self._max_frames - ring.next_frame
            if 0 < left <= chunk.frames:
                self._end_pts = chunk.pts + left * chunk.frame_ticks
                self.end_sources(f"all {self._max_frames} frames were made")
            chunk = replace(chunk, frames=min(chunk.frames, left))
        elif self._end_pts is not None:
            left = math.ceil((self._end_pts - chunk.pts) / chunk.frame_ticks)
            chunk = replace(chunk, frames=min(chunk.frames, max(0, left)))
        ring.put(chunk, release)

    async def carried(self, stage: str, controls: Sequence[Control], reply: StepReply, next_chunk: int) -> None:
        await self.desk.carried(stage, controls, reply, next_chunk)

    def made(self, stage: str, revision: int, chunk: int, frame: int) -> None:
        self.desk.made(stage, revision, chunk, frame)

    def consumed(self, edge: EdgeQueue, chunk: Chunk) -> None:
        if edge.from_client:
            self.audience.tell_controller(InputAck(self._input(edge), chunk.first_frame + chunk.frames - 1))

    def refused(self, edge: EdgeQueue, chunk: Chunk, why: InputRefused) -> None:
        port, frame = self._input(edge), chunk.first_frame
        message = f"input {port!r}: frame {frame} is left out, the stream goes on: {why}"
        self.audience.tell_controller(InputAck(port, frame + chunk.frames - 1))
        self.audience.tell_controller(InputRefusal(port, frame, message))

    # ---- its own ----

    def _input(self, edge: EdgeQueue) -> str:
        return next(name for name, at in self._graph.inputs.items() if at == edge.target)

    def _foreseen_end(self, descriptions: Mapping[str, Description]) -> int | None:
        """The media time at which the first output will have its `max_frames`: known from its rate where the stream
        begins in the graph; where a client feeds it, only once the last frame is there."""
        if not self._max_frames or self._graph.inputs:
            return None
        first = next(iter(self._graph.outputs.values()))
        return round(self._max_frames * TICKS_PER_SECOND / descriptions[first.stage].fps)

    async def _drive(self, driver: StageDriver) -> None:
        try:
            await driver.run()
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

    def _parked_s(self) -> float:
        return parked_s(self.audience.made, self.audience.playhead.now(), self._lead_s)

    def _parked_until_known(self) -> float | None:
        """Seconds to sleep while parked; None while not, or until something else happens first."""
        seconds = self._parked_s()
        return max(seconds, LEAST_SLEEP_S) if 0 < seconds < math.inf else None

    def _ring(self, name: str, at: Endpoint, keep: int, about: Description) -> OutputRing:
        stage = at.stage

        async def fetch(chunk: Chunk) -> Chunk:
            begun, work = self.clock.now(), self._stages[stage].fetch(chunk.data)
            array = await answer(self.clock, self._fetch_s, work, f"stage {stage!r}, asked for a chunk,")
            return self.observer.fetched(stage, replace(chunk, data=array), self.clock.now() - begun)

        sizes = (frame_bytes(about, at.port), max(about.chunk_frames, about.first_frames or 0))
        return OutputRing(name, keep, fetch, self._start_fetch, self.signal, *sizes)

    def _start_fetch(self, fetch: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(fetch)
        self._fetches.add(task)
        task.add_done_callback(self._fetched)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetches.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._on_fault(error)


def _port(descriptions: Mapping[str, Description], at: Endpoint) -> Port:
    return next(port for port in descriptions[at.stage].inputs if port.name == at.port)
