"""Frames through one, two and three stages: order, loss, pacing and what may lie where."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import PortWish
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import EventType, Frame, InputAck
from riverrun.graphs.runner import SessionEnded
from riverrun.models.base import BadRequest, Chunk, Kind, Port
from riverrun.store.records import SessionState


def graph(stages: str, *edges: str, outputs: dict[str, str], inputs: dict[str, str] | None = None) -> Graph:
    def end(text: str) -> Endpoint:
        return Endpoint(*text.split("."))

    return Graph(
        "g",
        tuple(StageSpec(name, name) for name in stages.split()),
        {name: end(at) for name, at in outputs.items()},
        tuple(Edge(*map(end, edge.split(" > "))) for edge in edges),
        {name: end(at) for name, at in (inputs or {}).items()},
    )


ONE = graph("a", outputs={"frames": "a.frames"})
CHAIN = graph("a b c", "a.frames > b.frames", "b.frames > c.frames", outputs={"frames": "c.frames"})


def chain(lab, **c):
    into = {"inputs": ("frames",)}
    return {"a": lab.FakeStage(), "b": lab.FakeStage(**into), "c": lab.FakeStage(**into, **c)}


def test_frames_come_in_order_with_their_place_and_time(lab, run):
    async def body():
        rig = await lab.Rig(ONE, {"a": lab.FakeStage(size=4)}, max_frames=10).open()
        frames, others = await lab.rest(rig.controller(2))
        assert lab.values(frames) == [f.number for f in frames] == list(range(10))
        assert [(f.chunk, f.index) for f in frames] == [(i // 4, i % 4) for i in range(10)]
        assert [f.pts for f in frames] == [i * lab.TICKS for i in range(10)]
        assert {(f.port, f.epoch, f.revision) for f in frames} == {("frames", 1, 0)}
        assert not frames[0].array.flags.writeable
        assert [e.reason for e in others] == ["all 10 frames were made"]
        assert (await rig.runner.ended()).state is SessionState.CLOSED
        rig.runner.check()
        rig.assert_clean()

    run(body())


def test_credits_pace_the_stages(lab, run):
    async def body():
        rig = await lab.Rig(ONE, {"a": lab.FakeStage(size=4)}).open()
        steps = rig.stages["a"].requests
        await lab.settle()
        assert len(steps) == 1  # the first chunk is made at once, the next only when it is wanted
        reader = rig.controller()
        await lab.settle()
        assert len(steps) == 1
        reader.credit("frames", 1)
        assert lab.values(await lab.take(reader, 1)) == [0]
        await lab.settle()
        assert len(steps) == 2  # begun to be sent: less than a chunk lies there unsent
        reader.credit("frames", 3)
        await lab.take(reader, 3)
        await lab.settle()
        assert len(steps) == 2
        reader.credit("frames", 1)
        await lab.take(reader, 1)
        await lab.settle()
        assert len(steps) == 3
        rig.runner.check()
        await rig.close()

    run(body())


def test_a_slow_last_stage_stalls_the_ones_before_it(lab, run):
    async def body():
        rig = lab.Rig(CHAIN, chain(lab))
        a, b, c = rig.stages.values()
        c.gate = asyncio.Semaphore(0)
        await rig.open()
        reader = rig.controller(100)
        await lab.settle()
        # on each edge two chunks, the one being worked on included: c holds its first step, b and a wait for room
        assert (len(a.requests), len(b.requests), len(c.requests)) == (4, 2, 1)
        for n in range(1, 6):
            c.gate.release()
            assert lab.values(await lab.take(reader, 4)) == list(range(4 * n - 4, 4 * n))
            await lab.settle()
            assert (len(a.requests), len(b.requests), len(c.requests)) == (4 + n, 2 + n, 1 + n)
            rig.runner.check()
        assert (a.fetched, b.fetched) == (0, 0)  # interior chunks are never fetched
        await rig.close()

    run(body())


def test_replies_are_released_as_the_stages_behind_take_them(lab, run):
    async def body():
        rig = await lab.Rig(CHAIN, chain(lab), config=RunnerConfig(ring_frames=4)).open()
        reader = rig.controller(1)
        for _ in range(40):
            await lab.take(reader, 1)
            reader.credit("frames", 1)
        await lab.settle()
        for stage in rig.stages.values():
            last = stage.requests[-1]
            assert last.seq - last.acked <= 5
        await rig.close()

    run(body())


@pytest.mark.parametrize(("size", "per_step"), [(8, 1), (2, 1), (2, 2), (3, 1), (5, 2), (1, 4)])
@pytest.mark.parametrize("latency", [0, 24])
def test_chunk_ratios_and_latency_lose_nothing(lab, run, size, per_step, latency):
    async def body():
        last = {"size": size, "per_step": per_step, "latency": latency}
        rig = await lab.Rig(CHAIN, chain(lab, **last), max_frames=50).open()
        frames, _ = await lab.rest(rig.controller(3))
        assert lab.values(frames) == list(range(50))
        assert [f.pts for f in frames] == [i * lab.TICKS for i in range(50)]
        if latency:
            assert all(not r.acked >= r.seq for r in rig.stages["c"].requests)
        await rig.close()

    run(body())


def test_finish_flushes_what_lies_in_the_stages(lab, run):
    async def body():
        rig = await lab.Rig(CHAIN, chain(lab, size=3, latency=24)).open()
        reader = rig.controller(100)
        await lab.take(reader, 2)
        await rig.runner.finish()
        assert rig.runner.state is SessionState.DRAINING
        items = [item async for item in reader]
        made = 4 * len([r for r in rig.stages["a"].requests if not r.finish])
        assert lab.values(items) == list(range(2, made))
        assert made > 24
        assert lab.ended(items).reason == "finished"
        assert [s.requests[-1].finish for s in rig.stages.values()] == [True, True, True]
        await rig.runner.ended()
        rig.assert_clean()

    run(body())


def test_a_source_that_ends_by_itself_ends_the_session(lab, run):
    async def body():
        rig = await lab.Rig(ONE, {"a": lab.FakeStage(stop_after=12)}).open()
        frames, others = await lab.rest(rig.controller(4))
        assert lab.values(frames) == list(range(12))
        assert lab.ended(others).reason == "the stream has ended"
        await rig.runner.ended()
        rig.assert_clean()

    run(body())


FAN = graph(
    "a b c", "a.frames > b.frames", "a.frames > c.frames", outputs={"b": "b.frames", "c": "c.frames", "a": "a.frames"}
)


def test_fan_out_reaches_every_branch(lab, run):
    async def body():
        rig = await lab.Rig(FAN, chain(lab, size=2), max_frames=16).open()
        frames, _ = await lab.rest(rig.controller(4))
        for port in "abc":
            assert lab.values([f for f in frames if f.port == port]) == list(range(16))
        await rig.close()

    run(body())


def test_a_port_the_controller_does_not_read_paces_nobody(lab, run):
    async def body():
        rig = await lab.Rig(FAN, chain(lab), config=RunnerConfig(ring_frames=4)).open()
        reader = rig.controller(0, PortWish("b", credits=1))
        for n in range(30):
            assert lab.values(await lab.take(reader, 1)) == [n]
            reader.credit("b", 1)
        assert rig.stages["c"].fetched == 0  # nobody looks at it
        rig.runner.check()
        await rig.close()

    run(body())


JOIN = graph(
    "a b c",
    "a.frames > b.frames",
    "a.frames > c.frames",
    "b.frames > c.other",
    outputs={"frames": "c.frames"},
)


@pytest.mark.parametrize("slow", ["b", "c", None])
def test_paths_that_meet_again_neither_lock_nor_depend_on_speed(lab, run, slow):
    async def body():
        stages = {
            "a": lab.FakeStage(size=4),
            "b": lab.FakeStage(size=6, inputs=("frames",), latency=24),
            "c": lab.FakeStage(size=4, inputs=("frames", "other")),
        }
        rig = await lab.Rig(JOIN, stages, max_frames=60).open()
        if slow:
            stages[slow].gate = asyncio.Semaphore(0)

            async def drip():
                while not rig.runner.state.ended:
                    stages[slow].gate.release()
                    await lab.settle()

            dripping = asyncio.create_task(drip())
        frames, _ = await lab.rest(rig.controller(8))
        assert lab.values(frames) == list(range(60))
        fed = [[(c.port, c.seq) for c in r.inputs] for r in stages["c"].requests]
        await rig.runner.ended()
        if slow:
            await dripping
        rig.assert_clean()
        return fed

    fed = run(body())
    order = [inputs[0] for inputs in fed if inputs]
    assert order[:6] == [("frames", 0), ("other", 0), ("frames", 1), ("other", 1), ("frames", 2), ("frames", 3)]


UP = graph("b", outputs={"frames": "b.frames"}, inputs={"video": "b.frames"})


def test_input_under_way_when_the_last_frame_was_made_is_left_out(lab, run):
    async def body():
        rig = await lab.Rig(UP, {"b": lab.FakeStage(size=3, inputs=("frames",))}, max_frames=6).open()
        reader = rig.controller(8)

        async def feed():
            for n in range(8):
                data = lab.Ref(np.full((3, 2, 2, 3), n))
                await rig.runner.push("video", Chunk("video", data, n * 3 * lab.TICKS, lab.TICKS, 3))

        feeding = asyncio.create_task(feed())
        frames, others = await lab.rest(reader)
        assert (len(frames), lab.ended(others).reason) == (6, "all 6 frames were made")
        with contextlib.suppress(SessionEnded):
            await feeding
        assert (await rig.runner.ended()).state is SessionState.CLOSED

    run(body())


def test_what_was_made_beyond_the_last_frame_parks_no_session(lab, run):
    async def body():
        stage = lab.FakeStage(size=4, inputs=("frames",), latency=64)  # goes on for four seconds of media
        rig = await lab.Rig(UP, {"b": stage}, max_frames=4, lead_s=1.0).open()
        reader = rig.controller(4)
        for n in range(10):
            data = lab.Ref(np.full((8, 2, 2, 3), n))
            pushing = rig.runner.push("video", Chunk("video", data, n * 8 * lab.TICKS, lab.TICKS, 8))
            with contextlib.suppress(SessionEnded):
                await pushing
        frames, others = await lab.rest(reader)
        assert (len(frames), lab.ended(others).reason) == (4, "all 4 frames were made")
        assert (await rig.runner.ended()).state is SessionState.CLOSED

    run(body())


def test_a_stage_that_takes_one_chunk_is_a_source_from_then_on(lab, run):
    class Seeded(lab.FakeStage):  # type: ignore[name-defined]
        def _run(self, state, request):
            makes = not request.inputs and not request.finish
            state.pending += [((state.made + i) * lab.TICKS, state.made + i) for i in range(self.size * makes)]
            return replace(super()._run(state, replace(request, inputs=())), ready=True)

    async def body():
        stage = Seeded(size=3, inputs=("frames",))
        stage.description = replace(stage.description, inputs=(Port("frames", Kind.FRAMES, once=True),))
        rig = await lab.Rig(UP, {"b": stage}, max_frames=10).open()
        reader, chunk = rig.controller(4), Chunk("video", lab.Ref(np.zeros((1, 2, 2, 3))), 0, lab.TICKS, 1)
        await rig.runner.push("video", chunk)
        with pytest.raises(BadRequest, match="'video' takes one frame of a stream, and has it"):
            await rig.runner.push("video", chunk)
        frames, others = await lab.rest(reader)
        assert lab.values(frames) == list(range(10))
        assert lab.ended(others).reason == "all 10 frames were made"
        assert (await rig.runner.ended()).state is SessionState.CLOSED
        rig.assert_clean()

    run(body())


def test_client_input_is_numbered_acked_and_bounded(lab, run):
    async def body():
        rig = await lab.Rig(UP, {"b": lab.FakeStage(size=2, inputs=("frames",))}).open()
        reader = rig.controller(0)

        def chunk(n):
            return Chunk("video", lab.Ref(np.full((3, 2, 2, 3), n)), n * 3 * lab.TICKS, lab.TICKS, 3)

        async def feed():
            for n in range(8):
                await rig.runner.push("video", chunk(n))
            await rig.runner.finish()

        for port, wrong, says in [
            ("film", chunk(0), "no input 'film'; there are video"),
            ("video", Chunk("video", None, 0, lab.TICKS, 0), "at least one frame"),
        ]:
            with pytest.raises(BadRequest, match=says):
                await rig.runner.push(port, wrong)
        feeding = asyncio.create_task(feed())
        await lab.settle()
        assert not feeding.done()  # nothing is read, so there is no room
        reader.credit("frames", 100)
        items = [item async for item in reader]
        await feeding
        assert lab.values(items) == [n // 3 for n in range(24)]
        assert [i.frame for i in items if isinstance(i, InputAck)] == [2, 5, 8, 11, 14, 17, 20, 23]
        assert [c.seq for r in rig.stages["b"].requests for c in r.inputs] == list(range(8))
        with pytest.raises(BadRequest):
            await rig.runner.push("video", chunk(9))
        await rig.close()

    run(body())


def test_a_client_that_comes_back_is_told_which_input_is_acked(lab, run):
    """The ack went down with its connection; a client that holds all it may would wait for it for ever."""

    async def body():
        rig = await lab.Rig(UP, {"b": lab.FakeStage(size=2, inputs=("frames",))}).open()
        first = rig.controller(100)
        part = lab.Ref(np.zeros((3, 2, 2, 3)))
        await rig.runner.push("video", Chunk("video", part, 0, lab.TICKS, 3))
        await lab.settle()
        first.close()
        viewer, again = rig.viewer(0), rig.controller(0)
        assert await again.next() == InputAck("video", 2)
        assert (again.unread, viewer.unread) == (0, 0)
        await rig.close()

    run(body())


def test_pause_holds_the_sources_and_resume_goes_on(lab, run):
    from riverrun.models.base import Control

    async def body():
        rig = await lab.Rig(CHAIN, chain(lab)).open()
        reader, viewer = rig.controller(200), rig.viewer()
        await lab.take(reader, 8)
        await rig.runner.control(Control(1, "pause", True))
        await lab.settle()
        made = len(rig.stages["a"].requests)
        items = await lab.take(reader, made * 4 - 8)
        assert rig.runner.status().paused
        await lab.settle()
        assert len(rig.stages["a"].requests) == made  # what lay in the stages came out, no more went in
        await rig.runner.control(Control(2, "pause", False))
        items += await lab.take(reader, 12)
        assert lab.values(items) == list(range(8, made * 4 + 12))
        events = [i.type for i in items if not isinstance(i, Frame) and hasattr(i, "type")]
        assert events == [EventType.PAUSED, EventType.RESUMED]
        assert [(await viewer.next()).type for _ in range(2)] == events
        await rig.close()

    run(body())
