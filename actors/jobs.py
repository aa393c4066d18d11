"""Jobs: sessions that are rendered to files with no client attached. Kept in memory: they end with their gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from riverrun.actors.errors import NotFound
from riverrun.actors.host import MAX_CLIENT_ID, Hosted, SessionHost, SessionWish
from riverrun.actors.principal import ANYBODY, Principal
from riverrun.actors.quota import Pace
from riverrun.actors.sessions import NoRoom
from riverrun.actors.sinks import FileSink, Writer, sink_path, writer_for
from riverrun.graphs.controls import PAUSE
from riverrun.graphs.items import Event, Frame
from riverrun.graphs.script import TimedControl
from riverrun.graphs.sink import drain
from riverrun.graphs.waiting import Signal
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.records import SessionState

log = logging.getLogger(__name__)
KEPT = 256
"""Jobs that have ended and can still be asked for."""


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class JobSpec:
    """What is to be rendered. frames: of the graph's first output. sinks: URI by output port. tenant: whose it is."""

    graph: str
    params: Mapping[str, Any]
    seed: int
    client_id: str
    frames: int
    controls: tuple[TimedControl, ...]
    sinks: Mapping[str, str]
    tenant: str = ""

    def check(self, max_frames: int, jobs_dir: str = "") -> None:
        """Raises BadRequest for what can be seen without opening anything."""
        if not 0 < self.frames <= max_frames:
            raise BadRequest(f"frames must be 1..{max_frames}, got {self.frames}")
        if not self.sinks:
            raise BadRequest("sinks is empty: say where at least one output port goes")
        for uri in self.sinks.values():
            sink_path(uri, jobs_dir)
        if len(self.client_id) > MAX_CLIENT_ID:
            raise BadRequest(f"client_id has {len(self.client_id)} characters, at most {MAX_CLIENT_ID}")
        revisions = [timed.control.revision for timed in self.controls]
        if revisions != sorted(set(revisions)):
            raise BadRequest(f"revisions of a job's controls must rise, got {revisions}")
        if any(timed.control.kind == PAUSE for timed in self.controls):
            raise BadRequest("a job has nobody to go on for: it takes no pause")


@dataclass
class Job:
    """One job. changed: wakes those who watch it."""

    id: str
    spec: JobSpec
    created: float
    state: JobState = JobState.RUNNING
    reason: str = ""
    session: str = ""
    frames_done: int = 0
    changed: Signal = field(default_factory=Signal)
    task: asyncio.Task[None] | None = None

    def end(self, state: JobState, reason: str = "") -> None:
        if self.state is JobState.RUNNING:
            self.state, self.reason = state, reason
            self.changed.notify()

    def over(self, task: asyncio.Task[None]) -> None:
        """Lets go of its task: a cancelled one would hold on to the whole session for as long as the job is kept."""
        if self.state is not JobState.RUNNING:
            self.task = None


class JobDesk:
    """The jobs of one gateway. pool: for encoding."""

    def __init__(self, host: SessionHost, pool: Executor) -> None:
        self._host, self._pool = host, pool
        self._jobs: dict[str, Job] = {}

    async def submit(self, spec: JobSpec) -> Job:
        """Opens the job's session and lets it run. A repeat with a client_id returns that job.

        Raises BadRequest, NotFound, NoRoom, Unavailable: what is wrong with the job is said here, not later.
        """
        for job in self._jobs.values():
            if spec.client_id and (job.spec.tenant, job.spec.client_id) == (spec.tenant, spec.client_id):
                return job
        config = self._host.config
        limits = config.limits
        if sum(job.state is JobState.RUNNING for job in self._jobs.values()) >= limits.jobs:
            raise NoRoom(f"{limits.jobs} jobs are running, the limit; one must end first")
        spec.check(limits.job_frames, self._folder(spec))
        graph = self._host.directory.graph(spec.graph)
        for port in spec.sinks:
            if port not in graph.outputs:
                raise BadRequest(f"graph {graph.name!r} has no output {port!r}; it has {', '.join(graph.outputs)}")
        for timed in spec.controls:
            if timed.stage:
                graph.stage(timed.stage)
        job = Job(uuid.uuid4().hex, spec, self._host.clock.now())
        self._keep(job)
        try:
            hosted = await self._open(job)
        except BaseException:
            del self._jobs[job.id]
            raise
        job.task = asyncio.create_task(self._run(job, *hosted), name=f"job {job.id}")
        job.task.add_done_callback(job.over)
        return job

    def get(self, job: str, who: Principal) -> Job:
        """Raises NotFound, also for a job that `who` is not to see."""
        if job not in self._jobs or not who.sees(self._jobs[job].spec.tenant):
            raise NotFound(f"there is no job {job!r}; it may have ended and been forgotten")
        return self._jobs[job]

    def all(self, who: Principal) -> list[Job]:
        """Those that `who` may see, newest first."""
        return [job for job in self._jobs.values() if who.sees(job.spec.tenant)][::-1]

    async def cancel(self, job: str, who: Principal, reason: str = "cancelled") -> Job:
        """Stops a job and removes its unfinished file; one that has ended is left as it is."""
        found = self.get(job, who)
        if found.state is JobState.RUNNING:
            found.end(JobState.CANCELLED, reason)
            if found.task:  # else it is opening still, and stops when that is over
                found.task.cancel()
                await asyncio.wait({found.task})
        return found

    async def watch(self, job: str, who: Principal) -> AsyncIterator[Job]:
        """The job now, and after each change until it has ended."""
        found = self.get(job, who)
        seen: tuple[JobState, int] | None = None

        def news() -> tuple[JobState, int] | None:
            now = (found.state, found.frames_done)
            return now if now != seen else None

        while seen is None or seen[0] is JobState.RUNNING:
            seen = await found.changed.until(news)
            yield found

    async def close(self, reason: str) -> None:
        """Ends every job."""
        await asyncio.gather(*(self.cancel(job.id, ANYBODY, reason) for job in self.all(ANYBODY)))

    def _folder(self, spec: JobSpec) -> str:
        """Where a job may write, "" for anywhere: a tenant only into its own folder."""
        root = self._host.config.jobs_dir
        return str(Path(root) / spec.tenant) if root and spec.tenant else root

    def check(self) -> None:
        """Raises Corrupt if a job counts as running that nobody runs, or more ended ones are kept than may be."""
        states = [job.state for job in self._jobs.values()]
        left = [j.id for j in self._jobs.values() if j.state is JobState.RUNNING and j.task and j.task.done()]
        ended = sum(state is not JobState.RUNNING for state in states)
        if left or ended > KEPT + self._host.config.limits.jobs:
            raise Corrupt(f"{ended} ended jobs are kept, and nobody runs {left}")

    async def _open(self, job: Job) -> tuple[Hosted, dict[str, Writer]]:
        spec = job.spec
        wish = SessionWish(spec.graph, spec.params, spec.seed, max_frames=spec.frames, lead_s=0.0, tenant=spec.tenant)
        hosted = await self._host.create(wish, spec.controls)
        job.session = hosted.runner.record.id
        writers: dict[str, Writer] = {}
        try:
            for output in hosted.runner.status().outputs:
                if output.port in spec.sinks:
                    where = (output.fps, output.frame_shape, self._folder(spec))
                    writers[output.port] = writer_for(spec.sinks[output.port], *where)
        except BaseException:
            for writer in writers.values():
                writer.close(whole=False)
            await hosted.runner.close("its job can't be done")
            raise
        return hosted, writers

    async def _run(self, job: Job, hosted: Hosted, writers: dict[str, Writer]) -> None:
        sink = _Counting(FileSink(writers, self._pool), job, self._host.quotas.pace(job.spec.tenant))
        failure = "stopped"
        try:
            if job.state is JobState.RUNNING:
                failure = await self._render(job, hosted, sink)
        except Exception as error:  # noqa: BLE001 - a full disk, a codec: nobody but the job can tell
            failure = f"{type(error).__name__}: {error}"
        finally:
            await self._leave(hosted, f"job {job.id} is over")
            failure = await sink.close(failure)
        job.end(JobState.FAILED if failure else JobState.SUCCEEDED, failure)

    async def _leave(self, hosted: Hosted, reason: str) -> None:
        """Its session ends with the job, also one that was put away: nobody would ever come back for it."""
        await hosted.runner.close(reason)
        if hosted.runner.state is SessionState.SUSPENDED:
            with contextlib.suppress(NotFound, Unavailable):  # the store is away: it expires there
                await self._host.close(hosted.runner.record.id, reason)

    async def _render(self, job: Job, hosted: Hosted, sink: _Counting) -> str:
        """Why not all frames were written; "" if they were."""
        end: Event = await drain(hosted.runner, sink, tuple(job.spec.sinks))
        record = await hosted.runner.ended()
        first = next(iter(record.ports))
        made = sink.frames.get(first, record.ports[first].emitted)
        return "" if not end.failed and made >= job.spec.frames else end.reason

    def _keep(self, job: Job) -> None:
        self._jobs[job.id] = job
        ended = [old for old in self._jobs.values() if old.state is not JobState.RUNNING]
        for old in ended[: max(0, len(ended) - KEPT)]:
            del self._jobs[old.id]


class _Counting:
    """Counts the frames of the slowest port into the job, which goes at its tenant's pace."""

    def __init__(self, inner: FileSink, job: Job, pace: Pace) -> None:
        self._inner, self._job, self._pace = inner, job, pace

    @property
    def frames(self) -> dict[str, int]:
        """Written so far, by port."""
        return self._inner.frames

    async def write(self, frame: Frame) -> None:
        await self._pace.take()
        await self._inner.write(frame)
        self._job.frames_done = min(self.frames.values())
        self._job.changed.notify()

    async def close(self, failure: str) -> str:
        """Keeps the files if nothing failed; what failed, closing them included."""
        try:
            await self._inner.close(whole=not failure)
        except Exception as error:  # noqa: BLE001 - as in `_run`
            return failure or f"{type(error).__name__}: {error}"
        return failure
