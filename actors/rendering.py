"""One job at work: its session is read into its sinks, through suspensions, to the end or until others go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor

from riverrun.actors.errors import NotFound
from riverrun.actors.host import Hosted, SessionHost
from riverrun.actors.job import Job
from riverrun.actors.mp4_file import MOST_FRAMES
from riverrun.actors.quota import Pace
from riverrun.actors.sinks import FileSink, Writer, writer_for
from riverrun.graphs.items import Event, EventType, Frame
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.sink import drain
from riverrun.graphs.stage import StaleEpoch
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.records import Conflict, SessionState

log = logging.getLogger(__name__)
AHEAD = MOST_FRAMES + 4
"""Frames that may be sent and not be on disk yet: a part of a film, and some that are on their way."""

RETRY_S = 2.0
"""Between two tries to take a session up again, where nobody said when."""


class Left(Exception):
    """The job is not this gateway's any more; files and record stay for whoever goes on."""


class Rendering:
    """owns: whether the job is this gateway's, as far as is known. folder: where it may write ("": anywhere)."""

    def __init__(
        self, job: Job, host: SessionHost, pool: Executor, folder: str, owns: Callable[[], Awaitable[bool]]
    ) -> None:
        self._job, self._host, self._pool, self._folder, self._owns = job, host, pool, folder, owns
        self._hosted: Hosted | None = None
        self._sink: _Counting | None = None

    async def begin(self) -> None:
        """Opens session and sinks. Raises BadRequest, NotFound, NoRoom, Unavailable, with nothing left open."""
        spec = self._job.spec
        hosted = await self._host.create(spec.wish(), spec.controls)
        outputs = {o.port: (o.fps, *(o.frame_shape or (0, 0))) for o in hosted.runner.status().outputs}
        outputs = {port: outputs[port] for port in spec.sinks}
        try:
            self._sink = self._sink_for(outputs)
        except BaseException:
            await hosted.runner.close("its job can't be done")
            raise
        self._take(hosted)
        self._job.record = self._job.noted(session=hosted.runner.record.id, outputs=outputs)

    async def go_on(self) -> None:
        """Takes up what another gateway has left; where the session can't be gone on with, all from the beginning: what
        is made is the same. Raises as `begin`, Left."""
        record = self._job.record
        if self._host.vault and record.session and record.outputs:
            self._sink = self._sink_for(record.outputs)
            try:
                return await self._take_up(0.0)
            except (BadRequest, Corrupt) as error:  # it has ended, or is forgotten
                log.warning("job %s begins again: %s", self._job.id, error)
                await self._sink.close("it begins again")
        while True:
            try:
                return await self.begin()
            except (NotFound, BadRequest):
                raise
            except Unavailable as error:
                log.info("job %s waits: %s", self._job.id, error)
                await self._wait(RETRY_S)

    async def run(self) -> str:
        """Why not all frames were written; "" if they were. Raises Left, and what a sink raises."""
        assert self._sink
        while True:
            assert self._hosted
            runner = self._hosted.runner
            end: Event = await drain(runner, self._sink, tuple(self._job.spec.sinks), AHEAD, dict(self._sink.frames))
            if end.type is EventType.SUSPENDED:
                if isinstance(runner.fault, Conflict | StaleEpoch):
                    raise Left
                await self._take_up(end.retry_s or RETRY_S)
                continue
            record = await runner.ended()
            first = next(iter(record.ports))
            made = self._sink.frames.get(first, record.ports[first].emitted)
            if not end.failed and made >= self._job.spec.frames:
                return ""
            if self._is_handed_over:
                raise Left
            return end.reason

    async def close(self, failure: str) -> str:
        """Ends the session; keeps the files if nothing failed. What failed, closing them included. Raises Left."""
        await self._leave_session()
        if failure and not await self._owns():
            raise Left
        return await self._sink.close(failure) if self._sink else failure

    async def leave(self) -> None:
        """Somebody else goes on."""
        if self._sink:
            await self._sink.leave()

    @property
    def _is_handed_over(self) -> bool:
        return bool(self._host.closing and self._host.vault and self._host.hands_over)

    def _take(self, hosted: Hosted) -> None:
        self._hosted, hosted.job = hosted, self._job.id

    async def _take_up(self, later_s: float) -> None:
        """Goes on with the session when there is room. Raises Left, or BadRequest and Corrupt if it can't be."""
        assert self._sink
        await self._wait(later_s)
        while True:
            try:
                return self._take(await self._host.reach(self._job.session, None, dict(self._sink.frames)))
            except SessionEnded:
                raise
            except Unavailable as error:
                log.info("job %s waits: %s", self._job.id, error)
                await self._wait(RETRY_S)

    async def _wait(self, seconds: float) -> None:
        """Raises Left if somebody else is to go on."""
        if not self._host.closing:
            await self._host.clock.sleep(seconds)
        if self._host.closing or not await self._owns():
            raise Left

    def _sink_for(self, outputs: Mapping[str, tuple[float, int, int]]) -> _Counting:
        writers: dict[str, Writer] = {}
        try:
            for port, (fps, *shape) in outputs.items():
                at = (fps, (shape[0], shape[1]) if all(shape) else None, self._folder, self._job.id[:12])
                writers[port] = writer_for(self._job.spec.sinks[port], *at)
        except BaseException:
            for writer in writers.values():
                writer.close(whole=False)
            raise
        return _Counting(FileSink(writers, self._pool), self._job, self._host.quotas.pace(self._job.spec.tenant))

    async def _leave_session(self) -> None:
        """It ends with the job, also one that was put away: nobody would ever come back for it."""
        if self._hosted is None:
            return
        runner, reason = self._hosted.runner, f"job {self._job.id} is over"
        await runner.close(reason)
        if runner.state is SessionState.SUSPENDED:
            with contextlib.suppress(NotFound, Unavailable):  # the store is away: it expires there
                await self._host.close(runner.record.id, reason)


class _Counting:
    """Counts the frames of the slowest port into the job, which goes at its tenant's pace."""

    def __init__(self, inner: FileSink, job: Job, pace: Pace) -> None:
        self._inner, self._job, self._pace = inner, job, pace
        job.frames_done = min(inner.frames.values())

    @property
    def frames(self) -> dict[str, int]:
        """Written so far, by port."""
        return self._inner.frames

    def durable(self, port: str) -> int:
        return self._inner.durable(port)

    async def write(self, frame: Frame) -> None:
        await self._pace.take()
        await self._inner.write(frame)
        self._job.frames_done = min(self.frames.values())
        self._job.changed.notify()

    async def close(self, failure: str) -> str:
        """Keeps the files if nothing failed; what failed, closing them included."""
        try:
            await self._inner.close(whole=not failure)
        except Exception as error:  # noqa: BLE001 - a full disk, a codec: nobody but the job can tell
            return failure or f"{type(error).__name__}: {error}"
        return failure

    async def leave(self) -> None:
        with contextlib.suppress(OSError):  # what was not on disk is made again
            await asyncio.shield(self._inner.leave())
