"""Actors that compute otherwise than those before: a session is not mixed of both, and is not lost either."""

from __future__ import annotations

import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.stage import Mismatch
from riverrun.store.checkpoints import Engine
from riverrun.store.records import SessionState

FRAMES = 40
GRAPH = Graph("source", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})
PARAMS = {"a": {"height": 4, "width": 4, "state_bytes": 64}}
CONFIG = RunnerConfig(cadence=Cadence(chunks=3))


def compute_with(world, threads):
    for actor in world.actors.values():
        actor.worker.checkpoints.engine = Engine(model="synthetic", threads=threads)


def test_a_suspended_session_waits_for_its_own_engine(w, clock, run):
    async def body():
        world, client = w.World(clock), w.Client()
        compute_with(world, threads=1)
        runner = await world.open(GRAPH, CONFIG, params=PARAMS, max_frames=FRAMES)
        await client.read(runner, 22)
        await runner.suspend("put away")
        compute_with(world, threads=2)
        for _ in range(2):
            with pytest.raises(Mismatch, match="made with threads 1, this actor has 2"):
                await world.take_over(GRAPH, CONFIG, {"frames": len(client.frames)})
            assert (await world.store.get("s1")).state is SessionState.SUSPENDED
            assert world.states() == 0
        compute_with(world, threads=1)
        runner = await world.take_over(GRAPH, CONFIG, {"frames": len(client.frames)})
        await client.read(runner)
        await runner.ended()
        assert client.numbers == list(range(FRAMES))

    run(body())


def test_a_stage_that_finds_only_other_engines_ends_and_says_both(w, clock, run):
    async def body():
        world, client = w.World(clock), w.Client()
        compute_with(world, threads=1)
        runner = await world.open(GRAPH, CONFIG, params=PARAMS, max_frames=FRAMES)
        await client.read(runner, 22)
        world.kill(runner.record.placement["a"].actor)  # the one in its place is of no threads
        await client.read(runner)
        await runner.ended()
        assert runner.state is SessionState.FAILED
        assert isinstance(runner.fault, Mismatch)
        assert "made with threads 1, this actor has 0" in client.events[-1].reason
        assert client.numbers == list(range(len(client.frames)))

    run(body())
