"""The control log keeps what a replay needs, however much that is, and no more."""

from __future__ import annotations

import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.models.base import Control, Unavailable
from riverrun.models.synthetic import source_frame
from riverrun.store.records import ControlEntry
from riverrun.tests.durability.world import Encoder

SOURCE = Graph("source", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})
PARAMS = {"a": {"height": 4, "width": 4, "state_bytes": 64, "prompt": "p0"}}
CHUNK = 4


async def steered(w, world, config, controls, encoders=None):
    """A runner and what its client was given, with a prompt for each chunk."""
    runner = await world.open(SOURCE, config, params=PARAMS, encoders=encoders)
    client = w.Client(credits=64)
    for number in range(1, controls + 1):
        await runner.control(Control(number, "prompt", f"p{number}"))
        await client.read(runner, number * CHUNK, ack=False)
    return runner, client


def test_more_controls_since_the_oldest_checkpoint_than_a_log_of_256_lines_held(w, clock, run):
    async def body():
        config = RunnerConfig(cadence=Cadence(chunks=10_000, seconds=1e9), ring_frames=4096)
        world = w.World(clock)
        runner, first = await steered(w, world, config, 300)
        await clock.advance(6)  # the record, and with it whatever leaves the log
        lines = await world.store.read_log("s1")
        assert [line.revision for line in lines if line.step >= 0] == list(range(1, 301))
        await world.crash(runner)
        world.kill(runner.record.placement["a"].actor)
        runner = await world.take_over(SOURCE, config, {})
        again = w.Client(credits=64)
        await again.read(runner, len(first.frames))
        assert again.numbers == first.numbers
        assert [f.revision for f in again.frames] == [f.revision for f in first.frames]
        assert again.pixels == first.pixels
        await runner.close("over")

    run(body())


def test_what_the_oldest_checkpoint_has_leaves_the_log(w, clock, run):
    async def body():
        config = RunnerConfig(cadence=Cadence(chunks=3))
        world = w.World(clock)
        runner = await world.open(SOURCE, config, params=PARAMS)
        client = w.Client()
        lengths = []
        for number in range(1, 100):
            await runner.control(Control(number, "prompt", f"p{number}"))
            await client.read(runner, number * CHUNK)
            await clock.advance(0)
            lengths.append(len(await world.store.read_log("s1")))
        assert max(lengths) < 40
        await clock.advance(6)
        stored = await world.store.get("s1")
        steps = [line.step for line in await world.store.read_log("s1") if line.step >= 0]
        assert 60 < stored.folded_to["a"] <= min(steps)
        await world.crash(runner)
        world.kill(runner.record.placement["a"].actor)
        runner = await world.take_over(SOURCE, config, {"frames": len(client.frames)})
        with pytest.raises(Exception, match="must be above the last one, 99"):
            await runner.control(Control(50, "prompt", "old"))
        await client.read(runner, 120 * CHUNK)
        assert client.numbers == list(range(120 * CHUNK))
        assert {f.revision for f in client.frames[-40:]} == {99}
        await runner.close("over")

    run(body())


def test_a_take_over_encodes_the_prompts_that_a_replay_needs(w, clock, run):
    async def body():
        config = RunnerConfig(cadence=Cadence(chunks=3))
        world = w.World(clock)
        runner = await world.open(SOURCE, config, params=PARAMS, encoders={"a": Encoder()})
        client = w.Client()
        for number in range(1, 60):
            await runner.control(Control(number, "prompt", f"p{number}"))
            await client.read(runner, number * CHUNK)
        await clock.advance(0)
        await world.crash(runner)
        encoder = Encoder()
        runner = await world.take_over(SOURCE, config, {"frames": len(client.frames)}, encoders={"a": encoder})
        assert 0 < len(encoder.asked) < 20
        assert "p1" not in encoder.asked
        await client.read(runner, 70 * CHUNK)
        assert client.numbers == list(range(70 * CHUNK))
        await runner.close("over")

    run(body())


def test_controls_wait_when_the_log_is_full_and_no_checkpoint_can_be_taken(w, clock, run):
    async def body():
        config = RunnerConfig(cadence=Cadence(chunks=3), log_entries=40)
        world = w.World(clock)
        world.blobs.is_full = True
        runner = await world.open(SOURCE, config, params=PARAMS)
        client = w.Client()

        async def steer():
            for number in range(1, 60):
                await runner.control(Control(number, "prompt", f"p{number}"))
                await client.read(runner, number * CHUNK)

        with pytest.raises(Unavailable, match="since the last checkpoint"):
            await steer()
        world.blobs.is_full = False
        await client.read(runner, len(client.frames) + 12 * CHUNK)
        await clock.advance(6)
        await runner.control(Control(60, "prompt", "p60"))
        await client.read(runner, len(client.frames) + 4 * CHUNK)
        assert client.frames[-1].revision == 60
        await runner.close("over")

    run(body())


def test_a_line_that_the_log_has_twice_keeps_its_place_in_the_step(w, clock, run):
    """The second came late; the newer of two prompts that one step carried must stay the one in force."""

    async def body():
        config = RunnerConfig(cadence=Cadence(chunks=10_000, seconds=1e9), ring_frames=4096)
        world = w.World(clock)
        runner = await world.open(SOURCE, config, params=PARAMS)
        for number in (1, 2):  # while nothing is read, and so no step is made
            await runner.control(Control(number, "prompt", f"p{number}"))
        first = w.Client()
        await first.read(runner, 4 * CHUNK, ack=False)
        one, two = [line for line in await world.store.read_log("s1") if line.step >= 0]
        assert (one.revision, two.revision, one.step) == (1, 2, two.step)
        await world.store.log(await world.store.get("s1"), one)
        await world.crash(runner)
        world.kill(runner.record.placement["a"].actor)
        runner = await world.take_over(SOURCE, config, {})
        again = w.Client()
        await again.read(runner, 4 * CHUNK)
        assert again.pixels == first.pixels
        await runner.close("over")

    run(body())


def test_a_control_whose_step_was_lost_does_not_come_after_a_newer_one(w, clock, run):
    """The store failed over without the line that said which step carried it; the newer prompt stays in force."""

    async def body():
        config = RunnerConfig(cadence=Cadence(chunks=10_000, seconds=1e9), ring_frames=4096)
        world = w.World(clock)
        runner, client = await steered(w, world, config, 2)
        await client.read(runner, 5 * CHUNK, ack=False)  # both are in force
        lines = world.store._logs["s1"]
        lost = next(line for line in lines if (entry := ControlEntry.from_json(line)).step >= 0 and entry.revision == 1)
        lines.remove(lost)
        await world.crash(runner)
        world.kill(runner.record.placement["a"].actor)
        runner = await world.take_over(SOURCE, config, {"frames": len(client.frames)})
        again = [line for line in await world.store.read_log("s1") if line.step >= 0]
        assert [line.revision for line in again] == [2, 1]
        assert len({line.step for line in again}) == 1
        await client.read(runner, 8 * CHUNK)
        assert {f.revision for f in client.frames[-3 * CHUNK :]} == {2}
        frame = client.frames[-1]
        assert (frame.array == source_frame(0, "p2", frame.number // CHUNK, frame.number, 4, 4)).all()
        await runner.close("over")

    run(body())
