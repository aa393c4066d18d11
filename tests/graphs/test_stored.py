"""What a runner keeps in the store, and what it does while that is away, slow, or says that another took over."""

from __future__ import annotations

import asyncio

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.stage import StaleEpoch
from riverrun.models.base import Control, Unavailable
from riverrun.store.memory import MemoryStore
from riverrun.store.records import ANY, SessionState


def test_the_record_tells_how_far_it_came(lab, run):
    async def body():
        rig = await lab.chain_rig().open()
        assert (await rig.store.get("s1")).state is SessionState.RUNNING
        reader = rig.controller(10)
        await lab.take(reader, 10)
        reader.ack("frames", 3)
        await lab.settle()
        assert (await rig.store.get("s1")).ports == {}  # not written once a chunk
        await rig.clock.advance(5)
        record = await rig.store.get("s1")
        assert vars(record.ports["frames"]) == {"chunks": 4, "emitted": 16, "sent": 10, "acked": 4, "is_read": True}
        assert record.steps == {name: len(s.requests) for name, s in rig.stages.items()}
        assert record.consumed == {"b.frames": record.steps["b"], "c.frames": 4}
        assert record.placement["b"].incarnation == "incarnation-1"
        assert record.placement["b"].model == "up"
        status = rig.runner.status()
        assert (status.state, status.frames_delivered) == (SessionState.RUNNING, 10)
        assert [(s.stage, s.model, s.steps) for s in status.stages][1] == ("b", "up", record.steps["b"])
        assert [(o.port, o.kind, o.fps, o.chunk_frames, o.first_frames) for o in status.outputs] == [
            ("frames", "frames", 16.0, 4, 4)
        ]
        await rig.close()

    run(body())


class FlakyStore(MemoryStore):
    """Away while `away`; loses answers while `deaf`."""

    away = deaf = False

    async def update(self, record, drop=0, has=ANY):
        if self.away:
            raise Unavailable("connection refused")
        written = await super().update(record, drop, has)
        if self.deaf:
            raise Unavailable("connection reset")
        return written

    async def log(self, record, entry, has=ANY):
        if self.away:
            raise Unavailable("connection refused")
        await super().log(record, entry, has)


def test_a_stream_goes_on_while_the_store_is_away(lab, run, caplog):
    async def body():
        rig = lab.Rig(lab.CHAIN, lab.chain(), store=FlakyStore())
        await rig.open()
        reader = rig.controller(400)
        rig.store.away = True
        await rig.runner.control(Control(1, "prompt", "x"))
        items = await lab.take(reader, 40)
        assert len([i for i in items if not hasattr(i, "array")]) == 2  # both receipts
        await rig.clock.advance(20)
        assert await rig.store.read_log("s1") == ()
        rig.store.away = False
        await rig.clock.advance(5)
        assert [e.step >= 0 for e in await rig.store.read_log("s1")] == [False, True]
        assert (await rig.store.get("s1")).ports["frames"].sent == 40
        await rig.close()

    run(body())
    assert caplog.text.count("store is away") == 1
    assert caplog.text.count("store is back") == 1


def test_an_end_the_store_has_missed_is_written_when_it_is_back(lab, run):
    async def body():
        rig = lab.Rig(lab.CHAIN, lab.chain(), store=FlakyStore())
        await rig.open()
        await rig.clock.advance(5)
        rig.store.away = True
        await rig.close()
        writing = asyncio.create_task(rig.runner.catch_up())
        await rig.clock.advance(100)
        assert (await rig.store.get("s1")).state is SessionState.RUNNING
        rig.store.away = False
        await rig.clock.advance(15)
        assert writing.done()
        stored = await rig.store.get("s1")
        assert (stored.state, stored.reason) == (SessionState.CLOSED, "test over")

    run(body())


def test_a_write_whose_answer_was_lost_is_adopted(lab, run):
    async def body():
        rig = lab.Rig(lab.CHAIN, lab.chain(), store=FlakyStore())
        await rig.open()
        rig.store.deaf = True
        await rig.clock.advance(15)
        rig.store.deaf = False
        await rig.clock.advance(5)
        assert rig.runner.state is SessionState.RUNNING
        await rig.close()
        assert (await rig.store.get("s1")).state is SessionState.CLOSED

    run(body())


def test_a_store_that_lost_the_record_is_told_again(lab, run):
    async def body():
        rig = await lab.chain_rig().open()
        await rig.store.delete("s1")
        await rig.clock.advance(6)
        assert (await rig.store.get("s1")).state is SessionState.RUNNING
        await rig.close()

    run(body())


def test_a_runner_that_was_taken_over_stops(lab, run):
    async def body():
        rig = await lab.chain_rig().open()
        _reader = rig.controller(4)
        stored = await rig.store.get("s1")
        taken = await rig.store.take("s1", stored.version, 2, "n2")
        await rig.clock.advance(6)
        await rig.runner.ended()
        assert rig.runner.state is SessionState.FAILED
        assert rig.runner.status().reason == "session s1 was taken over (epoch 2, ours is 1)"
        await assert_left_to_the_new_owner(rig, taken)

    run(body())


def test_a_stage_that_obeys_another_runner_stops_this_one(lab, run):
    async def body():
        rig = lab.chain_rig()
        rig.stages["b"].fail = lab.at_step(3, StaleEpoch("epoch 1 is over, 2 is on"))
        await rig.open()
        stored = await rig.store.get("s1")
        taken = await rig.store.take("s1", stored.version, 2, "n2")
        _, others = await lab.rest(rig.controller(400))
        assert lab.ended(others).reason == "another gateway goes on with it"
        await rig.runner.ended()
        await assert_left_to_the_new_owner(rig, taken)

    run(body())


async def assert_left_to_the_new_owner(rig, taken):
    assert await rig.store.get("s1") == taken
    assert all(len(stage.states) == 1 for stage in rig.stages.values())
    for stage in rig.stages.values():
        stage.states.clear()
    rig.assert_clean()


def test_a_slow_store_does_not_hold_the_frames(lab, run):
    class Slow(MemoryStore):
        async def update(self, record, drop=0, has=ANY):
            if record.ports:
                await asyncio.Event().wait()
            return await super().update(record, drop, has)

    async def body():
        rig = lab.Rig(lab.CHAIN, lab.chain(), store=Slow(), config=RunnerConfig(commit_every_s=1.0))
        await rig.open()
        reader = rig.controller(400)
        advancing = asyncio.create_task(rig.clock.advance(1.5))
        assert lab.values(await lab.take(reader, 40)) == list(range(40))
        await advancing
        closing = asyncio.create_task(rig.runner.close("test over"))
        await lab.settle()
        await rig.clock.advance(5)
        await closing
        rig.assert_clean()

    run(body())
