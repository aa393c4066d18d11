"""How sessions open and end: every path frees every state and task, and says why in one line."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.driver import Deadlines
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import EventType
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.stage import StageGone, StaleEpoch, StepFailed, UnknownSession
from riverrun.models.base import BadRequest, Control, Unavailable
from riverrun.store.memory import MemoryStore
from riverrun.store.records import SessionState

CHAIN = Graph(
    "g",
    (StageSpec("a", "world"), StageSpec("b", "up"), StageSpec("c", "geo")),
    {"frames": Endpoint("c", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")), Edge(Endpoint("b", "frames"), Endpoint("c", "frames"))),
)


def chain(lab):
    into = {"inputs": ("frames",)}
    return {"a": lab.FakeStage(controls=("prompt",)), "b": lab.FakeStage(**into), "c": lab.FakeStage(**into)}


def rig_of(lab, **options):
    return lab.Rig(CHAIN, chain(lab), **options)


def at_step(seq, error):
    def fail(request):
        if request.seq == seq:
            raise error

    return fail


@pytest.mark.parametrize("stage", ["a", "b", "c"])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (StageGone("actor gen-0 died"), "is gone: actor gen-0 died"),
        (StepFailed("NaN in the latents"), "can't go on: NaN in the latents"),
        (UnknownSession("no session s1"), "lost its state: no session s1"),
        (Unavailable("no memory"), "failed: no memory"),
        (BadRequest("wrong size"), "failed: wrong size"),
    ],
)
def test_a_stage_that_fails_ends_the_session_with_one_reason(lab, run, stage, error, says):
    async def body():
        rig = rig_of(lab)
        rig.stages[stage].fail = at_step(3, error)
        await rig.open()
        reader, viewer = rig.controller(400), rig.viewer(400)
        (_, others), (_, seen) = await asyncio.gather(lab.rest(reader), lab.rest(viewer))
        for event in (lab.ended(others), lab.ended(seen)):
            assert (event.type, event.failed) == (EventType.ENDED, True)
            assert event.reason == f"stage '{stage}' {says}"
        record = await rig.runner.ended()
        assert (record.state, record.reason) == (SessionState.FAILED, event.reason)
        assert await rig.store.get("s1") == record
        with pytest.raises(SessionEnded, match="session s1 is failed"):
            await rig.runner.control(Control(1, "prompt", "x"))
        rig.assert_clean()

    run(body())


def test_an_error_of_our_own_making_is_no_hang_either(lab, run, caplog):
    async def body():
        rig = rig_of(lab)
        rig.stages["b"].fail = at_step(2, KeyError("oops"))
        await rig.open()
        _, others = await lab.rest(rig.controller(400))
        assert lab.ended(others).reason == "internal error: KeyError: 'oops'"
        await rig.runner.ended()
        rig.assert_clean()

    run(body())
    assert "internal error" in caplog.text


def test_a_fetch_that_fails_ends_the_session(lab, run):
    async def body():
        rig = rig_of(lab)

        async def gone(data):
            raise StageGone("actor up-0 died")

        rig.stages["c"].fetch = gone
        await rig.open()
        _, others = await lab.rest(rig.controller(4))
        assert (lab.ended(others).reason, lab.ended(others).failed) == ("actor up-0 died", True)
        await rig.runner.ended()
        rig.assert_clean()

    run(body())


@pytest.mark.parametrize(("hangs_at", "limit"), [(0, 120), (5, 30)])
def test_a_stage_that_hangs_is_given_up_after_its_deadline(lab, run, hangs_at, limit):
    async def body():
        rig = rig_of(lab)
        stage = rig.stages["b"]
        stage.gate = asyncio.Semaphore(hangs_at)
        await rig.open()
        reading = asyncio.create_task(lab.rest(rig.controller(400)))
        await lab.settle()
        await rig.clock.advance(limit - 1)
        assert not reading.done()
        await rig.clock.advance(2)
        _, others = await reading
        assert lab.ended(others).reason == f"stage 'b' is gone: no answer to step {hangs_at} for {limit} s"
        await rig.runner.ended()
        rig.assert_clean()

    run(body())


def test_deadlines_grow_with_the_steps():
    limits = Deadlines()
    assert limits.of([]) == 120
    assert limits.of([0.5] * 50) == 30
    assert limits.of([2.0] * 98 + [5.0] * 2) == 100


@pytest.mark.parametrize("stage", ["a", "c"])
def test_opening_that_fails_leaves_nothing_open(lab, run, stage):
    async def body():
        rig = rig_of(lab)

        async def full(request):
            await asyncio.sleep(0)
            raise Unavailable("no room for session s1")

        rig.stages[stage].open = full
        with pytest.raises(Unavailable, match="no room for session s1"):
            await rig.open()
        assert (await rig.store.get("s1")).state is SessionState.FAILED
        rig.assert_clean()

    run(body())


def test_ports_that_do_not_fit_are_found_on_opening(lab, run):
    async def body():
        rig = rig_of(lab)
        rig.stages["b"] = lab.FakeStage(inputs=("video",))
        with pytest.raises(BadRequest, match="'b' has no port 'frames' among its inputs; there are video"):
            await rig.open()
        rig.assert_clean()

    run(body())


def test_opening_that_hangs_and_opening_that_is_cancelled(lab, run):
    async def body(cancel):
        rig = rig_of(lab)

        async def hang(request):
            await asyncio.Event().wait()

        rig.stages["b"].open = hang
        opening = asyncio.create_task(rig.open())
        await lab.settle()
        if cancel:
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await rig.runner.ended()
            assert rig.runner.state is SessionState.CLOSED
        else:
            await rig.clock.advance(121)
            with pytest.raises(StageGone, match="stage 'b' did not answer for 120 s"):
                await opening
        rig.assert_clean()

    run(body(True))
    run(body(False))


def test_parameters_seed_and_prompt_reach_the_stages(lab, run):
    async def body():
        params = {"a": {"prompt": "red"}, "b": {"scale": 2}}
        rig = await rig_of(lab, encoders={"a": lab.FakeEncoder()}, params=params, seed=7).open()
        a, b = rig.stages["a"].opened[0], rig.stages["b"].opened[0]
        assert (a.params, a.seed, a.embedding.tolist()) == ({"prompt": "red"}, 7, [[3.0]])
        assert (b.params, b.embedding) == ({"scale": 2}, None)
        assert (a.epoch.number, a.epoch.nonce) == (1, "n1")
        await rig.close()
        empty = rig_of(lab, encoders={"a": lab.FakeEncoder()}, params={"a": {"prompt": ""}})
        with pytest.raises(BadRequest, match="the prompt is empty"):
            await empty.open()
        empty.assert_clean()

    run(body())


@pytest.mark.parametrize("moment", range(0, 60, 3))
def test_closing_at_any_moment_frees_everything(lab, run, moment):
    async def body():
        rig = rig_of(lab, max_frames=20, encoders={"a": lab.FakeEncoder()}, params={"a": {"prompt": "x"}})
        opening = asyncio.create_task(rig.open())
        reading = None
        for _ in range(moment):
            await asyncio.sleep(0)
            if opening.done() and reading is None:
                reading = asyncio.create_task(lab.rest(rig.controller(8)))
                await rig.runner.control(Control(1, "prompt", "y"))
                await rig.runner.finish() if moment % 2 else None
        if hasattr(rig, "runner"):
            await rig.runner.close("enough")
            await rig.runner.close("twice is no error")
        await asyncio.gather(opening, *([reading] if reading else []), return_exceptions=True)
        if hasattr(rig, "runner"):
            await rig.runner.close("at the end")
            assert rig.runner.state.ended
        rig.runner.check()
        rig.assert_clean()

    run(body())


def test_a_caller_that_is_cancelled_while_closing_does_not_stop_the_freeing(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        gate = asyncio.Event()
        close = rig.stages["b"].close

        async def slow(session, epoch):
            await gate.wait()
            await close(session, epoch)

        rig.stages["b"].close = slow
        closing = asyncio.create_task(rig.runner.close("enough"))
        await lab.settle()
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        gate.set()
        await rig.runner.ended()
        rig.assert_clean()

    run(body())


def test_a_stage_that_does_not_close_is_left_after_a_while(lab, run, caplog):
    async def body():
        rig = await rig_of(lab).open()

        async def hang(session, epoch):
            await asyncio.Event().wait()

        rig.stages["b"].close = hang
        closing = asyncio.create_task(rig.runner.close("enough"))
        await lab.settle()
        assert rig.runner.state is SessionState.CLOSED
        await rig.clock.advance(11)
        await closing
        rig.stages["b"].states.clear()
        rig.assert_clean()

    run(body())
    assert "stage 'b' did not answer for 10 s" in caplog.text


def test_a_loop_that_is_shut_down_frees_the_stages(lab, run):
    stages = {}

    async def body():
        rig = await rig_of(lab).open()
        stages.update(rig.stages)
        rig.controller(100)
        await lab.settle()

    run(body())  # asyncio.run cancels what is left
    assert not [s for s in stages.values() if s.states]


def test_idle_sessions_end_and_used_ones_do_not(lab, run):
    async def body():
        rig = await rig_of(lab, idle_timeout_s=60.0).open()
        await rig.clock.advance(59)
        reader = rig.controller(2)
        await rig.clock.advance(500)  # attached: stays, even if it takes nothing
        assert rig.runner.state is SessionState.RUNNING
        reader.close()
        await rig.clock.advance(59)
        assert rig.runner.state is SessionState.RUNNING
        await rig.clock.advance(2)
        record = await rig.runner.ended()
        assert (record.state, record.reason) == (SessionState.CLOSED, "idle: nobody was connected for 60 s")
        rig.assert_clean()

    run(body())


def test_a_session_that_drains_does_not_wait_for_ever(lab, run):
    async def body():
        rig = await rig_of(lab, idle_timeout_s=60.0).open()
        reader = rig.controller(2)
        await lab.take(reader, 2)
        await rig.runner.finish()  # and takes no more
        await rig.clock.advance(59)
        assert rig.runner.state is SessionState.DRAINING
        await rig.clock.advance(2)
        record = await rig.runner.ended()
        assert (record.state, record.reason) == (SessionState.CLOSED, "idle: no frame was taken for 60 s")
        rig.assert_clean()

    run(body())


def test_the_record_tells_how_far_it_came(lab, run):
    async def body():
        rig = await rig_of(lab).open()
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

    async def update(self, record, drop=0):
        if self.away:
            raise Unavailable("connection refused")
        written = await super().update(record, drop)
        if self.deaf:
            raise Unavailable("connection reset")
        return written

    async def log(self, record, entry):
        if self.away:
            raise Unavailable("connection refused")
        await super().log(record, entry)


def test_a_stream_goes_on_while_the_store_is_away(lab, run, caplog):
    async def body():
        rig = lab.Rig(CHAIN, chain(lab), store=FlakyStore())
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
        rig = lab.Rig(CHAIN, chain(lab), store=FlakyStore())
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
        rig = lab.Rig(CHAIN, chain(lab), store=FlakyStore())
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
        rig = await rig_of(lab).open()
        await rig.store.delete("s1")
        await rig.clock.advance(6)
        assert (await rig.store.get("s1")).state is SessionState.RUNNING
        await rig.close()

    run(body())


def test_a_runner_that_was_taken_over_stops(lab, run):
    async def body():
        rig = await rig_of(lab).open()
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
        rig = rig_of(lab)
        rig.stages["b"].fail = at_step(3, StaleEpoch("epoch 1 is over, 2 is on"))
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
        async def update(self, record, drop=0):
            if record.ports:
                await asyncio.Event().wait()
            return await super().update(record, drop)

    async def body():
        rig = lab.Rig(CHAIN, chain(lab), store=Slow(), config=RunnerConfig(commit_every_s=1.0))
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


def test_what_a_model_should_not_do_is_said(lab, run):
    async def body(wrong, says):
        rig = rig_of(lab)
        stage = rig.stages["b"]
        honest = stage.step

        async def step(request):
            reply = await honest(request)
            return wrong(reply) if reply.chunks else reply

        stage.step = step
        await rig.open()
        _, others = await lab.rest(rig.controller(100))
        assert says in lab.ended(others).reason
        await rig.runner.ended()
        rig.assert_clean()

    def chunk(reply, **changes):
        return replace(reply, chunks=(replace(reply.chunks[0], **changes),))

    run(body(lambda r: chunk(r, seq=5), "made chunk 5 on port 'frames' where 0 was next"))
    run(body(lambda r: chunk(r, port="film"), "made a chunk on port 'film'"))
    run(body(lambda r: replace(r, chunks=r.chunks * 2), "made 2 chunks in a step, said at most 1"))
    run(body(lambda r: replace(r, seq=9), "answered step 9 when asked for 0"))
