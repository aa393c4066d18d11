"""How sessions open and end: every path frees every state and task, and says why in one line."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from riverrun.graphs.driver import Deadlines
from riverrun.graphs.items import EventType
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.stage import StageGone, StepFailed, UnknownSession
from riverrun.models.base import BadRequest, Control, Unavailable
from riverrun.store.records import SessionState


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
        rig = lab.chain_rig()
        rig.stages[stage].fail = lab.at_step(3, error)
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
        rig = lab.chain_rig()
        rig.stages["b"].fail = lab.at_step(2, KeyError("oops"))
        await rig.open()
        _, others = await lab.rest(rig.controller(400))
        assert lab.ended(others).reason == "internal error: KeyError: 'oops'"
        await rig.runner.ended()
        rig.assert_clean()

    run(body())
    assert "internal error" in caplog.text


def test_a_fetch_that_fails_ends_the_session(lab, run):
    async def body():
        rig = lab.chain_rig()

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
        rig = lab.chain_rig()
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
    assert limits.of([0.1] * 98 + [40.0] * 2) == 120  # one that was late is no pace
    assert limits.of([100.0] * 50) == 300


@pytest.mark.parametrize("stage", ["a", "c"])
def test_opening_that_fails_leaves_nothing_open(lab, run, stage):
    async def body():
        rig = lab.chain_rig()

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
        rig = lab.chain_rig()
        rig.stages["b"] = lab.FakeStage(inputs=("video",))
        with pytest.raises(BadRequest, match="'b' has no port 'frames' among its inputs; there are video"):
            await rig.open()
        rig.assert_clean()

    run(body())


def test_opening_that_hangs_and_opening_that_is_cancelled(lab, run):
    async def body(cancel):
        rig = lab.chain_rig()

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
        rig = await lab.chain_rig(encoders={"a": lab.FakeEncoder()}, params=params, seed=7).open()
        a, b = rig.stages["a"].opened[0], rig.stages["b"].opened[0]
        assert (a.params, a.seed, a.embedding.tolist()) == ({"prompt": "red"}, 7, [[3.0]])
        assert (b.params, b.embedding) == ({"scale": 2}, None)
        assert (a.epoch.number, a.epoch.nonce) == (1, "n1")
        await rig.close()
        empty = lab.chain_rig(encoders={"a": lab.FakeEncoder()}, params={"a": {"prompt": ""}})
        with pytest.raises(BadRequest, match="the prompt is empty"):
            await empty.open()
        empty.assert_clean()

    run(body())


@pytest.mark.parametrize("moment", range(0, 60, 3))
def test_closing_at_any_moment_frees_everything(lab, run, moment):
    async def body():
        rig = lab.chain_rig(max_frames=20, encoders={"a": lab.FakeEncoder()}, params={"a": {"prompt": "x"}})
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
        rig = await lab.chain_rig().open()
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
        rig = await lab.chain_rig().open()

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
        rig = await lab.chain_rig().open()
        stages.update(rig.stages)
        rig.controller(100)
        await lab.settle()

    run(body())  # asyncio.run cancels what is left
    assert not [s for s in stages.values() if s.states]


def test_idle_sessions_end_and_used_ones_do_not(lab, run):
    async def body():
        rig = await lab.chain_rig(idle_timeout_s=60.0).open()
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
        rig = await lab.chain_rig(idle_timeout_s=60.0).open()
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


def test_what_a_model_should_not_do_is_said(lab, run):
    async def body(wrong, says):
        rig = lab.chain_rig()
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
