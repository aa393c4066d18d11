"""A gateway dies between the flush of a source and that of the stages behind it."""

from __future__ import annotations

import asyncio

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.store.records import SessionState
from riverrun.tests.durability.world import CHAIN

SIZE = {"height": 4, "width": 4}
CONFIG = RunnerConfig(cadence=Cadence(chunks=3))


def test_the_end_of_a_source_outlives_the_gateway(w, clock, run):
    async def body():
        world = w.World(clock)
        params = {"a": SIZE, "b": SIZE | {"takes": 4}}
        runner = await world.open(CHAIN, CONFIG, params=params)
        client = w.Client()
        await client.read(runner, 10)
        await runner.finish()
        source = runner._flow.drivers["a"]
        while not source.finished:
            await asyncio.sleep(0)
        assert not runner._flow.drivers["b"].finished
        await world.crash(runner)
        runner = await world.take_over(CHAIN, CONFIG, {"frames": len(client.frames)})
        await client.read(runner)
        await runner.ended()
        assert client.numbers == list(range(len(client.numbers)))
        assert runner.state is SessionState.CLOSED

    run(body())
