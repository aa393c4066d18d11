"""A control that a stage was given, and whose lines the store does not have, comes again: it is given once."""

from __future__ import annotations

from dataclasses import replace

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.items import Receipt, ReceiptStage
from riverrun.models.base import Control

SOURCE = Graph("source", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})
PARAMS = {"a": {"height": 4, "width": 4, "state_bytes": 64, "prompt": "p0"}}
CHUNK = 4
CONFIG = RunnerConfig(cadence=Cadence(chunks=10_000, seconds=1e9), ring_frames=4096)


def test_a_control_that_comes_again_is_in_force_from_where_it_was(w, clock, run):
    async def body():
        world = w.World(clock)
        runner = await world.open(SOURCE, CONFIG, params=PARAMS)
        client = w.Client(credits=64)
        await client.read(runner, 2 * CHUNK, ack=False)
        await runner.control(Control(1, "prompt", "p1"))
        await client.read(runner, 8 * CHUNK, ack=False)
        first = next(frame for frame in client.frames if frame.revision == 1)
        await world.crash(runner)
        world.store._logs["s1"].clear()
        runner = await world.take_over(SOURCE, CONFIG, {})
        told: list[Receipt] = []
        runner._flow.desk._tell = told.append
        await runner.control(Control(1, "prompt", "p1"))
        again = w.Client(credits=64)
        await again.read(runner, 6 * CHUNK, ack=False)  # all but what was acked by coming back for more
        assert [receipt.stage for receipt in told] == [ReceiptStage.RECEIVED, ReceiptStage.APPLIED]
        assert (told[-1].chunk, told[-1].frame) == (first.chunk, first.number)
        assert again.pixels == client.pixels[2 * CHUNK :]
        world.kill(runner.record.placement["a"].actor)
        await again.read(runner, 10 * CHUNK, ack=False)
        assert again.numbers == list(range(2 * CHUNK, 12 * CHUNK))
        assert again.pixels[: 6 * CHUNK] == client.pixels[2 * CHUNK :]
        assert {f.revision for f in again.frames[6 * CHUNK :]} == {1}
        logged = [line.step for line in await world.store.read_log("s1") if line.step >= 0]
        assert len(logged) == 1
        await runner.close("over")

    run(body())


def test_a_step_that_a_late_request_made_without_its_control_is_made_again(w, clock, run, monkeypatch):
    """The late one was of an earlier life of the State, from before the control."""
    steps = w.Handle.step

    async def step(self, request):
        if request.controls and not late:
            late.append(request.seq)
            await steps(self, replace(request, controls=()))
        return await steps(self, request)

    async def body():
        world = w.World(clock)
        monkeypatch.setattr(w.Handle, "step", step)
        runner = await world.open(SOURCE, CONFIG, params=PARAMS)
        told: list[Receipt] = []
        runner._flow.desk._tell = told.append
        client = w.Client()
        await client.read(runner, 2 * CHUNK)
        await runner.control(Control(1, "prompt", "p1"))
        await client.read(runner, 8 * CHUNK)
        assert client.numbers == list(range(8 * CHUNK))
        applied = next(receipt for receipt in told if receipt.stage is ReceiptStage.APPLIED)
        assert late == [applied.chunk]
        assert [frame.revision for frame in client.frames] == [int(n >= applied.frame) for n in client.numbers]
        await runner.close("over")

    late: list[int] = []
    run(body())
