"""Drives one session through the stages of its graph: the sequencer of design §4, and the one writer of its record.

The way of a frame: a `StageDriver` a stage steps its model when there is room behind it -> the chunk goes by reference
onto the `EdgeQueue`s of the next stages, and into an `OutputRing` where it is a graph output -> a `Consumer` finds its
next frame there, has the chunk fetched, and is given one frame against one credit. Nothing is ever dropped in between:
a full queue or a controller without credits stalls the stage before it.

With `Durability` a session outlives its actors (`recovery`), moves between them (`migration`), is put away and taken up
again, here or by another gateway (`takeover`). Without, it ends with the first of them that dies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial

from riverrun.graphs import routine
from riverrun.graphs.config import DEFAULTS, RunnerConfig
from riverrun.graphs.consumer import Consumer, ConsumerSpec
from riverrun.graphs.durability import Durability
from riverrun.graphs.ending import Ending, of_fault
from riverrun.graphs.flow import Flow
from riverrun.graphs.graph import Graph, validate
from riverrun.graphs.items import Event, EventType
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.migration import migrate
from riverrun.graphs.observer import SILENT, Observer
from riverrun.graphs.opening import answer, open_stages, opening
from riverrun.graphs.saver import Blobs
from riverrun.graphs.script import Script, TimedControl, write_scripts
from riverrun.graphs.script import read as script_read
from riverrun.graphs.script import written as script_written
from riverrun.graphs.stage import EncoderHandle, Epoch, OpenRequest, StageHandle, StaleEpoch
from riverrun.graphs.status import RunnerStatus, output_status, stage_status
from riverrun.graphs.takeover import Stand, TakeOver
from riverrun.graphs.waiting import Clock, Signal
from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Description, Unavailable
from riverrun.store.records import Conflict, ControlEntry, Placement, SessionRecord, SessionState, Store, advance

log = logging.getLogger(__name__)


class SessionEnded(BadRequest):
    """The session has ended, so this can't be done to it any more."""


class Runner:
    """One session. `open` (or `resume`) starts it, `ended` returns when all that it held is freed; all else may be
    called between.

    graph: checked again against what the stages say on opening. stages, encoders: handles by stage name (encoders: only
    of stages whose model names one). record: as the store has it, state OPENING; the runner goes on writing it.
    observer: told of every step. stages is empty where the session is resumed. script: controls that come into force
    by themselves; the record keeps them, so whoever resumes the session names none.
    """

    def __init__(
        self,
        record: SessionRecord,
        graph: Graph,
        stages: Mapping[str, StageHandle],
        encoders: Mapping[str, EncoderHandle],
        store: Store,
        clock: Clock,
        config: RunnerConfig = DEFAULTS,
        observer: Observer = SILENT,
        durability: Durability | None = None,
        script: Sequence[TimedControl] = (),
    ):
        self._clock = clock
        self._signal = Signal()
        self._graph = graph
        self._stages = dict(stages)
        self._durability = durability
        self._script = tuple(script)
        self._encoders = encoders
        self._config = config
        self._observer = observer
        newest = durability.blobs.max_epoch if durability else None
        self._keeper = RecordKeeper(record, store, clock, config.log_entries, config.store_s, newest)
        self._epoch = Epoch(record.epoch, record.nonce)
        self._state = SessionState.OPENING
        self._reason = ""
        self._descriptions: dict[str, Description] = {}
        self._flow: Flow | None = None
        self._main: asyncio.Task[None] | None = None
        self._ending: Ending | None = None
        self._is_resumed = self._leaves_blobs = False

    # ---- what the gateway calls ----

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def observer(self) -> Observer:
        """Who is told of every step; what brings frames to clients tells it too."""
        return self._observer

    @property
    def fault(self) -> BaseException | None:
        """What the session failed of."""
        return self._ending.fault if self._ending else None

    @property
    def record(self) -> SessionRecord:
        """As last changed here; it may be newer than the store's."""
        return self._keeper.record

    async def open(self) -> None:
        """Opens every stage, prompts encoded; the stream begins. Raises what a stage raised (BadRequest for a
        parameter, Unavailable for no room) or BadRequest for its script, with nothing left open."""
        await self._start(self._open)

    async def resume(self, received: Mapping[str, int] | None = None) -> None:
        """Goes on with a session that another runner has run; the record names this one's epoch.

        received: by graph output, frames that the client says it has. Raises Unavailable (no room, blobs away), Corrupt
        (what is needed is gone), Conflict; the session is left as it was then.
        """
        self._is_resumed = True
        await self._start(partial(self._take_over, received or {}))

    async def _start(self, begin: Callable[[], Awaitable[Flow]]) -> None:
        if self._main:
            raise Corrupt(f"session {self.record.id} was opened before")
        self._main = asyncio.create_task(self._run(begin), name=f"session {self.record.id}")
        try:
            await self._signal.until(lambda: self._state is not SessionState.OPENING)
        except asyncio.CancelledError:
            state = SessionState.SUSPENDED if self._is_resumed else SessionState.CLOSED  # its client may come again
            self._end(Ending(state, "given up while it was opening"))
            raise
        if self._flow is None:
            await self.ended()
            raise self.fault or Unavailable(f"session {self.record.id} was closed while opening: {self._reason}")

    def attach(self, spec: ConsumerSpec) -> Consumer:
        """A new reader. A new controller replaces the old one (which gets REPLACED).

        Raises BadRequest (unknown port, credits), Corrupt (the frames after last_received are gone), SessionEnded,
        Unavailable (still opening).
        """
        return self._live().attach(spec)

    async def control(self, control: Control, stage: str = "") -> None:
        """Takes a control in (without embedding); its receipts go to the controller. stage "": all that take the kind.

        Raises BadRequest (kind, stage, revision), Unavailable (too many are waiting), SessionEnded.
        """
        self._live().desk.take(control, stage)

    async def push(self, port: str, chunk: Chunk) -> None:
        """Takes the next chunk of a graph input (numbered here); returns when there was room for it.

        Raises BadRequest (unknown input, data its port does not take, or after `finish`), SessionEnded. A chunk that
        the model refuses later is left out, and the controller told (InputRefusal).
        """
        await self._live().push(port, chunk, gone=lambda: not self._state.runs)
        self._live()

    async def finish(self) -> None:
        """No more input: sources stop, every stage is flushed in order, and when the controller has all frames the
        session is CLOSED. Returns at once."""
        self._live().end_sources("finished")

    async def close(self, reason: str) -> None:
        """Ends the session now; returns when all is freed. Closing an ended session is no error."""
        self._end(Ending(SessionState.CLOSED, reason))
        await self.ended()

    async def ended(self) -> SessionRecord:
        """Returns when the session has ended and all is freed."""
        if self._main:
            await asyncio.wait({self._main})
        return self.record

    async def suspend(self, reason: str, retry_s: float = 0.0) -> None:
        """Puts the session away: checkpoints of all stages, then everything is freed. It can be resumed for days.

        Raises SessionEnded, Unavailable (it can't be saved now; it goes on then).
        """
        await self._put_away(self._live(), reason, retry_s)
        await self.ended()

    async def _put_away(self, flow: Flow, reason: str, retry_s: float = 0.0) -> None:
        if flow.saver is None:
            raise BadRequest(f"session {self.record.id} can't be suspended: this service keeps no checkpoints")
        try:
            await flow.hold(True)
            self._live()
            await flow.saver.save_all(state=SessionState.SUSPENDED, reason=reason, **flow.marks())
        except BaseException as error:
            if isinstance(error, StaleEpoch):
                self._end(self._of_fault(error))
            await flow.hold(False)
            raise
        self._end(Ending(SessionState.SUSPENDED, reason, retry_s=retry_s))

    async def lose(self) -> None:
        """Another runner has the session: this one stops, and leaves everything as it is. Returns when it has."""
        if self._state.runs:
            why = Conflict(f"session {self.record.id} was taken over by another gateway")
            self._ending = of_fault(why, is_resuming=False)  # whatever else it was about to end of
            self._signal.notify()
        await self.ended()

    async def migrate(self, stage: str, actor: str = "") -> Placement:
        """Moves one stage to `actor`, or to any other than it is on. Raises as `migration.migrate`, SessionEnded."""
        flow = self._live()
        if flow.recovery is None:
            raise BadRequest(f"session {self.record.id} can't be moved: this service keeps no checkpoints")
        placement = await flow.moving(migrate(flow.recovery, flow.drivers[self._graph.stage(stage).name], actor))
        self._observer.moved(stage)
        flow.audience.tell_all(Event(EventType.MOVED, f"stage {stage} is on {placement.actor}"))
        return placement

    def taken_in(self) -> dict[str, int]:
        """By graph input, the number of the frame that is due next: what a client sends before it is not needed."""
        flow = self._live()
        return {name: flow.edges[at].due_frame for name, at in self._graph.inputs.items()}

    def is_overtaken(self, received: Mapping[str, int]) -> bool:
        """Whether a client has frames that were not made here, by graph output, nor known of when the session was taken
        over: another gateway may have gone on."""
        rings = self._flow.audience.rings if self._flow else {}
        return any(n > max(rings[name].next_frame, rings[name].sent) for name, n in received.items() if name in rings)

    def catch_up(self) -> Coroutine[None, None, None]:
        """Of a session that has ended: waits until the store has its record, and deletes what could not be deleted
        before. Raises Conflict, Unavailable (the blobs stay, for the reaper).

        It needs the record alone, so it may outlive the runner and what that holds.
        """
        return _catch_up(self._keeper, self._durability.blobs if self._durability and self._leaves_blobs else None)

    @property
    def alone_s(self) -> float | None:
        """Since nobody has been connected, or was given a frame; None while somebody is, or nothing runs."""
        flow = self._flow
        return flow.audience.quiet_s if flow and self._state.runs and flow.audience.empty else None

    def status(self) -> RunnerStatus:
        """What it is doing now; answers at once."""
        flow = self._flow
        drivers = flow.drivers if flow else {}
        outputs = self._graph.outputs.items() if flow else ()
        return RunnerStatus(
            session=self.record.id,
            graph=self._graph.name,
            state=self._state,
            reason=self._reason,
            created=self.record.created,
            paused=bool(flow and flow.is_paused),
            parked=bool(flow and flow.is_parked),
            lead_s=flow.pacer.lead_s if flow else 0.0,
            frames_delivered=flow.audience.delivered if flow else 0,
            stages=tuple(
                stage_status(s.name, s.model, self._place(s.name), drivers.get(s.name)) for s in self._graph.stages
            ),
            outputs=tuple(output_status(name, at, self._descriptions[at.stage]) for name, at in outputs),
        )

    def check(self) -> None:
        """Raises Corrupt if the books of the session do not add up, or it has ended and still does something."""
        if self._flow:
            self._flow.check()
        if self._flow and self._main and self._main.done():
            self._flow.check_stopped()
        if self._main and self._main.done() and self._state.runs:
            raise Corrupt(f"session {self.record.id} is {self._state.value}, and nothing drives it")

    # ---- the life of the session ----

    async def _run(self, begin: Callable[[], Awaitable[Flow]]) -> None:
        """Opens, streams, and frees everything whichever way that ends."""
        work = asyncio.create_task(self._work(begin))
        stop = asyncio.create_task(self._signal.until(lambda: self._ending))
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            self._ending = self._ending or self._ending_of(work)
            await self._free(self._ending)

    async def _work(self, begin: Callable[[], Awaitable[Flow]]) -> None:
        self._flow = flow = await self._begun(begin)
        self._to(SessionState.RUNNING)
        async with asyncio.TaskGroup() as tasks:
            behind = [
                *flow.drives(),
                flow.desk.receive(),
                flow.desk.encode(),
                *self._routines(flow),
                flow.unpark(),
            ]
            background = [tasks.create_task(each) for each in behind]
            await self._signal.until(lambda: flow.is_over)
            if self._state is SessionState.RUNNING:
                self._to(SessionState.DRAINING, "the stream has ended")
            await self._signal.until(lambda: flow.audience.drained)
            for task in background:
                task.cancel()

    async def _begun(self, begin: Callable[[], Awaitable[Flow]]) -> Flow:
        """Opening may take minutes: all the while the record shows that somebody is at it."""
        async with asyncio.TaskGroup() as tasks:
            claiming = tasks.create_task(routine.claim(self._keeper, self._clock, self._config.commit_every_s))
            flow = await begin()
            claiming.cancel()
        return flow

    async def _open(self) -> Flow:
        limits = (self._config.deadlines.first_s, self._config.encode_s)
        replies = await open_stages(
            self.record, self._epoch, self._graph, self._stages, self._encoders, self._clock, *limits
        )
        self._descriptions = {name: reply.description for name, reply in replies.items()}
        validate(self._graph, self._descriptions)
        about = (self._script, self._descriptions, self._encoders)
        scripts = await write_scripts(*about, self._clock, self._config.encode_s)
        script = script_written(self._script)
        placement = {n: replace(self._place(n), incarnation=reply.incarnation) for n, reply in replies.items()}
        await self._keeper.commit(placement=placement, state=SessionState.RUNNING, script=script)
        flow = self._flow_over(self._stages)
        flow.follow_script(scripts)
        return flow

    def _flow_over(self, stages: Mapping[str, StageHandle]) -> Flow:
        return Flow(
            self._graph,
            self._descriptions,
            stages,
            self._encoders,
            self._keeper,
            self._clock,
            self._signal,
            self._config,
            self._observer,
            on_end=self._draining,
            on_fault=lambda error: self._end(self._of_fault(error)),
            durability=self._durability,
        )

    async def _take_over(self, received: Mapping[str, int]) -> Flow:
        """See `takeover`. A session that was draining drains again, once its client has sent the rest of its input."""
        if self._durability is None:
            raise Unavailable(f"session {self.record.id} can't be taken up: this service keeps no checkpoints")
        found = await self._durability.blobs.manifests(self.record.id)
        lines, was = await self._keeper.lines(), self.record
        take = TakeOver(
            was,
            self._epoch,
            self._graph,
            self._opening,
            self._durability,
            self._clock,
            self._config.recovery,
            found,
            lines,
            received,
        )
        stands = await take.stands()
        self._stages = {name: stand.handle for name, stand in stands.items()}
        self._descriptions = {name: stand.description for name, stand in stands.items()}
        await self._keeper.commit(
            placement={name: stand.placement for name, stand in stands.items()},
            forgotten={**was.forgotten, **take.acked(stands)},
            manifests=tuple(m.brief() for m in take.kept(stands)),
            dropped=tuple(m.path for m in take.dropped(stands)),
            state=SessionState.DRAINING if was.state is SessionState.DRAINING else SessionState.RUNNING,
        )
        await self._keeper.be_known()
        flow = self._flow_over(self._stages)
        await take.settle(flow, stands)
        flow.follow_script(await self._rest_of_script(stands, lines))
        flow.leave(list(take.silent.values()))
        if not self._graph.inputs and (was.state is SessionState.DRAINING or flow.has_all_frames):
            flow.end_sources(was.reason)
        return flow

    async def _rest_of_script(self, stands: Mapping[str, Stand], lines: Sequence[ControlEntry]) -> dict[str, Script]:
        """What the stages have yet to be given, by step or again by the log."""
        carried = {(line.stage, line.revision) for line in lines if line.step >= 0}

        def is_done(stage: str, revision: int) -> bool:
            return revision <= stands[stage].mark.seen or (stage, revision) in carried

        about = (script_read(self.record.script), self._descriptions, self._encoders)
        return await write_scripts(*about, self._clock, self._config.encode_s, is_done)

    async def _opening(self, name: str) -> OpenRequest:
        return await opening(
            self.record, self._epoch, self._graph, name, self._encoders, self._clock, self._config.encode_s
        )

    def _place(self, name: str) -> Placement:
        return self.record.placement.get(name) or Placement(actor="", model=self._graph.stage(name).model)

    def _live(self) -> Flow:
        if not self._state.runs:
            raise SessionEnded(f"session {self.record.id} is {self._state.value}: {self._reason}")
        if self._flow is None:
            raise Unavailable(f"session {self.record.id} is still opening")
        return self._flow

    # ---- its end ----

    def _to(self, state: SessionState, reason: str = "") -> None:
        self._state, self._reason = advance(self._state, state), reason
        self._signal.notify()

    def _draining(self, reason: str) -> None:
        if self._state is SessionState.RUNNING:
            self._to(SessionState.DRAINING, reason)

    def _end(self, ending: Ending) -> None:
        if not self._ending and self._state.runs:
            self._ending = ending
            self._signal.notify()

    def _ending_of(self, work: asyncio.Task[None]) -> Ending:
        if work.cancelled():
            return Ending(SessionState.CLOSED, "the gateway shut down")
        error = work.exception()
        return self._of_fault(error) if error else Ending(SessionState.CLOSED, self._reason)

    def _of_fault(self, error: BaseException) -> Ending:
        return of_fault(error, is_resuming=self._is_resumed and self._flow is None)

    async def _free(self, ending: Ending) -> None:
        """Tells everybody that and why it ended, then closes all stages (opened or not) and writes the record.

        A session that another runner has taken over is left as it is: its stages and record are that one's.
        """
        marks = self._flow.marks() if self._flow else {}  # as long as something lies there
        if ending.is_internal:
            log.error("session %s: internal error", self.record.id, exc_info=ending.fault, extra=self.record.about)
        self._to(ending.state, ending.reason)
        if not ending.is_handed_over:  # for who asks while stages are closed
            self._keeper.record = replace(self.record, state=self._state, reason=self._reason)
        if self._flow:
            self._observer.ended(ending.state.value)
            self._flow.audience.end(ending.event)
            await self._flow.stop()
        if ending.is_handed_over:
            return
        stages = self._graph.order()
        closed = await asyncio.gather(*map(self._close_stage, stages), return_exceptions=True)
        for stage, error in zip(stages, closed, strict=True):
            if error:
                about = {**self.record.about, "stage": stage}
                log.warning("session %s: a stage was not closed: %s", self.record.id, str(error), extra=about)
        try:
            await self._keeper.commit(state=self._state, reason=self._reason, **marks)
            if self._durability and ending.state is SessionState.CLOSED:
                self._leaves_blobs = self._keeper.is_away  # another runner may have it, and need them
                if not self._leaves_blobs:
                    await self._durability.blobs.forget(self.record.id)
        except Unavailable as error:  # Conflict is one: then it is another's
            log.warning("%s", str(error), extra=self.record.about)

    async def _close_stage(self, name: str) -> None:
        handle = self._flow.drivers[name].handle if self._flow else self._stages.get(name)
        if handle is None:
            return
        work = handle.close(self.record.id, self._epoch)
        await answer(self._clock, self._config.close_s, work, f"stage {name!r}")

    # ---- in the background: see `routine` ----

    def _routines(self, flow: Flow) -> list[Coroutine[None, None, None]]:
        limit_s = self.record.idle_timeout_s or self._config.idle_timeout_s
        leave, every_s = partial(self._leave_idle, flow), self._config.commit_every_s
        return [
            routine.write(lambda: self._state, self._commit, self._signal, self._clock, every_s),
            routine.watch(flow.audience, lambda: self._state is SessionState.DRAINING, leave, self._clock, limit_s),
        ]

    async def _leave_idle(self, flow: Flow, reason: str) -> None:
        if self._config.suspend_idle and flow.saver:
            try:
                return await self._put_away(flow, reason)
            except Unavailable as error:
                log.warning("session %s could not be put away: %s", self.record.id, error, extra=self.record.about)
        self._end(Ending(SessionState.CLOSED, reason))

    async def _commit(self) -> None:
        flow = self._flow
        marks = flow.marks() if flow else {}
        await self._keeper.commit(state=self._state, reason=self._reason, **marks)
        if flow and not self._keeper.is_away:
            flow.audience.noted(marks["ports"])


async def _catch_up(keeper: RecordKeeper, blobs: Blobs | None) -> None:
    await keeper.catch_up()
    if blobs:
        await blobs.forget(keeper.record.id)
