"""Jobs: sessions that are rendered to files with no client attached, and that outlive their gateway.

A job's record is in the store. Where the heartbeat of its gateway lapses, another gateway claims it (`round`), takes
its session over, and writes on after the frames that are on disk.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from riverrun.actors.errors import NotFound
from riverrun.actors.host import SessionHost
from riverrun.actors.job import Job, JobSpec, JobState
from riverrun.actors.principal import Principal
from riverrun.actors.rendering import Left, Rendering
from riverrun.actors.sessions import NoRoom
from riverrun.models.base import BadRequest, Corrupt, Unavailable, one_line
from riverrun.store.jobs import JobRecord
from riverrun.store.records import Conflict

log = logging.getLogger(__name__)
KEPT = 256
"""Jobs that have ended here and can still be asked for without the store."""

LOOK_S = 2.0
"""Between two looks at what jobs there are, and two notes of how far one has come."""

LINK_S = 10.0
"""A gateway calls another one dead only when it has reached the store itself for so long, as heartbeats last."""


class JobDesk:
    """The jobs of one gateway. pool: for encoding."""

    def __init__(self, host: SessionHost, pool: Executor) -> None:
        self._host, self._pool = host, pool
        self._jobs: dict[str, Job] = {}
        self._linked_since: float | None = None

    # ---- what clients ask for ----

    async def submit(self, spec: JobSpec) -> Job:
        """Opens the job's session and lets it run. A repeat with a client_id returns that job.

        Raises BadRequest, NotFound, NoRoom, Unavailable: what is wrong with the job is said here, not later.
        """
        for job in self._jobs.values():
            if spec.client_id and (job.spec.tenant, job.spec.client_id) == (spec.tenant, spec.client_id):
                return job
        limits = self._host.config.limits
        if self._running >= limits.jobs:
            raise NoRoom(f"{limits.jobs} jobs are running, the limit; one must end first")
        spec.check(limits.job_frames, self._folder(spec))
        graph = self._host.directory.graph(spec.graph)
        for port in spec.sinks:
            if port not in graph.outputs:
                raise BadRequest(f"graph {graph.name!r} has no output {port!r}; it has {', '.join(graph.outputs)}")
        for timed in spec.controls:
            if timed.stage:
                graph.stage(timed.stage)
        job = Job.new(uuid.uuid4().hex, spec, self._host.name, self._host.clock.now())
        self._keep(job)
        try:
            stored = await self._host.store.jobs.create(job.record)
            if stored.id != job.id:
                del self._jobs[job.id]
                return self._jobs.get(stored.id) or Job.of(stored)
            rendering = self._rendering(job)
            await rendering.begin()
        except BaseException:
            if self._jobs.pop(job.id, None):
                await self._forget(job)
            raise
        self._start(job, self._run(job, rendering))
        return job

    async def get(self, job: str, who: Principal) -> Job:
        """Raises NotFound, also for a job that `who` is not to see."""
        found = self._jobs.get(job)
        if found is None and (record := await self._host.store.jobs.get(job)):
            found = Job.of(record)
        if found is None or not who.sees(found.spec.tenant):
            raise NotFound(f"there is no job {job!r}; it may have ended and been forgotten")
        return found

    async def all(self, who: Principal) -> list[Job]:
        """Those that `who` may see, newest first; while the store is away, of those here."""
        here = {job.id: job for job in self._jobs.values() if who.sees(job.spec.tenant)}
        try:
            elsewhere = [record for record in await self._host.store.jobs.all(who.scope) if record.id not in here]
        except Unavailable as error:
            log.warning("only the jobs of this gateway are listed: %s", error)
            elsewhere = []
        return sorted((*here.values(), *map(Job.of, elsewhere)), key=lambda job: job.created, reverse=True)

    async def cancel(self, job: str, who: Principal, reason: str = "cancelled") -> Job:
        """Stops a job and removes its unfinished file; one that has ended is left as it is."""
        found = await self.get(job, who)
        if found.id in self._jobs:
            await self._cancel(found, reason)
            return found
        while found.state is JobState.RUNNING:
            if not found.record.cancel:
                try:
                    await self._host.store.jobs.update(replace(found.record, cancel=reason))
                except Conflict:
                    found = await self.get(job, who)
                    continue
            await self._host.clock.sleep(LOOK_S / 4)
            found = await self.get(job, who)
        return found

    async def watch(self, job: str, who: Principal) -> AsyncIterator[Job]:
        """The job now, and after each change until it has ended."""
        seen: tuple[JobState, int] | None = None
        while seen is None or seen[0] is JobState.RUNNING:
            found = await self.get(job, who)
            now = (found.state, found.frames_done)
            if now != seen:
                seen = now
                yield found
            elif found.id in self._jobs:
                await found.changed.until(lambda: found.is_lost or (found.state, found.frames_done) != seen)  # noqa: B023
            else:
                await self._host.clock.sleep(LOOK_S / 4)

    # ---- its own jobs ----

    async def close(self, reason: str) -> None:
        """Ends every job."""
        await asyncio.gather(*(self._cancel(job, reason) for job in list(self._jobs.values())))

    async def left(self) -> None:
        """Returns when every job has noticed that this gateway leaves."""
        if tasks := [job.task for job in self._jobs.values() if job.task]:
            await asyncio.wait(tasks)

    def check(self) -> None:
        """Raises Corrupt if a job counts as running that nobody runs, or more ended ones are kept than may be."""
        states = [job.state for job in self._jobs.values()]
        left = [j.id for j in self._jobs.values() if j.state is JobState.RUNNING and j.task and j.task.done()]
        ended = sum(state is not JobState.RUNNING for state in states)
        if left or ended > KEPT + self._host.config.limits.jobs:
            raise Corrupt(f"{ended} ended jobs are kept, and nobody runs {left}")

    @property
    def _running(self) -> int:
        return sum(job.state is JobState.RUNNING for job in self._jobs.values())

    def _folder(self, spec: JobSpec) -> str:
        """Where a job may write, "" for anywhere: a tenant only into its own folder."""
        root = self._host.config.jobs_dir
        return str(Path(root) / spec.tenant) if root and spec.tenant else root

    def _rendering(self, job: Job) -> Rendering:
        return Rendering(job, self._host, self._pool, self._folder(job.spec), lambda: self._owns(job))

    def _start(self, job: Job, work: Any) -> None:
        job.task = asyncio.create_task(work, name=f"job {job.id}")
        job.task.add_done_callback(job.over)

    async def _run(self, job: Job, rendering: Rendering) -> None:
        """Renders, to whichever end. A cancelled job has its state already."""
        reporting = asyncio.create_task(self._report(job))
        failure = "stopped"
        try:
            await self._note(job)
            if job.state is JobState.RUNNING:
                failure = await rendering.run()
        except Left:
            job.is_lost = True
        except Exception as error:  # noqa: BLE001 - a full disk, a codec: nobody but the job can tell
            failure = one_line(f"{type(error).__name__}: {error}")
        finally:
            reporting.cancel()
            await self._end(job, rendering, failure)

    async def _end(self, job: Job, rendering: Rendering, failure: str) -> None:
        try:
            if not job.is_lost:
                failure = await rendering.close(failure)
                job.end(JobState.FAILED if failure else JobState.SUCCEEDED, failure)
                await self._note(job)
        except Left:
            job.is_lost = True
        if job.is_lost:
            await rendering.leave()
            await self._let_go(job)

    async def _let_go(self, job: Job) -> None:
        """Others may go on with it at once, if it is still this gateway's."""
        self._jobs.pop(job.id, None)
        job.changed.notify()
        if await self._owns(job):
            await self._note(job, gateway="")

    async def _cancel(self, job: Job, reason: str) -> None:
        if job.state is JobState.RUNNING:
            job.end(JobState.CANCELLED, reason)
            if job.task:  # else it is opening still, and stops when that is over
                job.task.cancel()
                await asyncio.wait({job.task})

    async def _report(self, job: Job) -> None:
        """Writes how far it has come, and stops it where another gateway was told to."""
        while True:
            await self._host.clock.sleep(LOOK_S)
            await self._note(job)
            if job.record.cancel and job.state is JobState.RUNNING:
                job.end(JobState.CANCELLED, job.record.cancel)
                if job.task:
                    job.task.cancel()

    async def _note(self, job: Job, **changes: Any) -> None:
        """Writes its record, softly: a job goes on when the store is away."""
        jobs = self._host.store.jobs
        try:
            try:
                job.record = await jobs.update(job.noted(**changes))
            except Conflict:
                stored = await jobs.get(job.id)
                if stored is None:
                    job.record = await jobs.create(job.noted(**changes, version=1))
                elif stored.gateway == self._host.name and not stored.has_ended:
                    job.record = replace(job.record, version=stored.version, cancel=stored.cancel)
                    job.record = await jobs.update(job.noted(**changes))
        except Unavailable as error:
            log.warning("job %s: not noted: %s", job.id, error)

    async def _owns(self, job: Job) -> bool:
        """Whether no other gateway goes on with it; not known: it may be so."""
        try:
            stored = await self._host.store.jobs.get(job.id)
        except Unavailable:
            return False
        return stored is None or stored.gateway == self._host.name

    async def _forget(self, job: Job) -> None:
        try:
            await self._host.store.jobs.delete(job.record)
        except Unavailable as error:
            log.warning("job %s, which could not begin, is left in the store: %s", job.id, error)

    def _keep(self, job: Job) -> None:
        self._jobs[job.id] = job
        ended = [old for old in self._jobs.values() if old.state is not JobState.RUNNING]
        for old in ended[: max(0, len(ended) - KEPT)]:
            del self._jobs[old.id]

    # ---- those of gateways that have died ----

    async def look(self) -> None:
        """Goes on with what others have left, for ever."""
        while True:
            await self._host.clock.sleep(LOOK_S)
            try:
                await self.round()
            except (Unavailable, Corrupt) as error:
                self._linked_since = None
                log.info("jobs are not looked after: %s", error)

    async def round(self) -> None:
        """Claims what nobody renders. Raises Unavailable."""
        now, alive = self._host.clock.now(), await self._host.store.gateways()
        self._linked_since = now if self._linked_since is None else self._linked_since
        for record in await self._host.store.jobs.running():
            if record.id in self._jobs or self._host.closing or self._running >= self._host.config.limits.jobs:
                continue
            if record.gateway in alive and record.gateway != self._host.name:
                continue
            if record.gateway and now - self._linked_since < LINK_S:
                continue
            await self._claim(record)

    async def _claim(self, record: JobRecord) -> None:
        try:
            taken = await self._host.store.jobs.update(replace(record, gateway=self._host.name))
        except Conflict:
            return  # another was quicker
        log.warning("job %s goes on here; it was of gateway %s", record.id, record.gateway or "none")
        job = Job.of(taken)
        self._keep(job)
        self._start(job, self._go_on(job))

    async def _go_on(self, job: Job) -> None:
        rendering, failure = self._rendering(job), "stopped"
        try:
            if job.record.cancel:
                job.end(JobState.CANCELLED, job.record.cancel)
            await rendering.go_on()
            return await self._run(job, rendering)
        except Left:
            job.is_lost = True
        except (BadRequest, Unavailable, Corrupt) as error:
            failure = one_line(str(error))
        await self._end(job, rendering, failure)
