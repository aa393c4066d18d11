"""Actors and gateways die at every point of a stream; the client has every frame once, in order, bit for bit."""

from __future__ import annotations

import asyncio
import gc

import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import EventType
from riverrun.models.base import Control, Unavailable
from riverrun.store.records import SessionState

FRAMES = 64
SOURCE = Graph("source", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})
CHAIN = Graph(
    "chain",
    (StageSpec("a", "m"), StageSpec("b", "m"), StageSpec("c", "m")),
    {"frames": Endpoint("c", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")), Edge(Endpoint("b", "frames"), Endpoint("c", "frames"))),
)
PARAMS = {
    "source": {"a": {"height": 4, "width": 4, "state_bytes": 64}},
    "chain": {
        "a": {"height": 4, "width": 4, "state_bytes": 64},
        "b": {"height": 4, "width": 4, "takes": 6, "chunk_frames": 3, "state_bytes": 64},
        "c": {"height": 4, "width": 4, "takes": 2, "chunk_frames": 4, "state_bytes": 64},
    },
}
CONFIG = RunnerConfig(cadence=Cadence(chunks=3))


async def undisturbed(w, clock, graph, frames=FRAMES):
    world = w.World(clock)
    runner = await world.open(graph, CONFIG, params=PARAMS[graph.name], max_frames=frames)
    client = w.Client()
    await client.read(runner)
    await runner.ended()
    return client.pixels


@pytest.mark.parametrize("graph", [SOURCE, CHAIN], ids=lambda g: g.name)
@pytest.mark.parametrize("at", range(1, 40, 4))
def test_an_actor_dies_and_the_stream_goes_on(w, clock, run, graph, at):
    async def body():
        wanted = await undisturbed(w, clock, graph)
        for victim in graph.order():
            world = w.World(clock)
            runner = await world.open(graph, CONFIG, params=PARAMS[graph.name], max_frames=FRAMES)
            client = w.Client()
            await client.read(runner, at)
            world.kill(runner.record.placement[victim].actor)
            await client.read(runner)
            await runner.ended()
            assert client.numbers == list(range(FRAMES))
            assert client.pixels == wanted
            assert runner.state is SessionState.CLOSED
            runner.check()
            assert world.states() == 0
            assert not world.blobs.paths

    run(body())


@pytest.mark.parametrize("at", [9, 10, 21, 22])
def test_a_control_that_comes_while_steps_are_made_again_waits_for_a_new_one(w, clock, run, at):
    async def body():
        world = w.World(clock)
        runner = await world.open(SOURCE, CONFIG, params=PARAMS["source"], max_frames=FRAMES)
        client = w.Client()
        await client.read(runner, at)
        world.kill(runner.record.placement["a"].actor)
        made = runner.status().stages[0].steps
        await runner.control(Control(1, "prompt", "other"))
        await client.read(runner)
        await runner.ended()
        carried = [line for line in world.store.logged if line.revision and line.step >= 0]
        assert [line.step >= made for line in carried] == [True]
        revisions = [frame.revision for frame in client.frames]
        assert revisions == sorted(revisions)
        assert set(revisions) == {0, 1}
        assert client.numbers == list(range(FRAMES))

    run(body())


@pytest.mark.parametrize("graph", [SOURCE, CHAIN], ids=lambda g: g.name)
@pytest.mark.parametrize("at", range(1, 40, 6))
@pytest.mark.parametrize("dead", ["nobody", "some", "all"])
def test_a_gateway_dies_and_another_goes_on(w, clock, run, graph, at, dead):
    async def body():
        wanted = await undisturbed(w, clock, graph)
        world = w.World(clock)
        runner = await world.open(graph, CONFIG, params=PARAMS[graph.name], max_frames=FRAMES)
        client = w.Client()
        await client.read(runner, at)
        placed = dict(runner.record.placement)
        await world.crash(runner)
        for name in {"nobody": [], "some": graph.order()[-1:], "all": graph.order()}[dead]:
            if world.actors[placed[name].actor].incarnation == placed[name].incarnation:
                world.kill(placed[name].actor)
        runner = await world.take_over(graph, CONFIG, {"frames": len(client.frames)})
        await client.read(runner)
        await runner.ended()
        assert client.numbers == list(range(FRAMES))
        assert client.pixels == wanted
        runner.check()
        assert world.states() == 0
        assert not world.blobs.paths

    run(body())


@pytest.mark.parametrize("graph", [SOURCE, CHAIN], ids=lambda g: g.name)
def test_suspended_and_resumed(w, clock, run, graph):
    async def body():
        wanted = await undisturbed(w, clock, graph)
        world = w.World(clock)
        runner = await world.open(graph, CONFIG, params=PARAMS[graph.name], max_frames=FRAMES)
        client = w.Client()
        for at in (9, 22, 23, 40):
            await client.read(runner, at)
            await runner.suspend("put away")
            assert runner.state is SessionState.SUSPENDED
            assert world.states() == 0
            runner.check()
            runner = await world.take_over(graph, CONFIG, {"frames": len(client.frames)})
        await client.read(runner)
        await runner.ended()
        assert client.numbers == list(range(FRAMES))
        assert client.pixels == wanted
        assert world.states() == 0
        assert not world.blobs.paths

    run(body())


@pytest.mark.parametrize("graph", [SOURCE, CHAIN], ids=lambda g: g.name)
def test_stages_move_while_frames_flow(w, clock, run, graph):
    async def body():
        wanted = await undisturbed(w, clock, graph)
        world = w.World(clock)
        runner = await world.open(graph, CONFIG, params=PARAMS[graph.name], max_frames=FRAMES)
        client = w.Client()
        reading = asyncio.create_task(client.read(runner))
        moved = 0
        while not reading.done() and moved < 8:
            for stage in graph.order():
                if runner.state is SessionState.RUNNING:
                    await runner.migrate(stage)
                    moved += 1
                runner.check()
            await asyncio.sleep(0)
        await reading
        await runner.ended()
        assert moved >= 4
        assert client.numbers == list(range(FRAMES))
        assert client.pixels == wanted
        assert world.states() == 0

    run(body())


def test_a_control_is_carried_again_at_its_step(w, clock, run):
    async def body():
        world = w.World(clock)
        runner = await world.open(SOURCE, CONFIG, params=PARAMS["source"])
        client = w.Client()
        await client.read(runner, 10)
        await runner.control(Control(1, "prompt", "another"))
        await client.read(runner, 30)
        before = [f.revision for f in client.frames]
        assert before[-1] == 1
        world.kill(runner.record.placement["a"].actor)
        await client.read(runner, 50)
        await world.crash(runner)
        world.kill(runner.record.placement["a"].actor)
        runner = await world.take_over(SOURCE, CONFIG, {"frames": 50})
        await client.read(runner, 70)
        assert client.numbers == list(range(70))
        first = next(i for i, f in enumerate(client.frames) if f.revision == 1)
        assert all(f.revision == (i >= first) for i, f in enumerate(client.frames))
        await runner.close("over")

    run(body())


def test_a_damaged_checkpoint_costs_a_longer_replay(w, clock, run):
    async def body():
        wanted = await undisturbed(w, clock, CHAIN)
        world = w.World(clock)
        runner = await world.open(CHAIN, CONFIG, params=PARAMS["chain"], max_frames=FRAMES)
        client = w.Client()
        await client.read(runner, 40)
        newest = {path.split("/")[1]: path for path in world.blobs.paths}
        world.blobs.damaged = set(newest.values())
        for place in set(runner.record.placement.values()):
            world.kill(place.actor)
        await client.read(runner)
        await runner.ended()
        assert client.pixels == wanted

    run(body())


@pytest.mark.parametrize("begin", [16, 28])
def test_a_damaged_checkpoint_that_nobody_read_is_not_relied_on_the_next_time(w, clock, run, begin):
    """Twice the newest one is damaged, but the stage goes on from an older one, since what came before is wanted."""

    async def body():
        wanted = await undisturbed(w, clock, CHAIN)
        world = w.World(clock)
        runner = await world.open(CHAIN, CONFIG, params=PARAMS["chain"], max_frames=FRAMES)
        client = w.Client()
        for frames in (begin, begin + 11):
            await client.read(runner, frames)
            world.blobs.damaged.add([path for path in world.blobs.paths if "/b/" in path][-1])
            world.kill(runner.record.placement["b"].actor)
        await client.read(runner, begin + 26)
        world.kill(runner.record.placement["b"].actor)
        await client.read(runner)
        await runner.ended()
        assert runner.state is SessionState.CLOSED
        assert client.pixels == wanted

    run(body())


def test_a_client_that_leaves_while_its_session_is_taken_up_finds_it_again(w, clock, run):
    async def body():
        wanted = await undisturbed(w, clock, CHAIN)
        world = w.World(clock)
        runner = await world.open(CHAIN, CONFIG, params=PARAMS["chain"], max_frames=FRAMES)
        client = w.Client()
        await client.read(runner, 22)
        placed = {at.actor for at in runner.record.placement.values()}
        await world.crash(runner)
        for actor in placed:
            world.kill(actor)
        place, world.place = world.place, lambda *_: asyncio.get_running_loop().create_future()
        taking = asyncio.create_task(world.take_over(CHAIN, CONFIG, {"frames": 22}))
        while not (len(world.runners) > 1 and world.runners[-1]._main):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait({taking})
        assert (await world.runners[-1].ended()).state is SessionState.SUSPENDED
        world.place = place
        await client.read(await world.take_over(CHAIN, CONFIG, {"frames": len(client.frames)}))
        assert client.pixels == wanted

    run(body())


def test_what_cannot_be_put_away_says_why_and_goes_on(w, clock, run):
    async def body():
        world = w.World(clock)
        runner = await world.open(CHAIN, CONFIG, params=PARAMS["chain"], max_frames=FRAMES)
        client = w.Client()
        await client.read(runner, 20)
        world.kill(runner.record.placement["b"].actor)
        with pytest.raises(Unavailable, match="died"):
            await runner.suspend("put away")
        await client.read(runner)
        assert client.numbers == list(range(FRAMES))
        await runner.ended()
        assert runner.state is SessionState.CLOSED

    run(body())


def test_what_finds_no_place_is_suspended(w, clock, run):
    async def body():
        world = w.World(clock, actors=1)
        runner = await world.open(SOURCE, CONFIG, params=PARAMS["source"])
        client = w.Client()
        await client.read(runner, 20)
        world.kill("a0")
        left = world.actors.pop("a0")
        reading = asyncio.create_task(client.read(runner))
        while not reading.done():
            await clock.advance(1.0)
        assert runner.state is SessionState.SUSPENDED
        assert [e.type for e in client.events][-1] is EventType.SUSPENDED
        assert client.events[-1].retry_s > 0
        world.actors["a0"] = left
        runner = await world.take_over(SOURCE, CONFIG, {"frames": len(client.frames)})
        await client.read(runner, 60)
        assert client.numbers == list(range(60))
        await runner.close("over")

    run(body())


def test_all_stages_of_a_dead_actor_come_back_when_one_is_found_dead(w, clock, run):
    async def body():
        wanted = await undisturbed(w, clock, CHAIN)
        world = w.World(clock, actors=1)
        runner = await world.open(CHAIN, CONFIG, params=PARAMS["chain"], max_frames=FRAMES)
        client = w.Client()
        await client.read(runner, 21)
        world.kill("a0")
        reading = asyncio.create_task(client.read(runner))
        alone = 0
        while not reading.done():
            lost = [driver for driver in runner._flow.drivers.values() if driver.fault]
            alone = max(alone, len(lost))
            await asyncio.sleep(0)
        assert alone == 3
        assert client.pixels == wanted
        await runner.ended()
        assert world.states() == 0

    run(body())


def test_a_stage_that_is_idle_whenever_its_actor_dies_has_not_failed(w, clock, run):
    async def body():
        world = w.World(clock, actors=1)
        params = {**PARAMS["chain"], "c": {**PARAMS["chain"]["c"], "takes": 24}}
        runner = await world.open(CHAIN, CONFIG, params=params)
        client = w.Client()
        for at in range(4, 60, 4):
            world.kill("a0")
            await client.read(runner, at)
        assert client.numbers == list(range(56))
        assert runner.state is SessionState.RUNNING
        await runner.close("over")

    run(body())


def test_a_checkpoint_that_is_called_off_before_it_began_leaves_nothing(w, clock, run, recwarn):
    async def body():
        world = w.World(clock)
        runner = await world.open(SOURCE, CONFIG, params=PARAMS["source"], max_frames=FRAMES)
        called_off = []

        def spawn(work):
            called_off.append(asyncio.create_task(work))
            called_off[-1].cancel()

        runner._flow.saver.spawn = spawn
        await w.Client().read(runner)
        await runner.ended()
        await asyncio.gather(*called_off, return_exceptions=True)
        assert called_off
        called_off.clear()

    run(body())
    gc.collect()
    assert not [str(each.message) for each in recwarn if "never awaited" in str(each.message)]
