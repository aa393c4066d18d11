"""Controls at given frames: in the step that makes their chunk, whatever the chunk sizes, and again after a fault."""

from __future__ import annotations

import numpy as np
import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.script import Script, TimedControl
from riverrun.graphs.stage import BadRequest
from riverrun.models.base import Control
from riverrun.models.synthetic import colour
from riverrun.store.records import SessionState
from riverrun.tests.durability.world import CHAIN

GEN = Graph("gen", (StageSpec("gen", "m"),), {"frames": Endpoint("gen", "frames")})
SMALL = {"height": 4, "width": 4, "state_bytes": 64, "prompt": "p0"}
PARAMS = {"gen": {"gen": SMALL}, "chain": {"a": SMALL, "b": {**SMALL, "takes": 6, "chunk_frames": 3}}}
CONFIG = RunnerConfig(cadence=Cadence(chunks=3))
SEED = 7


class Encoder:
    """Knows what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def encode(self, text):
        self.asked.append(text)
        if not text:
            raise BadRequest("the prompt is empty")
        return np.full(2, len(text), np.float32)


def prompts(*frames: int, stage: str = "") -> list[TimedControl]:
    return [TimedControl(at, Control(n + 1, "prompt", f"p{n + 1}"), stage) for n, at in enumerate(frames)]


async def rendered(w, clock, graph, script, frames=16, kill_at=None, encoders=None):
    """What the client was given, the runner and the world; an actor dies once so many frames were read."""
    world = w.World(clock)
    options = {"params": PARAMS[graph.name], "seed": SEED, "max_frames": frames}
    runner = await world.open(graph, CONFIG, script=script, encoders=encoders, **options)
    client = w.Client()
    if kill_at is not None:
        at, stage = kill_at
        await client.read(runner, at)
        world.kill(runner.record.placement[stage].actor)
    await client.read(runner)
    await runner.ended()
    runner.check()
    return client, runner, world


@pytest.mark.parametrize(
    ("at", "expected", "logged"),
    [
        ((4,), [0, 1, 1, 1], [(1, 1)]),
        ((5,), [0, 0, 1, 1], [(1, 2)]),
        ((0, 9), [1, 1, 1, 2], [(1, 0), (2, 3)]),
        ((1, 2, 3), [0, 3, 3, 3], [(1, 1), (2, 1), (3, 1)]),
        ((400,), [0, 0, 0, 0], []),
    ],
)
def test_the_chunk_that_begins_at_or_after_the_frame(w, clock, run, at, expected, logged):
    async def body():
        client, _, world = await rendered(w, clock, GEN, prompts(*at))
        seen = []
        for first in client.frames[::4]:
            options = {tuple(colour(SEED, f"p{n}", first.chunk)): n for n in range(4)}
            seen.append(options[tuple(first.array[1, 1])])
            assert first.revision == seen[-1]
        assert seen == expected
        lines = world.store.logged
        assert [(line.revision, line.chunk) for line in lines if line.revision] == logged

    run(body())


@pytest.mark.parametrize("graph", [GEN, CHAIN], ids=lambda g: g.name)
@pytest.mark.parametrize("kill_at", range(1, 40, 3))
def test_a_stage_that_is_brought_back_has_them_at_the_same_steps(w, clock, run, graph, kill_at):
    async def body():
        script = prompts(5, 17, 18, 33)
        wanted, _, _ = await rendered(w, clock, graph, script, frames=48)
        assert len({frame.revision for frame in wanted.frames}) >= 3
        for stage in graph.order():
            client, runner, world = await rendered(w, clock, graph, script, frames=48, kill_at=(kill_at, stage))
            assert runner.state is SessionState.CLOSED
            assert client.numbers == list(range(48))
            assert client.pixels == wanted.pixels
            assert [f.revision for f in client.frames] == [f.revision for f in wanted.frames]
            assert world.states() == 0

    run(body())


def test_other_stages_are_left_alone_and_prompts_are_encoded_before_the_first_step(w, clock, run):
    async def body():
        script = [*prompts(0, stage="b"), TimedControl(8, Control(2, "prompt", "later"), "b")]
        encoder = Encoder()
        world = w.World(clock)
        options = {"params": PARAMS["chain"], "seed": SEED, "max_frames": 16}
        runner = await world.open(CHAIN, CONFIG, script=script, encoders={"b": encoder}, **options)
        assert encoder.asked == ["p0", "p1", "later"]  # p0: it was opened with
        client = w.Client()
        await client.read(runner)
        lines = [(line.revision, line.stage) for line in world.store.logged if line.revision]
        assert lines == [(1, "b"), (2, "b")]
        await runner.ended()

    run(body())


@pytest.mark.parametrize(
    ("timed", "words"),
    [
        (TimedControl(4, Control(1, "prompt", "")), "the prompt is empty"),
        (TimedControl(4, Control(1, "dance"), "gen"), "control 1: stage 'gen' takes no 'dance'; it takes "),
        (TimedControl(4, Control(1, "dance")), "control 1: no stage takes 'dance'"),
    ],
)
def test_what_can_be_seen_at_once_is_refused_before_anything_is_stepped(w, clock, run, timed, words):
    async def body():
        world = w.World(clock)
        with pytest.raises(BadRequest, match=words):
            await world.open(GEN, CONFIG, script=[timed], encoders={"gen": Encoder()}, params=PARAMS["gen"])
        assert world.states() == 0

    run(body())


def test_a_refused_control_ends_the_session(w, clock, run):
    async def body():
        refused = TimedControl(4, Control(1, "parameters", {"height": 3}))
        client, runner, _ = await rendered(w, clock, GEN, [refused])
        assert runner.state is SessionState.FAILED
        assert isinstance(runner.fault, BadRequest)
        assert str(runner.fault).startswith("control 1: parameters that can change")
        assert client.numbers == list(range(len(client.numbers)))

    run(body())


def test_each_is_given_out_once():
    script = Script(prompts(8, 0, 4))
    assert [c.revision for c in script.due(5)] == [2, 3]
    assert [c.revision for c in script.due(5)] == []
    assert [c.revision for c in script.due(100)] == [1]
