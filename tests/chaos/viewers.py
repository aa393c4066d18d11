"""Clients of a chaos run: each streams one workload again and again, as a user of the client would, and writes down
every frame it is given."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from riverrun.client.aio import AsyncClient
from riverrun.client.errors import Error, NoRoom, Unavailable
from riverrun.client.stream import AsyncStream
from riverrun.client.types import TICKS_PER_SECOND, Frame, Patience
from riverrun.protos import riverrun_pb2 as pb

from .checker import Expected, Faults, Got, chunk_seconds, first_changed, judge, sha
from .feeding import FedStream, Feed
from .processes import Stopwatch
from .tiny import fed, row
from .workloads import Workload, prompt_of

PATIENCE = Patience(reconnect=1800.0, ping=2.0, silence=8.0)
"""A client gives up later than the run does."""

OPEN_S = 120.0
WINDOW = 8
SWITCH_EVERY_S = 3.0


@dataclass
class Life:
    """One session of a viewer. is_over: it has reached its end, or failed. error: why it ended early."""

    session: str
    got: list[Got] = field(default_factory=list)
    is_over: bool = False
    error: str = ""


class Viewer:
    """Streams until told to stop. addresses: of the gateways; one after the other gets the next session.

    times: when each frame came, over all sessions. faults, sessions, lost: of the sessions that are over. off: the
    largest difference from the undisturbed run. again: inputs that were sent more than once.
    """

    def __init__(self, workload: Workload, expected: Expected, addresses: Sequence[str], first: int = 0) -> None:
        self.workload = workload
        self.times: list[float] = []
        self.faults, self.sessions, self.frames, self.reconnects = Faults(), 0, 0, 0
        self.off, self.again = 0.0, 0
        self.lost: list[str] = []
        self.refused: list[str] = []
        self._expected, self._chunks = expected, list[float]()
        self._life: Life | None = None
        self._addresses = itertools.islice(itertools.cycle(addresses), first, None)
        self._stop = threading.Event()

    @property
    def session(self) -> str:
        """The one that streams now."""
        return self._life.session if self._life else ""

    @property
    def chunk_s(self) -> float:
        """The usual time between two chunks."""
        if self._chunks:
            return statistics.median(self._chunks)
        return chunk_seconds(self._life.got) if self._life else 0.0

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        while not self._stop.is_set():
            async with AsyncClient(next(self._addresses), PATIENCE) as rr:
                try:
                    stream = await self._open(rr)
                except (Unavailable, NoRoom) as error:  # nothing was promised yet
                    self.refused.append(str(error))
                    await asyncio.sleep(1.0)
                    continue
                await self._watch(stream)

    async def _open(self, rr: AsyncClient) -> AsyncStream:
        return await opened(rr, self.workload, WINDOW)

    async def _watch(self, stream: AsyncStream) -> None:
        self._life = life = Life(stream.session_id)
        switching = asyncio.create_task(self._switch(stream)) if self.workload.steered else None
        try:
            async for frame in stream:
                life.got.append(got_of(frame, self._expected))
                self.times.append(life.got[-1].at)
                if self._stop.is_set():
                    break
            else:
                life.is_over = True
        except Error as error:
            life.error, life.is_over = f"{error.code}: {error}", True
        finally:
            if switching:
                switching.cancel()
            self.reconnects += stream.reconnects
            self.again += stream.feed.again if isinstance(stream, FedStream) else 0
            self._life = None
            self._judge(life)
            await stream.close()

    async def _switch(self, stream: AsyncStream) -> None:
        for revision in itertools.count(1):
            await asyncio.sleep(SWITCH_EVERY_S)
            # Of the first stage alone: each stage of a chain takes a control when it comes to it.
            stream._control(pb.Control(prompt=prompt_of(revision), stage="s0"))

    def _judge(self, life: Life) -> None:
        due = self.workload.frames if life.is_over else None
        found = judge(life.got, self._expected, due, list(self.workload.graph["outputs"]))
        self.off = max([self.off, *(each.off for each in life.got)])
        self.faults += found
        self.sessions, self.frames = self.sessions + 1, self.frames + len(life.got)
        if usual := chunk_seconds(life.got):
            self._chunks.append(usual)
        if life.error or found != Faults():
            why = [life.error, first_changed(life.got, self._expected), self._drawn(life.got)]
            self.lost.append(f"{self.workload.name} {life.session}: {found} {'; '.join(filter(None, why))}")

    def _drawn(self, got: Sequence[Got]) -> str:
        """Of the first changed frame of a steered session: which revision its pixels are of."""
        if not self.workload.steered:
            return ""
        for each in got:
            drawn = [r for r in range(99) if self._expected(replace(each, revision=r))[2] == each.sha]
            if drawn != [each.revision]:
                return f"its pixels are of revision {drawn}"
        return ""


async def opened(rr: AsyncClient, work: Workload, buffer: int | None = None) -> AsyncStream:
    stream = await rr.stream(
        work.graph_name, seed=work.seed, frames=work.frames, buffer=buffer, lead=work.lead, **work.params
    )
    if inputs := work.inputs:
        arrays = fed(row(inputs.row), work.seed, lambda port: port in inputs.ports)
        limited = {port: itertools.islice(each, inputs.most) for port, each in arrays.items()}
        return FedStream.of(stream, Feed(limited, inputs.ticks))
    return stream


def got_of(frame: Frame, expected: Expected | None = None) -> Got:
    pts = round(frame.seconds * TICKS_PER_SECOND)
    got = Got(frame.number, pts, frame.revision, "", time.monotonic(), frame.chunk, frame.port)
    if isinstance(expected, Near):
        return expected.judged(got, frame.array)
    return replace(got, sha=sha(frame.array))


class Known:
    """What an undisturbed run gave: (pts, revision, sha) by port and number."""

    def __init__(self, got: Sequence[Got]) -> None:
        self._known = {(each.port, each.number): (each.pts, each.revision, each.sha) for each in got}

    def __call__(self, got: Got) -> tuple[int, int, str]:
        return self._known.get((got.port, got.number), (-1, -1, ""))


class Near(Known):
    """As `Known` for steps in batches: pixels may differ, and by how much is noted. Token ids may not."""

    def __init__(self, got: Sequence[Got], arrays: Sequence[np.ndarray]) -> None:
        super().__init__(got)
        self._arrays = {(each.port, each.number): array for each, array in zip(got, arrays, strict=True)}

    def judged(self, got: Got, array: np.ndarray) -> Got:
        due = self._arrays.get((got.port, got.number))
        if due is None or due.shape != array.shape or array.dtype == np.int64:
            return replace(got, sha=sha(array))
        off = np.abs(array.astype(np.float64) - due).max(initial=0.0)
        return replace(got, sha=self(got)[2], off=float(off))


class Audience:
    """Viewers on a loop of their own."""

    def __init__(self, viewers: Sequence[Viewer]) -> None:
        self.viewers = viewers
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="viewers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as tasks:
                for viewer in self.viewers:
                    tasks.create_task(viewer.run())

        try:
            asyncio.run(all_of_them())
        except BaseException as error:  # noqa: BLE001 - it is raised where the run is watched
            self.failure = error

    def check(self) -> None:
        if self.failure:
            raise self.failure

    def stop(self, seconds: float) -> None:
        for viewer in self.viewers:
            viewer.stop()
        self._thread.join(seconds)
        self.check()


def undisturbed(works: Sequence[Workload], address: str, is_batched: bool) -> dict[str, Expected]:
    """By name. Streams each once, when nothing is being broken; one after the other where steps would be shared."""

    async def stream(work: Workload) -> list[Frame]:
        watch = Stopwatch()
        async with AsyncClient(address, PATIENCE) as rr:
            while True:
                try:
                    stream = await opened(rr, work.undisturbed())
                except (Unavailable, NoRoom):  # on a busy machine an actor may be slow enough to be given up
                    if watch.read() > OPEN_S:
                        raise
                    await asyncio.sleep(1.0)
                else:
                    return [frame async for frame in stream]

    async def all_of_them() -> list[list[Frame]]:
        if is_batched:
            return [await stream(work) for work in works]
        return await asyncio.gather(*map(stream, works))

    found = zip(works, asyncio.run(all_of_them()), strict=True)
    return {work.name: _known(work, frames, is_batched) for work, frames in found}


def _known(work: Workload, frames: Sequence[Frame], is_batched: bool) -> Expected:
    due, got = work.frames * len(work.graph["outputs"]), [got_of(frame) for frame in frames]
    if len(frames) != due:
        raise RuntimeError(f"the undisturbed run of {work.name} had {len(frames)} frames, not {due}")
    return Near(got, [frame.array for frame in frames]) if is_batched else Known(got)
