"""A session over a real store that is killed under it: the stream goes on, and is written up when the store is back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import ConsumerSpec, Role
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame, Receipt, ReceiptStage
from riverrun.graphs.runner import Runner
from riverrun.graphs.stage import AttachReply, Epoch, OpenReply, OpenRequest, StepReply, StepRequest, UnknownSession
from riverrun.graphs.waiting import SystemClock
from riverrun.models.base import Chunk, Control, Description, Kind, Port, Unavailable
from riverrun.store.embedded import EmbeddedServer
from riverrun.store.records import DECIDED, SessionRecord, SessionState
from riverrun.store.sessions import SessionStore

GRAPH = Graph("g", (StageSpec("gen", "m"),), {"frames": Endpoint("gen", "frames")})


class Counting:
    """A source of single grey frames."""

    async def open(self, request: OpenRequest) -> OpenReply:
        return OpenReply(Description((), (Port("frames", Kind.FRAMES),), 1, 16.0, controls=("style",)), "i1")

    async def step(self, request: StepRequest) -> StepReply:
        data = np.full((1, 2, 2, 3), request.seq % 256, np.uint8)
        chunk = Chunk("frames", data, request.seq * 5625, 5625, 1, seq=request.seq)
        given = tuple(control.revision for control in request.controls)
        return StepReply(request.seq, (chunk,), ready=True, given=given)

    async def attach(self, session: str, epoch: Epoch) -> AttachReply:
        raise UnknownSession(f"no session {session} here")

    async def close(self, session: str, epoch: Epoch, life: int | None = None) -> None:
        pass

    async def fetch(self, data: Any) -> np.ndarray:
        return data


class Deciding(Counting):
    """Each of its steps decides something, so each is logged before its frame leaves."""

    async def step(self, request: StepRequest) -> StepReply:
        return replace(await super().step(request), decisions=request.seq)


class Moved:
    """A store that may move to another address. asked: how often, by method."""

    def __init__(self, at: SessionStore) -> None:
        self.at = at
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self.at, name)


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.01)


async def body(folder: Any) -> None:
    first = EmbeddedServer(folder)
    first.start()
    store: Any = Moved(SessionStore(first.url, timeout_s=0.5))
    record = await store.create(SessionRecord("s1", "g", nonce="n"))
    config = RunnerConfig(store_s=0.5, commit_every_s=0.05)
    runner = Runner(record, GRAPH, {"gen": Counting()}, {}, store, SystemClock(), config)
    await runner.open()
    reader = runner.attach(ConsumerSpec(Role.CONTROLLER, credits=8))
    numbers: list[int] = []
    receipts: list[Receipt] = []

    async def read() -> None:
        async for item in reader:
            if isinstance(item, Frame):
                numbers.append(item.number)
                reader.ack(item.port, item.number)
                reader.credit(item.port, 1)
                await asyncio.sleep(0.001)
            elif isinstance(item, Receipt):
                receipts.append(item)

    async def more_frames(count: int = 20) -> None:
        seen = len(numbers)
        await eventually(lambda: _true(len(numbers) >= seen + count))

    reading = asyncio.create_task(read())
    await runner.control(Control(1, "style", 1))
    await eventually(lambda: _true(len(receipts) == 2))
    os.kill(first.pid, signal.SIGKILL)
    await more_frames()
    await runner.control(Control(2, "style", 2))
    await eventually(lambda: _true(len(receipts) == 4))
    first.stop()
    await more_frames()
    with EmbeddedServer(folder) as second:
        await store.close()
        store.at = SessionStore(second.url, timeout_s=0.5)  # the same folder, so what was written to disk is there
        before = len(numbers)

        async def written() -> bool:
            try:
                stored = await store.get("s1")
                return stored is not None and "frames" in stored.ports and stored.ports["frames"].sent > before
            except Unavailable:
                return False

        await eventually(written)
        log = await store.read_log("s1")
        assert [(e.revision, e.step >= 0) for e in log][-2:] == [(2, False), (2, True)]
        await runner.close("done")
        assert (await store.get("s1")).state is SessionState.CLOSED
        await store.close()
    await reading
    assert numbers == list(range(len(numbers)))
    applied = [r.revision for r in receipts if r.stage is ReceiptStage.APPLIED]
    assert applied == [1, 2]


async def _true(value: bool) -> bool:
    return value


def test_the_stream_outlives_its_store(tmp_path):
    async def timed() -> None:
        async with asyncio.timeout(60):
            await body(tmp_path)

    asyncio.run(timed())


async def hung(folder: Any) -> None:
    with EmbeddedServer(folder) as server:
        store: Any = Moved(SessionStore(server.url, timeout_s=0.5))
        record = await store.create(SessionRecord("s1", "g", nonce="n"))
        config = RunnerConfig(store_s=0.5, commit_every_s=0.05)
        runner = Runner(record, GRAPH, {"gen": Deciding()}, {}, store, SystemClock(), config)
        await runner.open()
        reader = runner.attach(ConsumerSpec(Role.CONTROLLER, credits=8))

        async def read(count: int) -> list[int]:
            numbers: list[int] = []
            while len(numbers) < count:
                item = await reader.next()
                if isinstance(item, Frame):
                    numbers.append(item.number)
                    reader.ack(item.port, item.number)
                    reader.credit(item.port, 1)
            return numbers

        await read(8)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            store.asked.clear()
            assert await read(400) == list(range(8, 408))
            assert store.asked["log"] <= 2  # the first found out; nobody waits after that
        finally:
            os.kill(server.pid, signal.SIGCONT)

        async def written() -> bool:
            try:
                steps = {line.step for line in await store.read_log("s1") if line.kind == DECIDED}
            except Unavailable:
                return False
            return steps >= set(range(400))

        await eventually(written, 60.0)
        await runner.close("done")
        await store.close()


def test_a_store_that_hangs_holds_one_line_and_no_more(tmp_path):
    async def timed() -> None:
        async with asyncio.timeout(120):
            await hung(tmp_path)

    asyncio.run(timed())
