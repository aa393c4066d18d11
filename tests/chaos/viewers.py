"""Clients of a chaos run: each streams one workload again and again, as a user of the client would, and writes down
every frame it is given."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from riverrun.client.aio import AsyncClient
from riverrun.client.errors import Error, NoRoom, Unavailable
from riverrun.client.stream import AsyncStream
from riverrun.client.types import TICKS_PER_SECOND, Frame, Patience
from riverrun.models.synthetic import source_frame
from riverrun.protos import riverrun_pb2 as pb

from .checker import Expected, Faults, Got, chunk_seconds, first_changed, judge, sha

PATIENCE = Patience(reconnect=240.0, ping=2.0, silence=8.0)
WINDOW = 8
CHUNK_FRAMES, SIDE, FPS = 4, 32, 16.0
STATE_BYTES = 200_000
SWITCH_EVERY_S = 3.0


@dataclass(frozen=True)
class Workload:
    """frames: of one session; then the next begins. steered: its prompt changes all the time, so that its frames are
    checked against arithmetic and not against a run before."""

    name: str
    graph: str
    frames: int
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    steered: bool = False
    stages: int = 1

    def undisturbed(self) -> Workload:
        """The same frames as fast as they can be made."""
        quick = {key: 0 if key.endswith("step_ms") else value for key, value in self.params.items()}
        return Workload(self.name, self.graph, self.frames, self.seed, quick)

    def computed(self, got: Got) -> tuple[int, int, str]:
        """What a chain of synthetic stages must have made. Only for those."""
        prompt = prompt_of(got.revision)
        pixels = source_frame(self.seed, prompt, got.number // CHUNK_FRAMES, got.number, SIDE, SIDE)
        ticks = round(TICKS_PER_SECOND / FPS)
        return got.number * ticks, got.revision, sha(pixels if self.stages % 2 else 255 - pixels)


def prompt_of(revision: int) -> str:
    return f"prompt {revision}" if revision else "synthetic"


def synthetic(name: str, stages: int, frames: int, seed: int, step_ms: float, steered: bool = False) -> Workload:
    later = [f"s{n}" for n in range(1, stages)]
    if stages == 1:
        params: dict[str, Any] = {"step_ms": step_ms, "state_bytes": STATE_BYTES}
    else:
        params = {"s0.step_ms": step_ms, "s0.state_bytes": STATE_BYTES}
        params |= {f"{n}.takes": CHUNK_FRAMES for n in later} | {f"{n}.state_bytes": STATE_BYTES for n in later}
    return Workload(name, f"chain{stages}", frames, seed, params, steered, stages)


@dataclass
class Life:
    """One session of a viewer. is_over: it has reached its end, or failed. error: why it ended early."""

    session: str
    got: list[Got] = field(default_factory=list)
    is_over: bool = False
    error: str = ""


class Viewer:
    """Streams until told to stop. addresses: of the gateways; one after the other gets the next session.

    times: when each frame came, over all sessions. faults, sessions, lost: of the sessions that are over.
    """

    def __init__(self, workload: Workload, expected: Expected, addresses: Sequence[str], first: int = 0) -> None:
        self.workload = workload
        self.times: list[float] = []
        self.faults, self.sessions, self.frames, self.reconnects = Faults(), 0, 0, 0
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
        work = self.workload
        return await rr.stream(work.graph, seed=work.seed, frames=work.frames, buffer=WINDOW, lead=0, **work.params)

    async def _watch(self, stream: AsyncStream) -> None:
        self._life = life = Life(stream.session_id)
        switching = asyncio.create_task(self._switch(stream)) if self.workload.steered else None
        try:
            async for frame in stream:
                life.got.append(got_of(frame))
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
            self._life = None
            self._judge(life)
            await stream.close()

    async def _switch(self, stream: AsyncStream) -> None:
        for revision in itertools.count(1):
            await asyncio.sleep(SWITCH_EVERY_S)
            # Of the first stage alone: each stage of a chain takes a control when it comes to it.
            stream._control(pb.Control(prompt=prompt_of(revision), stage="s0"))

    def _judge(self, life: Life) -> None:
        found = judge(life.got, self._expected, self.workload.frames if life.is_over else None)
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


def got_of(frame: Frame) -> Got:
    pts = round(frame.seconds * TICKS_PER_SECOND)
    return Got(frame.number, pts, frame.revision, sha(frame.array), time.monotonic(), frame.chunk)


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


def undisturbed(workload: Workload, address: str) -> Expected:
    """Streams it once, when nothing is being broken."""

    async def stream() -> list[Got]:
        async with AsyncClient(address, PATIENCE) as rr:
            work = workload.undisturbed()
            frames = await rr.stream(work.graph, seed=work.seed, frames=work.frames, lead=0, **work.params)
            return [got_of(frame) async for frame in frames]

    known = [(each.pts, each.revision, each.sha) for each in asyncio.run(stream())]
    if len(known) != workload.frames:
        raise RuntimeError(f"the undisturbed run of {workload.name} had {len(known)} frames, not {workload.frames}")
    return lambda got: known[got.number] if got.number < len(known) else (-1, -1, "")
