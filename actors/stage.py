"""The stage actor without Ray: several sessions over one set of weights, stepped in batches by one thread.

Any thread may call `open`, `step`, `attach`, `close` and `health`; only `run` (or `run_once`) steps the model. `step`
blocks its caller until the batch loop has answered. A session has one step at a time. Whose viewer has least left to
play is served first; steps that say nothing of a viewer are served in the order they came, so that none of them waits
for more than one chunk of each other.

A State that has `mark() -> m` and `rewind(m)` (back to before the step; `models/state.py:Rewindable`) may share steps
with others: when a batch fails, its members are rewound and stepped alone, so that the guilty one fails by itself. A
State without them is always stepped alone, since a failed batch would take it along. What a step made is checked
against what the model described, session by session (`actors/outputs.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from riverrun.actors.checkpoints import Checkpoints, wait
from riverrun.actors.footprint import SECONDS, Footprint, described, measure
from riverrun.actors.health import Look, Resident, StageHealth
from riverrun.actors.logs import about
from riverrun.actors.measures import Measures
from riverrun.actors.session import StageSession, StepJob
from riverrun.actors.sessions import SessionTable
from riverrun.cluster.admission import Need, Room
from riverrun.cluster.fair import Used
from riverrun.cluster.slack import PATIENCE_S, SPEND, Ready, pick
from riverrun.graphs.stage import (
    AttachReply,
    BadRequest,
    Epoch,
    OpenReply,
    OpenRequest,
    Packet,
    RestoreReply,
    RestoreRequest,
    SaveOrder,
    StepFailed,
    StepReply,
    StepRequest,
    UnknownSession,
)
from riverrun.models.base import Chunk, Control, Description, StreamModel, Unavailable, parse_params
from riverrun.store.checkpoints import Engine, Manifest

log = logging.getLogger(__name__)


class StageWorker:
    """Sessions of one model. max_bytes: budget for their States and steps (None: no limit). max_batch: the most that
    share a step (None: all). slack_share: see `ActorConfig`. incarnation: who this actor is."""

    def __init__(
        self,
        model: StreamModel,
        incarnation: str,
        max_sessions: int,
        max_bytes: int | None = None,
        max_batch: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        checkpoints: Checkpoints | None = None,
        slack_share: float = SPEND,
    ) -> None:
        self.model, self.incarnation = model, incarnation
        self.checkpoints = checkpoints or Checkpoints(model, Engine(), None)
        self._clock = clock
        self._table = SessionTable(Room(max_sessions, max_bytes, max_batch), clock)
        self._footprint: Footprint | None = None
        self._arrivals: queue.Queue[StepJob | None] = queue.Queue()
        self._ready: deque[StepJob] = deque()
        self._compute_ms: deque[float] = deque(maxlen=256)
        self._figures = threading.Lock()
        self._steps, self._started = 0, 0.0
        self._slack_share, self._measures, self._used = slack_share, Measures(clock), Used()

    # ---- any thread ----

    def warm_up(self, values: dict[str, Any], seconds: float = SECONDS) -> None:
        """Steps a session with these parameters, before there is any other: admission then counts with what that took
        (`actors/footprint.py`), and nobody's first chunk is slow. Raises BadRequest for parameters that are wrong."""
        params = parse_params(self.model.Params, values)
        self._footprint = measure(self.model, params, seconds)
        self._table.usual = self._need(self.model.describe(params))

    def describe(self, values: dict[str, Any]) -> Description:
        """What the model says of itself for these parameters, with bytes as measured. Raises BadRequest."""
        return self._described(parse_params(self.model.Params, values))[0]

    def open(self, request: OpenRequest) -> OpenReply:
        """Opens a State. A repeat returns the same. Raises BadRequest, NoRoom, StaleEpoch."""
        params = parse_params(self.model.Params, request.params)
        session, new = self._table.add(request, *self._described(params))
        if new:
            try:
                session.state = self._open_state(request, params)
            except BaseException:
                self._table.end(session, UnknownSession, f"session {request.session} did not open")
                raise
        return OpenReply(session.description, self.incarnation)

    def step(self, request: StepRequest) -> StepReply:
        """Blocks until step `request.seq` is made. Raises UnknownSession, StaleEpoch, BadRequest, StepFailed."""
        return self.submit(request).result()

    def submit(self, request: StepRequest) -> futures.Future[StepReply]:
        """As `step`, waiting for no more than a copy that is being taken: the batch loop answers."""
        while (future := self._submit(request)) is None:
            with self._table.find(request.session, request.epoch).copying:
                pass
        return future

    def _submit(self, request: StepRequest) -> futures.Future[StepReply] | None:
        with self._table.lock:
            session = self._table.find(request.session, request.epoch)
            if session.copying.locked():
                return None
            kept = session.due(request)
            if kept is not None:
                answered: futures.Future[StepReply] = futures.Future()
                answered.set_result(kept)
                return answered
            if session.job is None:
                session.job = StepJob(session, request, self._clock())
                self._arrivals.put(session.job)
            return session.job.future

    def attach(self, session: str, epoch: Epoch) -> AttachReply:
        """Raises the session's epoch and says where it stands. Waits for a step in hand."""
        with self._table.lock:
            known = self._table.find(session, epoch)
            job = known.job
        if job:
            futures.wait([job.future])
        with self._table.lock:
            known = self._table.find(session, epoch)
            kept = tuple(known.kept[seq] for seq in sorted(known.kept))
            return AttachReply(known.stand(), known.description, self.incarnation, known.life, kept)

    def close(self, session: str, epoch: Epoch, life: int | None = None) -> None:
        """Frees the State, at once or when the step using it is over. Closing an unknown session is no error."""
        self._table.close(session, epoch, life)
        self.checkpoints.forget(session)

    def saved(self, session: str, epoch: Epoch, seq: int) -> Manifest:
        """Blocks until the checkpoint ordered with step `seq` is durable. Raises Unavailable, Corrupt."""
        with self._table.lock:
            self._table.find(session, epoch)
        return self.checkpoints.saved(session, seq)

    def save(self, session: str, epoch: Epoch, order: SaveOrder) -> Manifest:
        """A checkpoint now, durable when it returns."""
        with self._resting(session, epoch) as known:
            future = self.checkpoints.take(known, order)
        return wait(future)

    def export(self, session: str, epoch: Epoch) -> Packet:
        """The State, for another actor. It stays here until it is closed."""
        with self._resting(session, epoch) as known:
            return self.checkpoints.pack(known)

    def prepare(self, request: RestoreRequest) -> None:
        """Sets room aside, and takes its memory in if the model can fill a State. Raises NoRoom, StaleEpoch."""
        opening = request.opening
        params = parse_params(self.model.Params, opening.params)
        session = self._table.replace(opening, request.life, *self._described(params))
        if hasattr(self.model, "refill"):
            with self._ending_else(session, f"session {opening.session} finds no memory"):
                session.blank = self.model.open(params, opening.seed)

    def restore(self, request: RestoreRequest) -> RestoreReply:
        """Puts a State here; one of an earlier life is replaced, a repeat returns the same. Raises Corrupt, NoRoom,
        StaleEpoch, Unavailable."""
        opening = request.opening
        if again := self._table.placed(opening, request.life):
            return RestoreReply(again.description, self.incarnation, again.stand())
        params = parse_params(self.model.Params, opening.params)
        session = self._table.replace(opening, request.life, *self._described(params))
        with self._ending_else(session, f"session {opening.session} could not be restored"):
            if request.source is None:
                session.state = self._open_state(opening, params)
                session.ready = self.model.ready(session.state)
            else:
                state, mark = self.checkpoints.unpack(params, request.source, session.blank)
                session.begin_at(mark)
                if isinstance(request.source, Packet):
                    session.kept = {reply.seq: reply for reply in request.source.kept}
                session.state, session.held, session.blank = state, int(state.nbytes), None
        return RestoreReply(session.description, self.incarnation, session.stand())

    @contextlib.contextmanager
    def _ending_else(self, session: StageSession, why: str) -> Iterator[None]:
        """The session ends if what follows fails."""
        try:
            yield
        except BaseException:
            self._table.end(session, UnknownSession, why)
            raise

    @contextlib.contextmanager
    def _resting(self, session: str, epoch: Epoch) -> Iterator[StageSession]:
        """A session that no step uses, and none will inside. Raises UnknownSession, StaleEpoch, Unavailable."""
        with self._table.lock:
            known = self._table.find(session, epoch)
            if known.job:
                raise Unavailable(f"session {session}: step {known.job.request.seq} is in hand")
            if not known.copying.acquire(blocking=False):
                raise Unavailable(f"session {session}: a copy is being taken already")
        try:
            yield known
        finally:
            known.copying.release()

    def health(self) -> StageHealth:
        """Answers while a step runs."""
        totals, usual = self._table.totals(), self._table.usual
        with self._figures:
            p50, p99 = map(float, np.percentile(self._compute_ms or [0.0], (50, 99)))
            return StageHealth(
                incarnation=self.incarnation,
                sessions=totals.sessions,
                max_sessions=self._table.room.places,
                held_bytes=totals.held_bytes,
                reserved_bytes=totals.reserved_bytes,
                max_bytes=self._table.room.budget,
                retained_bytes=usual.retained if usual else 0,
                peak_bytes=usual.peak if usual else 0,
                steps=self._steps,
                running_s=self._clock() - self._started if self._started else 0.0,
                p50_ms=p50,
                p99_ms=p99,
            )

    def residents(self) -> tuple[Resident, ...]:
        """Whose States are here. Answers while a step runs."""
        return self._table.residents()

    def look(self) -> Look:
        """Answers while a step runs."""
        return Look(self.health(), self.residents(), self._measures.measured())

    def retire(self) -> bool:
        """Whether nobody is here; then nobody is let in any more, and the process can be ended."""
        return self._table.shut()

    def stop(self) -> None:
        """Makes `run` return after the batch in hand."""
        self._arrivals.put(None)

    def check(self) -> None:
        """Raises AssertionError where sessions, jobs and bytes don't add up."""
        self._table.check()

    # ---- the one compute thread ----

    def run(self) -> None:
        """The batch loop, until `stop`."""
        while self.run_once(block=True) is not None:
            pass

    def run_once(self, block: bool = False) -> int | None:
        """Takes in what has arrived and makes one batch step; how many sessions shared it. None after `stop`."""
        if not self._collect(block):
            return None
        batch = self._pick()
        if batch:
            self._step(batch)
        return len(batch)

    def _collect(self, block: bool) -> bool:
        wait = block and not self._ready
        while True:
            try:
                job = self._arrivals.get(block=wait)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._prepare(job)
            wait = False

    def _prepare(self, job: StepJob) -> None:
        """Validates and pushes before anything is batched: a bad input fails its own request only."""
        session = job.session
        if self._table.dropped(job):
            return
        try:
            session.take(self.model, job)
            if job.request.finish:
                self._flush(job)
            elif self.model.ready(session.state):
                self._ready.append(job)
            else:
                self._commit(job, [], self._clock(), 1)
        except BadRequest as error:
            self._refuse(job, error)
        except Exception as error:  # noqa: BLE001 - whatever the model raises ends this session, not the actor
            self._fail(job, error)

    def _pick(self) -> list[StepJob]:
        """Who makes the next step: see `cluster/slack.py:pick`."""
        jobs = {job.session.request.session: job for job in self._ready if not self._table.dropped(job)}
        now, most = self._clock(), self._table.room.batch or self._table.room.places
        ready = [self._standing(name, job, now) for name, job in jobs.items()]
        chosen = pick(ready, self._used, self._measures.step_ms, most, self._slack_share)
        picked = [jobs.pop(each.id) for each in chosen]
        self._ready = deque(jobs.values())
        return picked

    def _standing(self, name: str, job: StepJob, now: float) -> Ready:
        request, key = job.request, self.model.batch_key(job.session.state) if job.session.undoable else None
        waited_s, lead_s = now - job.arrived, PATIENCE_S if request.lead_s is None else request.lead_s
        return Ready(name, lead_s - waited_s, name if key is None else ("shares", key), waited_s, request.tenant)

    def _step(self, batch: list[StepJob]) -> None:
        began = self._clock()
        try:
            made = self._call([job.session for job in batch])
        except Exception as error:  # noqa: BLE001 - the model's failure belongs to its sessions, the loop goes on
            log.warning("a step of %d session(s) failed: %s: %s", len(batch), type(error).__name__, error)
            for job in batch:
                self._again(job, error)
            return
        took, active = (self._clock() - began) * 1000, self._table.active()
        self._used = self._used.after(self._clock(), [job.request.tenant for job in batch], took)
        self._measures.stepped(len(batch), took)
        for job, chunks in zip(batch, made, strict=True):
            self._measures.note(job.session, active, len(batch), (began - job.arrived) * 1000, took)
            self._commit(job, chunks, began, len(batch))

    def _again(self, job: StepJob, error: Exception) -> None:
        """After a failed batch: the second and last try of one member, by itself."""
        if self._table.dropped(job):
            return
        began = self._clock()
        try:
            if not job.session.undo(job):
                raise error
            job.session.take(self.model, job)
            self._commit(job, self._call([job.session])[0], began, 1)
        except Exception as again:  # noqa: BLE001 - as in `_step`
            self._fail(job, again)

    def _flush(self, job: StepJob) -> None:
        """Steps while there is input left, then what the model gives at the end; once."""
        session, began, chunks = job.session, self._clock(), list[Chunk]()
        if not session.flushed:
            takes = any(not port.once for port in session.description.inputs)  # a source is ready for ever
            while takes and self.model.ready(session.state):
                chunks += self._call([session])[0]
            chunks += self.model.finish(session.state)
        session.flushed = True
        self._commit(job, chunks, began, 1)

    def _call(self, sessions: Sequence[StageSession]) -> list[list[Chunk]]:
        """One step of the model, timed."""
        self._started = began = self._clock()
        try:
            made = self.model.step([session.state for session in sessions])
        finally:
            self._started = 0.0
        if len(made) != len(sessions):
            raise RuntimeError(f"{type(self.model).__name__}.step returned {len(made)} results for {len(sessions)}")
        with self._figures:
            self._steps += 1
            self._compute_ms.append((self._clock() - began) * 1000)
        return made

    # ---- answers ----

    def _commit(self, job: StepJob, chunks: Sequence[Chunk], began: float, batched: int) -> None:
        session = job.session
        took, wait = (self._clock() - began) * 1000, (began - job.arrived) * 1000
        try:
            ready = not session.flushed and self.model.ready(session.state)
            with self._table.lock:
                if not self._table.dropped(job):
                    figures = {"compute_ms": took, "wait_ms": wait, "batched": batched}
                    decided = self.model.decisions(session.state)
                    reply = session.commit(job, chunks, ready, decisions=decided, **figures)
                    if job.request.save:  # before the reply, since whoever has that may ask for it at once
                        self.checkpoints.expect(session)
                    job.future.set_result(reply)
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug("made %d chunks in %.1f ms", len(chunks), took, extra=_about(job))
        except Exception as error:  # noqa: BLE001 - a model that hands out nonsense ends its session, not the loop
            self._fail(job, error)
        else:
            if job.request.save:  # copied before the next step can begin
                self.checkpoints.begin(session, job.request.save)

    def _refuse(self, job: StepJob, error: BadRequest) -> None:
        """Refuses a request and leaves the session as it was, where its State can go back; else the session ends."""
        if not job.session.undo(job) and len(job.request.inputs) > 1:
            return self._fail(job, error)
        with self._table.lock:
            if not self._table.dropped(job):
                job.session.job = None
                job.future.set_exception(error)

    def _fail(self, job: StepJob, error: Exception) -> None:
        what = f"session {job.session.request.session}, step {job.request.seq}: {type(error).__name__}: {error}"
        log.error("%s; the session ends", what, exc_info=error, extra=_about(job))
        with self._table.lock:
            self._table.end(job.session, StepFailed, what)
            self._table.dropped(job)

    def _need(self, description: Description) -> Need:
        return self._footprint.need(description) if self._footprint else described(description)

    def _described(self, params: Any) -> tuple[Description, Need]:
        said = self.model.describe(params)
        need = self._need(said)
        return dataclasses.replace(said, retained_bytes=need.retained, peak_bytes=need.peak), need

    def _open_state(self, request: OpenRequest, params: Any) -> Any:
        state = self.model.open(params, request.seed)
        if request.embedding is not None:  # the first prompt reaches the model the way every later one does
            prompt = request.params.get("prompt")
            self.model.control(state, Control(revision=0, kind="prompt", value=prompt, embedding=request.embedding))
        return state


def _about(job: StepJob) -> dict[str, Any]:
    """What a log line of a step is about."""
    request = job.request
    return about(request.session, seq=request.seq, epoch=request.epoch.number)
