"""Pacing: the media clock and the decision as tables, then whole sessions on a clock that is moved by hand."""

from __future__ import annotations

import gc
import math
import weakref

import pytest

from riverrun.cluster.slack import REST
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import MANY_UNREAD, PortWish
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Event, EventType, InputAck
from riverrun.graphs.observer import Observer
from riverrun.graphs.pacing import Playhead, Position, lead_s, moved, parked_s
from riverrun.models.base import TICKS_PER_SECOND, Control

S = TICKS_PER_SECOND
ONE = Graph("g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})
CHUNK_S = 0.25  # four frames at 16 a second


@pytest.mark.parametrize(
    ("made", "at", "limit_s", "expected"),
    [
        (9 * S, None, 1.0, 0.0),  # nothing delivered yet: the ring bounds it
        (9 * S, Position(0, S), 0.0, 0.0),  # no limit
        (1 * S, Position(0, S), 1.0, 0.0),  # as far as allowed
        (2 * S, Position(0, S), 1.0, 1.0),  # the player comes to it in a second
        (2 * S, Position(0.5 * S, S), 1.0, 0.5),
        (2 * S, Position(0, 0.9 * S), 1.0, math.inf),  # it stalls before: more must be delivered
        (2 * S, Position(0.9 * S, 0.9 * S), 1.0, math.inf),
        (2 * S, Position(0, 2 * S, held=True), 1.0, math.inf),  # paused
        (2 * S, Position(1 * S, 2 * S, held=True), 1.0, 0.0),
        (2 * S, Position(2 * S, 2 * S), 0.001, 0.0),  # all played: never parked, however small the limit
        (1 * S, Position(5 * S, 5 * S), 1.0, 0.0),  # an output that was not read before, and is behind
    ],
)
def test_how_long_sources_stand(made, at, limit_s, expected):
    assert parked_s(made, at, limit_s) == pytest.approx(expected)


def test_a_player_that_has_all_there_is_comes_to_the_end_of_every_wait():
    for made in range(0, 5 * S, S // 3):
        for played in range(0, made + 1, S // 7):
            at = Position(played, made)
            wait = parked_s(made, at, 0.3)
            assert wait < math.inf
            assert parked_s(made, moved(at, wait + 1e-6), 0.3) == 0


@pytest.mark.parametrize(
    ("at", "seconds", "played"),
    [
        (Position(0, 2 * S), 0.5, 0.5 * S),
        (Position(0, 2 * S), 3.0, 2 * S),  # stalls at the last frame delivered
        (Position(S, 2 * S, held=True), 3.0, S),
    ],
)
def test_the_clock_goes_on_at_1x(at, seconds, played):
    assert moved(at, seconds).played == played


def test_lead_is_what_was_made_and_not_played():
    assert lead_s(3 * S, Position(1 * S, 2 * S)) == 2.0
    assert lead_s(3 * S, None) == 0.0
    assert lead_s(1 * S, Position(2 * S, 2 * S)) == 0.0


def test_the_playhead_stalls_goes_on_and_takes_no_time_for_gaps(lab, run):
    async def body():
        clock = lab.FakeClock()
        head = Playhead(clock)
        await clock.advance(7)
        assert head.now() is None
        head.deliver(10 * S, 11 * S)  # a client's own pts need not begin at 0
        await clock.advance(0.5)
        assert head.now() == Position(10.5 * S, 11 * S)
        await clock.advance(5)
        assert head.now().played == 11 * S  # a late frame: it waits, and does not catch up
        assert (head.played_s, head.stalled_s) == (1.0, 0.0)  # nobody knows yet whether one comes
        head.deliver(11 * S, 12 * S)
        head.deliver(11 * S, 12 * S)  # again after a reconnect: no news
        await clock.advance(0.25)
        assert head.now() == Position(11.25 * S, 12 * S)
        head.deliver(50 * S, 51 * S)  # a gap of 38 s is not played: 0.75 s + 1 s lie ahead
        assert head.now() == Position(49.25 * S, 51 * S)
        head.hold(True)
        await clock.advance(9)
        assert head.now() == Position(49.25 * S, 51 * S, held=True)
        head.hold(False)
        await clock.advance(0.75)
        assert head.now().played == 50 * S
        assert (head.played_s, head.stalled_s) == (2.0, 4.5)  # paused is neither, and a gap is not played

    run(body())


BUSY_MS = 1000 * CHUNK_S
"""On an actor that has no time to spare a session does not rest between two chunks."""


def rig_of(lab, compute_ms=BUSY_MS, **options):
    return lab.Rig(ONE, {"a": lab.FakeStage(size=4, controls=("prompt",), compute_ms=compute_ms)}, **options)


def steps(rig) -> int:
    return len(rig.stages["a"].requests)


class Told(Observer):
    played_s = stalled_s = 0.0

    def played(self, played_s, stalled_s):
        self.played_s += played_s
        self.stalled_s += stalled_s


def test_an_observer_is_told_what_was_played_and_how_long_it_stood_however_often_one_looks(lab, run):
    async def body():
        told = Told()
        rig = await rig_of(lab, observer=told).open()
        reader = rig.controller(4)
        await lab.take(reader, 4)
        for _ in range(10):  # 0.25 s are there, 0.75 s more are waited for
            await rig.clock.advance(0.1)
            assert rig.runner.status().lead_s >= 0
        assert (told.played_s, told.stalled_s) == (0, 0)  # what it waits for may never come
        reader.credit("frames", 8)
        await lab.take(reader, 8)
        assert (told.played_s, told.stalled_s) == pytest.approx((CHUNK_S, 0.75))
        await rig.clock.advance(0.5)
        reader.credit("frames", 4)
        await lab.take(reader, 4)
        assert (told.played_s, told.stalled_s) == pytest.approx((CHUNK_S + 0.5, 0.75))
        await rig.close()

    run(body())


def test_a_session_is_parked_at_its_lead_and_goes_on_with_the_clock(lab, run):
    async def body():
        rig = await rig_of(lab, lead_s=1.0).open()
        reader = rig.controller(400)
        await lab.take(reader, 20)
        await lab.settle()
        made = steps(rig)
        assert made * CHUNK_S == 1.0 + CHUNK_S  # a step is begun as long as the lead is at most 1 s
        status = rig.runner.status()
        assert (status.parked, status.paused, status.lead_s) == (True, False, 1.25)
        await rig.clock.advance(0.24)
        assert steps(rig) == made
        for more in range(1, 9):  # nobody calls, nothing comes: the clock wakes it, once a chunk
            await rig.clock.advance(0.011 if more == 1 else CHUNK_S)
            assert steps(rig) == made + more
            await lab.take(reader, 4)
        await rig.close()

    run(body())


def test_a_session_that_fills_its_lead_rests_between_two_chunks_where_they_come_quickly(lab, run):
    async def body():
        rig = await rig_of(lab, compute_ms=1.0, lead_s=1.0).open()
        reader = rig.controller(400)
        for made in range(1, 5):
            await lab.take(reader, 4)
            await lab.settle()
            assert steps(rig) == made
            await rig.clock.advance(0.9 * REST * CHUNK_S)
            assert (steps(rig), rig.runner.status().parked) == (made, True)
            await rig.clock.advance(0.11 * REST * CHUNK_S)
        await rig.close()

    run(body())


def test_without_a_limit_nobody_is_parked(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader = rig.controller(400)
        await lab.take(reader, 400)  # 25 s of media, and the clock stands
        assert not rig.runner.status().parked
        assert rig.runner.status().lead_s >= 25
        await rig.close()

    run(body())


def test_a_small_lead_makes_one_chunk_at_a_time_and_never_locks_up(lab, run):
    async def body():
        rig = await rig_of(lab, lead_s=0.001, max_frames=40).open()
        reader = rig.controller(40)
        for n in range(10):
            await lab.take(reader, 4)
            await lab.settle()
            assert steps(rig) == n + 1 + (n == 9)  # the tenth was the last: it is flushed
            await rig.clock.advance(CHUNK_S)
        assert lab.ended(await lab.take(reader, 1)).type is EventType.ENDED
        await rig.runner.ended()
        rig.assert_clean()

    run(body())


def test_while_paused_the_player_stands_too(lab, run):
    async def body():
        rig = await rig_of(lab, lead_s=1.0).open()
        reader = rig.controller(400)
        await lab.take(reader, 20)
        await rig.runner.control(Control(1, "pause", True))
        await lab.settle()
        made = steps(rig)
        await rig.clock.advance(100)
        assert steps(rig) == made
        assert rig.runner.status().lead_s == 1.25
        await rig.runner.control(Control(2, "pause", False))
        await lab.settle()
        assert steps(rig) == made  # still as far ahead as before
        await rig.clock.advance(CHUNK_S)
        assert steps(rig) == made + 1
        await rig.close()

    run(body())


def test_a_client_that_takes_nothing_stalls_the_media_clock(lab, run):
    async def body():
        rig = await rig_of(lab, lead_s=1.0).open()
        reader = rig.controller(2)
        await lab.take(reader, 2)
        await rig.clock.advance(60)  # rebuffering: nothing is made, and no time is owed for later
        assert steps(rig) == 2
        reader.credit("frames", 400)
        await lab.take(reader, 18)
        await lab.settle()
        lead = rig.runner.status().lead_s
        assert 1.0 < lead <= 1.0 + CHUNK_S
        await rig.close()

    run(body())


def test_a_reconnect_neither_gains_nor_loses_lead(lab, run):
    async def body():
        rig = await rig_of(lab, lead_s=1.0, config=RunnerConfig(ring_frames=64)).open()
        first = rig.controller(400)
        await lab.take(first, 20)
        first.close()
        again = rig.controller(0, PortWish("frames", credits=400, last_received=9))
        assert lab.values(await lab.take(again, 10)) == list(range(10, 20))
        await lab.settle()
        assert (steps(rig), rig.runner.status().lead_s) == (5, 1.25)
        await rig.close()

    run(body())


def test_an_output_that_lags_does_not_lock_a_parked_session_up(lab, run):
    """The second stage gives nothing before 24 frames (1.5 s), and its output alone is read: a lead of 0.5 s counts on
    that output, not on the one before it."""
    graph = Graph(
        "g",
        (StageSpec("a", "m"), StageSpec("b", "m")),
        {"raw": Endpoint("a", "frames"), "frames": Endpoint("b", "frames")},
        edges=(Edge(Endpoint("a", "frames"), Endpoint("b", "video")),),
    )

    async def body():
        stages = {"a": lab.FakeStage(compute_ms=BUSY_MS), "b": lab.FakeStage(inputs=("video",), latency=24)}
        rig = await lab.Rig(graph, stages, lead_s=0.5).open()
        reader = rig.controller(0, PortWish("frames", credits=400))
        assert lab.values(await lab.take(reader, 12)) == list(range(12))
        await lab.settle()
        assert rig.runner.status().parked
        await rig.clock.advance(1.0)
        assert lab.values(await lab.take(reader, 12)) == list(range(12, 24))
        await rig.close()

    run(body())


def test_input_of_a_client_waits_while_the_session_is_parked(lab, run):
    graph = Graph(
        "g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")}, inputs={"video": Endpoint("a", "video")}
    )

    async def body():
        import asyncio

        import numpy as np

        from riverrun.models.base import Chunk

        rig = await lab.Rig(graph, {"a": lab.FakeStage(size=1, inputs=("video",))}, lead_s=0.25).open()
        reader = rig.controller(400)
        pushed = 0

        async def push():
            nonlocal pushed
            for n in range(40):
                data = lab.Ref(np.full((1, 2, 2, 3), n))
                await rig.runner.push("video", Chunk("video", data, n * lab.TICKS, lab.TICKS, 1))
                pushed += 1

        task = asyncio.create_task(push())
        await lab.take(reader, 5)
        await lab.settle()
        assert rig.runner.status().parked
        assert pushed == 5 + rig.config.edge_chunks
        await rig.clock.advance(1.0)
        assert pushed > 5 + rig.config.edge_chunks
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await rig.close()

    run(body())


def test_notices_that_nobody_reads_are_few_and_say_all(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader, viewer = rig.controller(), rig.viewer()
        for n in range(10_000):
            reader.tell(InputAck(("video", "depth")[n % 2], n))
            viewer.tell(Event(EventType.RESUMED if n % 2 else EventType.PAUSED))
        assert (reader.unread, viewer.unread) == (MANY_UNREAD, 10_000 % MANY_UNREAD)
        read = [await reader.next() for _ in range(MANY_UNREAD)]
        assert read[-2:] == [InputAck("video", 9_998), InputAck("depth", 9_999)]
        assert [ack.frame for ack in read] == sorted(ack.frame for ack in read)
        seen = [await viewer.next() for _ in range(viewer.unread)]
        assert seen[-1].type is EventType.RESUMED
        await rig.close()

    run(body())


def test_what_lies_in_an_ended_session_is_freed_without_the_garbage_collector(lab, run):
    """Frames are large and a session's objects refer to each other: rings let go as soon as nobody reads them."""

    async def body():
        rig = await rig_of(lab).open()
        reader = rig.controller(8)
        await lab.take(reader, 8)
        await lab.settle()
        ring = rig.runner._flow.audience.first
        array = weakref.ref(ring.find(0).array.base)
        assert ring.held_frames >= 8
        await rig.runner.close("over")
        assert (ring.held_frames, array() is not None) == (12, True)  # the reader may still take what it has credit for
        reader.close()
        assert (ring.held_frames, array()) == (0, None)
        rig.runner.check()
        rig.assert_clean()

    gc.disable()
    try:
        run(body())
    finally:
        gc.enable()
