"""A scripted session is put away, or loses its gateway: who goes on gives it the other controls at their frames."""

from __future__ import annotations

import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.script import TimedControl
from riverrun.models.base import Control
from riverrun.store.records import SessionState
from riverrun.tests.durability.world import CHAIN, Encoder

SMALL = {"height": 4, "width": 4, "state_bytes": 64, "prompt": "p0"}
PARAMS = {"a": SMALL, "b": {**SMALL, "takes": 6, "chunk_frames": 3}}
CONFIG = RunnerConfig(cadence=Cadence(chunks=3))
SCRIPT = [TimedControl(at, Control(n + 1, "prompt", f"p{n + 1}")) for n, at in enumerate((5, 17, 18, 33))]
OPENING = {"params": PARAMS, "seed": 7, "max_frames": 48}


async def undisturbed(w, clock):
    world, client = w.World(clock), w.Client()
    runner = await world.open(CHAIN, CONFIG, script=SCRIPT, **OPENING)
    await client.read(runner)
    await runner.ended()
    assert len({frame.revision for frame in client.frames}) >= 3
    return client


@pytest.mark.parametrize("at", range(1, 38, 4))
@pytest.mark.parametrize("how", ["put away", "gateway dies", "all die"])
def test_the_frames_are_those_of_an_undisturbed_session(w, clock, run, at, how):
    async def body():
        wanted = await undisturbed(w, clock)
        world, client = w.World(clock), w.Client()
        runner = await world.open(CHAIN, CONFIG, script=SCRIPT, **OPENING)
        for until in (at, at + 1, at + 9):
            await client.read(runner, until)
            if how == "put away":
                if not runner.state.runs:
                    break
                await runner.suspend("later")
            else:
                await world.crash(runner)
            if how == "all die":
                for name in list(world.actors):
                    world.kill(name)
            runner = await world.take_over(CHAIN, CONFIG, {"frames": len(client.frames)})
        await client.read(runner)
        await runner.ended()
        assert client.numbers == list(range(48))
        assert [f.revision for f in client.frames] == [f.revision for f in wanted.frames]
        assert client.pixels == wanted.pixels
        assert runner.state is SessionState.CLOSED

    run(body())


def test_what_was_given_before_is_not_encoded_again(w, clock, run):
    async def body():
        world, client = w.World(clock), w.Client()
        runner = await world.open(CHAIN, CONFIG, script=SCRIPT, encoders={"a": Encoder()}, **OPENING)
        await client.read(runner, 32)
        await runner.suspend("later")
        encoder = Encoder()
        runner = await world.take_over(CHAIN, CONFIG, {"frames": 32}, encoders={"a": encoder})
        assert "p1" not in encoder.asked
        await client.read(runner)
        assert client.frames[-1].revision == 4
        await runner.ended()

    run(body())
