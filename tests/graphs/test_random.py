"""Sessions under a seeded muddle of delays, pauses, prompts, readers that come and go: nothing is lost or left."""

from __future__ import annotations

import asyncio
import random

import pytest

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import PortWish
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame, Receipt, ReceiptStage
from riverrun.models.base import Control

FRAMES = 240
GRAPH = Graph(
    "g",
    (StageSpec("a", "m"), StageSpec("b", "m"), StageSpec("c", "m")),
    {"big": Endpoint("c", "frames"), "small": Endpoint("a", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")), Edge(Endpoint("b", "frames"), Endpoint("c", "frames"))),
)


def dawdling(stage, rng):
    """The stage with a random number of loop turns before each answer."""
    honest = stage.step

    async def step(request):
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        return await honest(request)

    stage.step = step
    return stage


def muddle(lab, rng):
    def stage(**options):
        options |= {"size": rng.randrange(1, 7), "per_step": rng.randrange(1, 4), "latency": rng.choice([0, 0, 9, 24])}
        return dawdling(lab.FakeStage(controls=("prompt",), **options), rng)

    into = {"inputs": ("frames",)}
    return {"a": dawdling(lab.FakeStage(size=3, controls=("prompt",)), rng), "b": stage(**into), "c": stage(**into)}


class Client:
    """A controller that loses its connection now and then, and reads every frame exactly once."""

    def __init__(self, lab, rig, rng):
        self.lab, self.rig, self.rng = lab, rig, rng
        self.got = {"big": [], "small": []}
        self.receipts = []
        self.revision = 0

    async def run(self):
        reader = self.connect()
        while (item := await reader.next()) is not None:
            if isinstance(item, Frame):
                self.take(reader, item)
            elif isinstance(item, Receipt):
                self.receipts.append((item.revision, item.stage))
            if self.rng.random() < 0.02:
                reader.close()
                await self.lab.settle()
                if self.rig.runner.state.ended:
                    break
                reader = self.connect()
            if self.rng.random() < 0.05 and not self.rig.runner.state.ended:
                await self.control()
            self.rig.runner.check()

    def connect(self):
        def wish(port):
            last = self.got[port][-1] if self.got[port] else None
            return PortWish(port, self.rng.randrange(1, 9), last)

        return self.rig.controller(0, wish("big"), wish("small"))

    def take(self, reader, frame):
        assert int(frame.array[0, 0, 0]) == frame.number
        assert frame.pts == frame.number * self.lab.TICKS
        self.got[frame.port].append(frame.number)
        reader.credit(frame.port, 1)
        if self.rng.random() < 0.5:
            reader.ack(frame.port, frame.number)

    async def control(self):
        self.revision += 1
        paused = self.rig.runner.status().paused
        pause = paused or self.rng.random() < 0.3
        control = ("pause", not paused) if pause else ("prompt", "x" * self.revision)
        await self.rig.runner.control(Control(self.revision, *control))
        if pause and not paused:
            await self.lab.settle()
            if not self.rig.runner.state.ended:
                await self.control()  # and goes on


async def watch(lab, rig, rng):
    """A viewer now and then, with some credits."""
    while not rig.runner.state.ended:
        viewer = rig.viewer(rng.randrange(1, 30))
        for _ in range(rng.randrange(1, 40)):
            reading = asyncio.create_task(viewer.next())
            await lab.settle()
            if not reading.cancel() and isinstance(item := reading.result(), Frame):
                assert int(item.array[0, 0, 0]) == item.number
            await asyncio.gather(reading, return_exceptions=True)
        viewer.close()


@pytest.mark.parametrize("seed", range(25))
def test_a_muddle_loses_nothing(lab, run, seed):
    async def body():
        rng = random.Random(seed)
        rig = lab.Rig(
            GRAPH,
            muddle(lab, rng),
            encoders={"b": lab.FakeEncoder()},
            config=RunnerConfig(edge_chunks=rng.randrange(1, 4), ring_frames=32),
            max_frames=FRAMES,
        )
        await rig.open()
        client = Client(lab, rig, rng)
        await asyncio.gather(client.run(), watch(lab, rig, rng))
        await rig.runner.ended()
        assert rig.runner.status().reason == f"all {FRAMES} frames were made"
        assert client.got == {port: list(range(FRAMES)) for port in ("big", "small")}
        order = [revision for revision, stage in client.receipts if stage is ReceiptStage.RECEIVED]
        assert order == sorted(set(order))
        rig.runner.check()
        rig.assert_clean()

    run(body())
