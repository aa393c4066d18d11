"""A session ends, or is put away, while a stage of it moves: nothing is left on either actor."""

from __future__ import annotations

import asyncio

import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.records import SessionState
from riverrun.tests.durability.world import CHAIN

SMALL = {"height": 4, "width": 4, "state_bytes": 64}
PARAMS = {"a": SMALL, "b": {**SMALL, "takes": 6, "chunk_frames": 3}}
CONFIG = RunnerConfig(cadence=Cadence(chunks=3))


async def moving(w, clock, moment):
    """A runner with a move of its first stage under way, so many turns of the loop ago."""
    world = w.World(clock)
    runner = await world.open(CHAIN, CONFIG, params=PARAMS)
    client = w.Client()
    await client.read(runner, 12)
    move = asyncio.create_task(runner.migrate("a"))
    for _ in range(moment):
        await asyncio.sleep(0)
    return world, runner, client, move


async def over(move):
    try:
        await move
    except (BadRequest, Unavailable, Corrupt):
        return False
    return True


@pytest.mark.parametrize("moment", range(0, 90, 2))
def test_a_session_is_closed(w, clock, run, moment):
    async def body():
        world, runner, _, move = await moving(w, clock, moment)
        await runner.close("enough")
        assert world.states() == 0
        await over(move)
        runner.check()
        assert world.states() == 0
        assert (await world.store.get("s1")).state is SessionState.CLOSED

    run(body())


@pytest.mark.parametrize("moment", range(0, 90, 2))
def test_a_session_is_put_away(w, clock, run, moment):
    async def body():
        world, runner, client, move = await moving(w, clock, moment)
        await runner.suspend("later")
        assert world.states() == 0
        await over(move)
        runner.check()
        assert world.states() == 0
        runner = await world.take_over(CHAIN, CONFIG, {"frames": len(client.frames)})
        await client.read(runner, 60)
        assert client.numbers == list(range(60))
        await runner.close("enough")
        assert world.states() == 0

    run(body())


@pytest.mark.parametrize("moment", range(0, 90, 6))
def test_a_session_is_taken_over_by_another_gateway(w, clock, run, moment):
    async def body():
        world, old, client, move = await moving(w, clock, moment)
        runner = await world.take_over(CHAIN, CONFIG, {"frames": len(client.frames)})
        await old.lose()
        await over(move)
        old.check()
        await client.read(runner, 60)
        assert client.numbers == list(range(60))
        await runner.close("enough")
        assert world.states() == 0

    run(body())
