"""Controls: logged, encoded while the stream goes on, carried in order, each with its receipts."""

from __future__ import annotations

import asyncio

import pytest

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame, Receipt
from riverrun.graphs.items import ReceiptStage as Stage
from riverrun.graphs.runner import SessionEnded
from riverrun.models.base import BadRequest, Control, Unavailable

ONE = Graph("g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})
TWO = Graph(
    "g",
    (StageSpec("a", "m"), StageSpec("b", "m")),
    {"frames": Endpoint("b", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")),),
)


def rig_of(lab, **options):
    stage = lab.FakeStage(size=4, controls=("prompt", "style"))
    return lab.Rig(ONE, {"a": stage}, encoders={"a": lab.FakeEncoder()}, **options)


def receipts(items, revision=None):
    found = [i for i in items if isinstance(i, Receipt) and revision in (None, i.revision)]
    return [(i.stage, i.chunk, i.frame, i.message) for i in found]


def test_received_then_applied_before_the_first_frame_it_is_true_of(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader = rig.controller(400)
        items = await lab.take(reader, 6)
        await rig.runner.control(Control(1, "prompt", "a blue cube"))
        items += await lab.take(reader, 20)
        (received, applied) = receipts(items)
        assert received == (Stage.RECEIVED, 0, 0, "")
        assert applied[0] is Stage.APPLIED
        frames = [i for i in items if isinstance(i, Frame)]
        first = next(f for f in frames if f.revision == 1)
        assert (first.chunk, first.number, first.index) == (applied[1], applied[2], 0)
        assert all(f.revision == (f.number >= first.number) for f in frames)
        before = items[: items.index(first)]
        assert receipts(before) == [received, applied]
        await rig.close()

    run(body())


def test_the_log_has_the_control_and_the_step_that_carried_it(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader = rig.controller(400)
        await lab.take(reader, 6)
        await rig.runner.control(Control(3, "prompt", "red"), "a")
        items = await lab.take(reader, 20)
        applied = receipts(items)[1]
        arrived, carried = await rig.store.read_log("s1")
        assert (arrived.revision, arrived.kind, arrived.value, arrived.stage, arrived.step) == (
            3,
            "prompt",
            "red",
            "a",
            -1,
        )
        step = next(r.seq for r in rig.stages["a"].requests if r.controls)
        assert (carried.stage, carried.step, carried.chunk) == ("a", step, applied[1])
        embedding = next(r.controls[0].embedding for r in rig.stages["a"].requests if r.controls)
        assert embedding.tolist() == [[3.0]]
        await rig.close()

    run(body())


def test_the_stream_goes_on_while_a_prompt_is_encoded_and_order_is_kept(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        encoder = rig.encoders["a"]
        encoder.gate = asyncio.Event()
        reader = rig.controller(400)
        await rig.runner.control(Control(1, "prompt", "slow"))
        await rig.runner.control(Control(2, "style", 3))
        items = await lab.take(reader, 40)
        assert receipts(items) == [(Stage.RECEIVED, 0, 0, "")] * 2
        encoder.gate.set()
        items = await lab.take(reader, 16)
        assert [(r.revision, r.stage) for r in items if isinstance(r, Receipt)] == [
            (1, Stage.APPLIED),
            (2, Stage.APPLIED),
        ]
        carried = [c.revision for r in rig.stages["a"].requests for c in r.controls]
        assert carried == [1, 2]
        await rig.close()

    run(body())


@pytest.mark.parametrize(
    ("error", "says"), [(Unavailable("encoder died"), "encoder died"), (None, "the prompt is empty")]
)
def test_an_encoder_that_fails_rejects_the_control_and_nothing_else(lab, run, error, says):
    async def body():
        rig = await rig_of(lab).open()
        rig.encoders["a"].error = error
        reader = rig.controller(400)
        await rig.runner.control(Control(1, "prompt", ""))
        await rig.runner.control(Control(2, "style", 3))
        items = await lab.take(reader, 20)
        assert receipts(items, 1) == [(Stage.RECEIVED, 0, 0, ""), (Stage.REJECTED, 0, 0, says)]
        assert [r[0] for r in receipts(items, 2)] == [Stage.RECEIVED, Stage.APPLIED]
        await rig.close()

    run(body())


def test_an_encoder_that_hangs_rejects_the_control(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        rig.encoders["a"].gate = asyncio.Event()
        reader = rig.controller(400)
        await rig.runner.control(Control(1, "prompt", "x"))
        await lab.take(reader, 4)
        await rig.clock.advance(61)
        items = await lab.take(reader, 8)
        assert receipts(items) == [(Stage.REJECTED, 0, 0, "the prompt encoder did not answer for 60 s")]
        await rig.close()

    run(body())


def test_a_control_the_model_refuses_is_rejected_with_its_reason(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        rig.stages["a"].refuse = {1: "style must be below 3"}
        reader = rig.controller(400)
        await rig.runner.control(Control(1, "style", 9))
        items = await lab.take(reader, 16)
        assert receipts(items) == [(Stage.RECEIVED, 0, 0, ""), (Stage.REJECTED, 0, 0, "style must be below 3")]
        assert {f.revision for f in items if isinstance(f, Frame)} == {0}
        await rig.close()

    run(body())


def test_a_repeated_revision_gives_its_receipts_again_and_a_lower_one_is_wrong(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        reader = rig.controller(400)
        await rig.runner.control(Control(5, "style", 1))
        first = receipts(await lab.take(reader, 16))
        await rig.runner.control(Control(5, "style", 1))
        assert receipts(await lab.take(reader, 16)) == first
        assert len([c for r in rig.stages["a"].requests for c in r.controls]) == 1
        with pytest.raises(BadRequest, match="revision 4 must be above the last one, 5"):
            await rig.runner.control(Control(4, "style", 1))
        await rig.close()

    run(body())


def test_wrong_controls_are_refused_at_once(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        for control, stage, says in [
            (Control(1, "camera"), "", "no stage takes control 'camera'; there are pause, prompt, style"),
            (Control(1, "camera"), "a", "stage 'a' does not take control 'camera'"),
            (Control(1, "style"), "z", "no stage 'z'; there are a"),
            (Control(1, "pause", "yes"), "", "pause must be true or false, got 'yes'"),
            (Control(0, "style"), "", "revision 0 must be above the last one, 0"),
        ]:
            with pytest.raises(BadRequest) as error:
                await rig.runner.control(control, stage)
            assert says in str(error.value)
        await rig.close()
        with pytest.raises(SessionEnded):
            await rig.runner.control(Control(1, "style"))

    run(body())


def test_too_many_waiting_controls_are_pushed_back(lab, run):
    async def body():
        rig = await rig_of(lab).open()
        rig.encoders["a"].gate = asyncio.Event()
        for n in range(1, 65):
            await rig.runner.control(Control(n, "prompt", "x"))
        with pytest.raises(Unavailable, match="64 controls are waiting"):
            await rig.runner.control(Control(65, "prompt", "x"))
        await rig.close()

    run(body())


def two(lab):
    return {
        "a": lab.FakeStage(controls=("prompt",)),
        "b": lab.FakeStage(size=6, inputs=("frames",), latency=12, controls=("prompt", "scale")),
    }


def test_a_control_of_several_stages_has_one_receipt_when_all_have_it(lab, run):
    async def body():
        rig = await lab.Rig(TWO, two(lab)).open()
        reader = rig.controller(400)
        await rig.runner.control(Control(1, "prompt", "x"))
        await rig.runner.control(Control(2, "scale", 2))
        items = await lab.take(reader, 40)
        taken = {n: [c.revision for r in s.requests for c in r.controls] for n, s in rig.stages.items()}
        assert taken == {"a": [1], "b": [1, 2]}
        (received, applied) = receipts(items, 1)
        assert (received[0], applied[0]) == (Stage.RECEIVED, Stage.APPLIED)
        step = next(r.seq for r in rig.stages["b"].requests if r.controls)
        logged = {(e.stage, e.step) for e in await rig.store.read_log("s1") if e.revision == 1 and e.step >= 0}
        assert ("b", step) in logged
        assert len(logged) == 2
        await rig.close()

    run(body())


def test_one_stage_of_several_may_be_named(lab, run):
    async def body():
        rig = await lab.Rig(TWO, two(lab)).open()
        reader = rig.controller(400)
        await rig.runner.control(Control(1, "prompt", "x"), "b")
        items = await lab.take(reader, 40)
        assert [r[0] for r in receipts(items)] == [Stage.RECEIVED, Stage.APPLIED]
        assert not [r for r in rig.stages["a"].requests if r.controls]
        await rig.close()

    run(body())


def test_the_log_is_bounded_and_folds_into_the_record(lab, run):
    async def body():
        rig = await rig_of(lab, config=RunnerConfig(log_entries=4)).open()
        reader = rig.controller(400)
        await rig.runner.control(Control(1, "style", 7))
        await lab.take(reader, 8)
        for n in range(2, 12):
            await rig.runner.control(Control(n, "prompt", f"prompt {n}"))
            await lab.take(reader, 8)
        await rig.clock.advance(5)
        assert len(await rig.store.read_log("s1")) == 4
        await rig.close()
        folded = {(e.kind, e.stage): e.value for e in (await rig.store.get("s1")).folded}
        assert folded["style", "a"] == 7
        assert folded["prompt", "a"] == "prompt 9"

    run(body())
