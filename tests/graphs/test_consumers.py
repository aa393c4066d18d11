"""Readers: viewers, reconnects, a second controller, what the ring keeps, jobs' sinks."""

from __future__ import annotations

import asyncio

import pytest

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import MAX_CREDITS, ConsumerSpec, PortWish, Role, most_credits
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.items import EventType, Frame
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.sink import drain
from riverrun.models.base import BadRequest, Corrupt

ONE = Graph("g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})


def rig_of(lab, **options):
    return lab.Rig(ONE, {"a": lab.FakeStage(size=4)}, **options)


def test_a_viewer_gets_the_latest_and_slows_nobody(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader, viewer, idle = rig.controller(200), rig.viewer(2), rig.viewer()
        assert lab.values(await lab.take(viewer, 2)) == [0, 1]
        assert len(lab.values(await lab.take(reader, 38))) == 38  # two viewers without credit: no hindrance
        viewer.credit("frames", 3)
        assert lab.values(await lab.take(viewer, 3)) == [36, 37, 38]  # goes on at the newest chunk
        await lab.take(reader, 2)
        viewer.credit("frames", 2)
        assert lab.values(await lab.take(viewer, 2)) == [39, 40]  # less than a chunk behind: no gap
        idle.close()
        assert await idle.next() is None
        await rig.close()

    run(body())


def test_a_viewer_sees_every_chunk_however_fast_the_controller_acks(lab, run):
    async def body():
        rig = await rig_of(lab, max_frames=40).open()
        viewer = rig.viewer(400)
        watching = asyncio.create_task(lab.rest(viewer))
        await lab.rest(rig.controller(4))
        frames, others = await watching
        assert lab.values(frames) == list(range(40))
        assert lab.ended(others).type is EventType.ENDED
        await rig.close()

    run(body())


def test_each_chunk_is_fetched_once_and_only_for_somebody(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        await lab.settle()
        assert rig.stages["a"].fetched == 0
        readers = [rig.controller(100), rig.viewer(100), rig.viewer(100)]
        await asyncio.gather(*(lab.take(r, 8) for r in readers))
        await lab.settle()
        assert rig.stages["a"].fetched == len(rig.stages["a"].requests)
        await rig.close()

    run(body())


def test_a_reconnect_goes_on_after_the_last_frame_received(lab, run):
    async def body():
        rig = await rig_of(lab, config=RunnerConfig(ring_frames=16)).open()
        first = rig.controller(20)
        await lab.take(first, 20)
        first.ack("frames", 5)
        first.close()
        again = rig.controller(0, PortWish("frames", credits=40, last_received=9))
        assert lab.values(await lab.take(again, 25)) == list(range(10, 35))
        with pytest.raises(BadRequest, match="frame 500 was never sent"):
            rig.controller(0, PortWish("frames", last_received=500))
        again.credit("frames", 2)  # the failed attempt replaced nobody
        assert lab.values(await lab.take(again, 2)) == [35, 36]
        rig.runner.check()
        await rig.close()

    run(body())


def test_frames_that_are_gone_are_data_loss(lab, run):
    async def body():
        rig = await rig_of(lab, config=RunnerConfig(ring_frames=8)).open()
        first = rig.controller(8)
        for _ in range(40):
            await lab.take(first, 1)
            first.credit("frames", 1)
        first.close()
        with pytest.raises(Corrupt, match="frames 10 to 31 are gone, the first kept is 32"):
            rig.controller(0, PortWish("frames", last_received=9))
        late = rig.controller(0, PortWish("frames", credits=1))
        assert lab.values(await lab.take(late, 1)) == [32]  # no number given: from the first kept one
        await rig.close()

    run(body())


def test_the_ring_is_never_smaller_than_the_credits(lab, run):
    async def body():
        rig = await rig_of(lab, config=RunnerConfig(ring_frames=4)).open()
        first = rig.controller(200)
        await lab.take(first, 200)  # all sent, none received
        first.close()
        again = rig.controller(0, PortWish("frames", credits=300, last_received=0))
        assert lab.values(await lab.take(again, 299)) == list(range(1, 300))
        for n in range(300, 400):  # acks free what they cover
            again.ack("frames", n - 1)
            again.credit("frames", 1)
            await lab.take(again, 1)
        again.close()
        with pytest.raises(Corrupt):
            rig.controller(0, PortWish("frames", last_received=390))
        await rig.close()

    run(body())


def test_a_new_controller_replaces_the_old_one(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        old = rig.controller(3)
        await lab.take(old, 3)
        new = rig.controller(0, PortWish("frames", credits=2, last_received=1))
        items = [item async for item in old]
        assert [(i.type, i.reason) for i in items] == [(EventType.REPLACED, "another controller took over")]
        old.credit("frames", 5)  # late words of the old one change nothing
        old.close()
        assert lab.values(await lab.take(new, 2)) == [2, 3]
        await lab.settle()
        rig.runner.check()
        await rig.close()

    run(body())


def test_wrong_wishes_are_refused_and_change_nothing(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader = rig.controller(1)
        for wish, says in [
            (PortWish("film"), "no output 'film'; there are frames"),
            (PortWish("frames", credits=MAX_CREDITS + 1), f"at most {MAX_CREDITS} frames may be outstanding"),
            (PortWish("frames", credits=-1), "more credits"),
        ]:
            with pytest.raises(BadRequest, match=says):
                rig.controller(0, wish)
        for wrong in (
            lambda: reader.credit("film", 1),
            lambda: reader.credit("frames", MAX_CREDITS),
            lambda: reader.ack("frames", 0),
        ):
            with pytest.raises(BadRequest):
                wrong()
        assert lab.values(await lab.take(reader, 1)) == [0]
        await rig.close()
        with pytest.raises(SessionEnded, match="session s1 is closed: test over"):
            rig.controller(1)

    run(body())


@pytest.mark.parametrize(
    ("frame_bytes", "chunk_frames", "most"),
    [
        (0, 4, 512),
        (12_288, 4, 512),
        (2_764_800, 4, 48),
        (25_165_824, 4, 32),
        (1 << 30, 4, 32),
        (25_165_824, 24, 48),  # two chunks, which is what a client's buffer asks for
        (1 << 30, 1000, 512),
    ],
)
def test_credits_are_bounded_by_bytes_too(frame_bytes, chunk_frames, most):
    assert most_credits(frame_bytes, chunk_frames) == most


def test_a_port_named_twice_is_refused(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        with pytest.raises(BadRequest, match="a port is named twice"):
            rig.runner.attach(ConsumerSpec(Role.CONTROLLER, (PortWish("frames", 1), PortWish("frames", 1))))
        await rig.close()

    run(body())


def test_reading_may_be_cancelled_without_losing_a_frame(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader, seen = rig.controller(100), []
        for turns in [0, 1, 2, 3, 5, 8] * 20:
            reading = asyncio.create_task(reader.next())
            for _ in range(turns):
                await asyncio.sleep(0)
            if not reading.cancel():
                seen.append(reading.result())
            await asyncio.gather(reading, return_exceptions=True)
        got = lab.values(seen)
        assert got == list(range(len(got)))
        assert got
        await rig.close()

    run(body())


class ListSink:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    async def write(self, frame: Frame) -> None:
        await asyncio.sleep(0)
        self.frames.append(frame)

    def durable(self, port: str) -> int:
        return len(self.frames)


def test_a_sink_takes_every_frame_with_no_client(lab, run):
    async def body():
        rig = await rig_of(lab, max_frames=30, config=RunnerConfig(ring_frames=4)).open()
        sink = ListSink()
        end = await drain(rig.runner, sink, ahead=1)
        assert lab.values(sink.frames) == list(range(30))
        assert (end.type, end.reason, end.failed) == (EventType.ENDED, "all 30 frames were made", False)
        await rig.close()

    run(body())


def test_a_sink_that_fails_leaves_the_session_to_its_owner(lab, run):
    class Full(ListSink):
        async def write(self, frame: Frame) -> None:
            if frame.number == 5:
                raise OSError("disk full")

    async def body():
        rig = await rig_of(lab).open()
        with pytest.raises(OSError, match="disk full"):
            await drain(rig.runner, Full())
        assert not rig.runner.state.ended
        await rig.close()

    run(body())
