"""Where `max_frames` ends the outputs of a session: for each at one media time, in every life of it.

`b` says that it makes 16 frames a second, and makes 8: the end that is foreseen from that comes before the true one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import ConsumerSpec, PortWish, Role
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame
from riverrun.models.base import TICKS_PER_SECOND
from riverrun.store.records import SessionState

SIZE = {"height": 4, "width": 4}
TICKS = TICKS_PER_SECOND // 16
FRAMES = 11
SLOWER = SIZE | {"takes": 6, "chunk_frames": 3}
CONFIG = RunnerConfig(edge_chunks=64, cadence=Cadence(chunks=1))
UNSAVED = RunnerConfig(edge_chunks=64, cadence=Cadence(chunks=10_000, seconds=1e9))


def _edge(source: str, target: str) -> Edge:
    return Edge(Endpoint(source, "frames"), Endpoint(target, "frames"))


def _stages(names: str) -> tuple[StageSpec, ...]:
    return tuple(StageSpec(name, "m") for name in names)


RAW = Graph(
    "chain", _stages("ab"), {"frames": Endpoint("b", "frames"), "raw": Endpoint("a", "frames")}, (_edge("a", "b"),)
)
LATE = Graph(
    "chain", _stages("ab"), {"frames": Endpoint("a", "frames"), "late": Endpoint("b", "frames")}, (_edge("a", "b"),)
)
SIDE = Graph(
    "branches",
    _stages("abc"),
    {"frames": Endpoint("b", "frames"), "side": Endpoint("c", "frames")},
    (_edge("a", "b"), _edge("a", "c")),
)


def _reads_both(frames: int, raw: int, *had: int) -> ConsumerSpec:
    """Credits of either output, and the last frames that were received."""
    last = had or (None, None)
    return ConsumerSpec(Role.CONTROLLER, (PortWish("frames", frames, last[0]), PortWish("raw", raw, last[1])))


async def _items(consumer: Any) -> AsyncIterator[Frame]:
    while (item := await consumer.next()) is not None:
        if isinstance(item, Frame):
            yield item


def _are_in_time(client: Any) -> None:
    """Each frame where its number says that it is, up to the end that was foreseen."""
    assert [(frame.number, frame.pts) for frame in client.frames] == [(n, n * TICKS) for n in range(FRAMES)]


def test_an_output_that_was_cut_off_goes_on_no_more_when_the_end_turns_out_later(w, clock, run):
    """Nothing fails: `b`, whose frames are counted, makes its last when `c` is past the end that was foreseen, and
    before the true one."""

    async def body():
        world = w.World(clock)
        params = {"a": SIZE | {"chunk_frames": 2}, "b": SLOWER, "c": SIZE | {"takes": 1, "chunk_frames": 1}}
        runner = await world.open(SIDE, CONFIG, params=params, max_frames=FRAMES)
        b, c = (runner._flow.drivers[name] for name in "bc")

        async def hop(what: str) -> None:
            await asyncio.sleep(0)
            while what == "to a1" and b.next_seq == 3 and c.next_seq < FRAMES + 3:
                await asyncio.sleep(0)
            while what == "to a2" and c.next_seq == FRAMES + 3 and not runner._flow.has_all_frames:
                await asyncio.sleep(0)

        world.hop = hop  # type: ignore[method-assign]
        client = w.Client("side", credits=64)
        await client.read(runner)
        _are_in_time(client)
        assert (await runner.ended()).state is SessionState.CLOSED

    run(body())


@pytest.mark.parametrize(
    ("had", "says"), [(FRAMES, FRAMES), (FRAMES, 500), (8, 8)], ids=["has all", "says it has more", "wants some again"]
)
def test_an_output_that_was_cut_off_does_not_go_on_after_a_take_over(w, clock, run, had: int, says: int):
    """Its stage makes again what was left out; the one that counts the frames has told by then where the end is. Nor
    does it go on for a client that says it has had more, though the store has lost the line that the stage ends."""

    async def body():
        world = w.World(clock)
        params = {"a": SIZE | {"chunk_frames": 2}, "b": SLOWER}
        runner = await world.open(RAW, CONFIG, params=params, max_frames=FRAMES)
        before = runner.attach(_reads_both(9, FRAMES))
        for _ in range(9 + FRAMES):
            frame = await before.next()
            if frame.port == "frames" or frame.number < had:
                before.ack(frame.port, frame.number)
        while not runner._flow.has_all_frames:
            await asyncio.sleep(0)
        await clock.advance(CONFIG.commit_every_s)
        await world.crash(runner)
        world.kill(runner.record.placement["a"].actor)
        world.store._logs["s1"].clear()
        runner = await world.take_over(RAW, CONFIG, {"frames": 9, "raw": says})
        again = runner._flow.drivers["a"].chunks["frames"]
        assert again < FRAMES
        assert (2 * again > FRAMES) == (had == FRAMES), "where all were had, what was left out is made again"
        after = runner.attach(_reads_both(9, FRAMES, 8, had - 1))
        items = [(item.port, item.number, item.pts) async for item in _items(after)]
        assert sorted(items) == [
            *(("frames", n, 2 * n * TICKS) for n in (9, 10)),
            *(("raw", n, n * TICKS) for n in range(had, FRAMES)),
        ]
        assert (await runner.ended()).state is SessionState.CLOSED

    run(body())


def test_what_was_cut_off_is_not_taken_for_lost_where_the_record_is_of_before(w, clock, run):
    """The gateway dies when `b` has made frames beyond the end, and no record was written since it came there."""

    async def body():
        world = w.World(clock)
        params = {"a": SIZE | {"chunk_frames": 12}, "b": SIZE | {"takes": 1, "chunk_frames": 1}}
        runner = await world.open(LATE, UNSAVED, params=params, max_frames=5)
        client = w.Client("late")
        await client.read(runner, 5)
        while runner._flow.drivers["b"].next_seq < 9:
            await asyncio.sleep(0)
        stored = await world.store.get("s1")
        assert stored.ports["late"].chunks < 5
        await world.crash(runner)
        runner = await world.take_over(LATE, UNSAVED, {"late": 5})
        await client.read(runner)
        assert client.numbers == list(range(5))
        assert (await runner.ended()).state is SessionState.CLOSED

    run(body())
