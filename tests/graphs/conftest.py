"""A session on fakes: ten-line models behind handles that hold the stage contract, a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import Consumer, ConsumerSpec, PortWish, Role
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Event, Frame, Item
from riverrun.graphs.observer import SILENT
from riverrun.graphs.runner import Runner
from riverrun.graphs.stage import AttachReply, Epoch, OpenReply, OpenRequest, StepReply, StepRequest, UnknownSession
from riverrun.models.base import BadRequest, Chunk, Description, Kind, Port
from riverrun.store.checkpoints import Mark
from riverrun.store.memory import MemoryStore
from riverrun.store.records import SessionRecord

TICKS = 5625  # 16 fps


class FakeClock:
    """Time stands until `advance`."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, future))
        await future

    async def advance(self, seconds: float) -> None:
        await settle()
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
                await settle()
        self._now = end
        await settle()


async def settle() -> None:
    """Lets every task run until it waits for something only the test can give."""
    for _ in range(60):
        await asyncio.sleep(0)


async def eventually(check: Callable[[], Any]) -> None:
    for _ in range(5000):
        if check():
            return
        await asyncio.sleep(0)
    raise AssertionError("did not come true")


@dataclass
class Ref:
    """What a chunk carries between fakes: opaque to the runner."""

    array: np.ndarray


@dataclass
class FakeState:
    pending: list[tuple[int, int]] = field(default_factory=list)  # (pts, value) of frames not yet given out
    made: int = 0
    next_seq: int = 0
    revision: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)  # by port: chunks, frames


class FakeStage:
    """Emits chunks of `size` frames, at most `per_step` a step, once `latency` frames have come; frames are numbers.

    A source counts up. Others give their input on (of the first input port), so order and loss can be seen.
    """

    def __init__(
        self,
        size: int = 4,
        inputs: tuple[str, ...] = (),
        outputs: tuple[str, ...] = ("frames",),
        latency: int = 0,
        per_step: int = 1,
        controls: tuple[str, ...] = (),
        stop_after: int | None = None,
        compute_ms: float = 1.0,
    ):
        self.compute_ms = compute_ms
        self.description = Description(
            tuple(Port(name, Kind.FRAMES) for name in inputs),
            tuple(Port(name, Kind.FRAMES) for name in outputs),
            chunk_frames=size,
            fps=16.0,
            controls=controls,
            max_chunks=per_step,
            latency_frames=latency,
        )
        self.size, self.latency, self.per_step, self.stop_after = size, latency, per_step, stop_after
        self.states: dict[str, FakeState] = {}
        self.requests: list[StepRequest] = []
        self.opened: list[OpenRequest] = []
        self.fetched = 0
        self.in_flight = 0
        self.gate: asyncio.Semaphore | None = None
        self.fail: Callable[[StepRequest], None] = lambda request: None
        self.refuse: Mapping[int, str] = {}

    async def open(self, request: OpenRequest) -> OpenReply:
        self.opened.append(request)
        self.states[request.session] = FakeState()
        return OpenReply(self.description, "incarnation-1")

    async def step(self, request: StepRequest) -> StepReply:
        if request.session not in self.states:
            raise UnknownSession(f"no session {request.session}")
        state = self.states[request.session]
        assert request.seq == state.next_seq, "steps are numbered without gaps"
        assert self.in_flight == 0, "at most one step in flight"
        self.requests.append(request)
        self.in_flight += 1
        try:
            if self.gate:
                await self.gate.acquire()
            self.fail(request)
            state.next_seq += 1
            return self._run(state, request)
        finally:
            self.in_flight -= 1

    def _run(self, state: FakeState, request: StepRequest) -> StepReply:
        first = self.description.inputs[0].name if self.description.inputs else ""
        for chunk in request.inputs:
            values = chunk.data.array[:, 0, 0, 0]
            if chunk.port == first:
                state.pending += [(chunk.pts + i * chunk.frame_ticks, int(v)) for i, v in enumerate(values)]
        for control in request.controls:
            if control.revision not in self.refuse:
                state.revision = control.revision
        if not first and not request.finish:
            state.pending += [((state.made + i) * TICKS, state.made + i) for i in range(self.size)]
        chunks = []
        while state.pending and (request.finish or (len(chunks) < self.per_step and self._ready(state))):
            chunks.append(self._chunk(state, request))
        out = [replace(c, port=p.name) for c in chunks for p in self.description.outputs]
        rejected = tuple((c.revision, self.refuse[c.revision]) for c in request.controls if c.revision in self.refuse)
        ready = self._ready(state) if first else self.stop_after is None or state.made < self.stop_after
        return StepReply(
            request.seq,
            tuple(self._stamp(state, c, request) for c in out),
            ready,
            rejected,
            held_bytes=8,
            compute_ms=self.compute_ms,
            given=tuple(control.revision for control in request.controls),
        )

    def _ready(self, state: FakeState) -> bool:
        return len(state.pending) >= (self.size if state.made or not self.latency else max(self.size, self.latency))

    def _chunk(self, state: FakeState, request: StepRequest) -> Chunk:
        taken, state.pending = state.pending[: self.size], state.pending[self.size :]
        state.made += len(taken)
        values = np.array([v for _, v in taken], np.int64)[:, None, None, None]
        return Chunk("", Ref(np.broadcast_to(values, (len(taken), 2, 2, 3))), taken[0][0], TICKS, len(taken))

    def _stamp(self, state: FakeState, chunk: Chunk, request: StepRequest) -> Chunk:
        count = state.counts.setdefault(chunk.port, [0, 0])
        stamped = replace(
            chunk, seq=count[0], first_frame=count[1], epoch=request.epoch.number, revision=state.revision
        )
        count[0], count[1] = count[0] + 1, count[1] + chunk.frames
        return stamped

    async def attach(self, session: str, epoch: Epoch) -> AttachReply:
        return AttachReply(Mark(self.states[session].next_seq), self.description, "incarnation-1")

    async def close(self, session: str, epoch: Epoch, life: int | None = None) -> None:
        self.states.pop(session, None)

    async def fetch(self, data: Any) -> np.ndarray:
        self.fetched += 1
        return data.array


class FakeEncoder:
    """An embedding of a text is its length; waits for `gate` if there is one."""

    def __init__(self) -> None:
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def encode(self, text: str) -> np.ndarray:
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        if not text:
            raise BadRequest("the prompt is empty")
        return np.full((1, 1), len(text), np.float32)


RIGS: list[Rig] = []
"""Those of the test that runs."""


class Rig:
    """One session over fakes. `close` ends it and checks that nothing is left anywhere."""

    def __init__(self, graph: Graph, stages: Mapping[str, FakeStage], **options: Any):
        self.clock = FakeClock()
        self.store = options.pop("store", None) or MemoryStore(now=self.clock.now)
        self.stages = dict(stages)
        self.encoders = options.pop("encoders", {})
        self.config = options.pop("config", RunnerConfig())
        self.observer = options.pop("observer", SILENT)
        self.record = SessionRecord("s1", graph.name, nonce="n1", created=1000.0, **options)
        self.graph = graph
        self.runner: Runner
        RIGS.append(self)

    async def open(self) -> Rig:
        stored = await self.store.create(self.record)
        parts = (self.graph, self.stages, self.encoders, self.store, self.clock, self.config)
        self.runner = Runner(stored, *parts, observer=self.observer)
        await self.runner.open()
        return self

    def controller(self, credits: int = 0, *wishes: PortWish) -> Consumer:
        return self.runner.attach(ConsumerSpec(Role.CONTROLLER, wishes, credits))

    def viewer(self, credits: int = 0, *wishes: PortWish) -> Consumer:
        return self.runner.attach(ConsumerSpec(Role.VIEWER, wishes, credits))

    async def close(self) -> None:
        await self.runner.close("test over")
        await self.check()
        self.assert_clean()

    async def check(self) -> None:
        """The books of runner and store add up, whatever the test has done to them."""
        if hasattr(self, "runner"):
            self.runner.check()
        await self.store.check()

    def assert_clean(self) -> None:
        left = {name: stage.states for name, stage in self.stages.items() if stage.states}
        assert not left, f"states left: {left}"
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, f"tasks left: {tasks}"


async def take(consumer: Consumer, frames: int) -> list[Item]:
    """The next items, up to and with that many frames (or the end)."""
    items: list[Item] = []
    while frames and (item := await asyncio.wait_for(consumer.next(), 5)) is not None:
        items.append(item)
        frames -= isinstance(item, Frame)
    return items


async def rest(consumer: Consumer) -> tuple[list[Frame], list[Item]]:
    """Everything to the end, crediting and acking as it comes: frames, and the rest."""
    frames: list[Frame] = []
    others: list[Item] = []
    while (item := await asyncio.wait_for(consumer.next(), 5)) is not None:
        if isinstance(item, Frame):
            frames.append(item)
            consumer.credit(item.port, 1)
            consumer.ack(item.port, item.number)
        else:
            others.append(item)
    return frames, others


def values(items: list[Any]) -> list[int]:
    return [int(item.array[0, 0, 0]) for item in items if isinstance(item, Frame)]


def ended(items: list[Any]) -> Event:
    assert isinstance(items[-1], Event), items[-1:]
    return items[-1]


def at_step(seq: int, error: Exception) -> Callable[[StepRequest], None]:
    """For `FakeStage.fail`."""

    def fail(request: StepRequest) -> None:
        if request.seq == seq:
            raise error

    return fail


CHAIN = Graph(
    "g",
    (StageSpec("a", "world"), StageSpec("b", "up"), StageSpec("c", "geo")),
    {"frames": Endpoint("c", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")), Edge(Endpoint("b", "frames"), Endpoint("c", "frames"))),
)


def chain() -> dict[str, FakeStage]:
    """A source that takes prompts, and two that give on what they get."""
    into = ("frames",)
    return {"a": FakeStage(controls=("prompt",)), "b": FakeStage(inputs=into), "c": FakeStage(inputs=into)}


def chain_rig(**options: Any) -> Rig:
    return Rig(CHAIN, chain(), **options)


@pytest.fixture
def lab() -> Any:
    """The names above, for tests (test folders are no packages)."""
    import types

    return types.SimpleNamespace(
        Rig=Rig,
        CHAIN=CHAIN,
        chain=chain,
        at_step=at_step,
        chain_rig=chain_rig,
        FakeStage=FakeStage,
        FakeEncoder=FakeEncoder,
        FakeClock=FakeClock,
        Ref=Ref,
        TICKS=TICKS,
        settle=settle,
        eventually=eventually,
        take=take,
        rest=rest,
        values=values,
        ended=ended,
    )


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs an async test body; one that hangs fails. What it leaves of its sessions is checked."""

    async def timed(body: Coroutine[Any, Any, Any]) -> Any:
        async with asyncio.timeout(20):
            result = await body
            for rig in RIGS:
                await rig.check()
            return result

    return lambda body: asyncio.run(timed(body))


@pytest.fixture(autouse=True)
def checked() -> Iterator[None]:
    """Every session of every test is checked, after it has run (`run`) and when all its tasks are gone (here)."""
    RIGS.clear()
    yield
    for rig in RIGS:
        asyncio.run(rig.check())
