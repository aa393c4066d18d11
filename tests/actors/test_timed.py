"""Controls at given frames: in the step that makes their chunk, whatever the chunk sizes."""

import asyncio

import numpy as np
import pytest

from riverrun.actors.stage import StageWorker
from riverrun.actors.timed import TimedControl, TimedStage
from riverrun.graphs.stage import BadRequest, Epoch, OpenRequest, StepRequest
from riverrun.models.base import Control
from riverrun.models.synthetic import Synthetic, colour

EPOCH = Epoch(1, "a")


class Direct:
    """A stage handle over a worker in this thread."""

    def __init__(self) -> None:
        self.worker = StageWorker(Synthetic(), "one", 2)
        self.embeddings: list[np.ndarray | None] = []

    async def open(self, request):
        return self.worker.open(request)

    async def step(self, request):
        self.embeddings += [control.embedding for control in request.controls]
        answer = asyncio.get_running_loop().run_in_executor(None, self.worker.step, request)
        while not answer.done():
            self.worker.run_once()
            await asyncio.sleep(0)
        return await answer


class Encoder:
    async def encode(self, text):
        if not text:
            raise BadRequest("the prompt is empty")
        return np.full(2, len(text), np.float32)


def prompts(*frames: int, stage: str = "") -> list[TimedControl]:
    return [TimedControl(at, Control(n + 1, "prompt", f"p{n + 1}"), stage) for n, at in enumerate(frames)]


def run(controls: list[TimedControl], steps: int, encoder=None, **params) -> tuple[list[int], Direct]:
    """The prompt (by number) of each chunk."""
    direct = Direct()

    async def go():
        stage = TimedStage("gen", direct, controls, encoder)
        await stage.open(OpenRequest("s", EPOCH, {"prompt": "p0"} | params, 7))
        seen = []
        for seq in range(steps):
            reply = await stage.step(StepRequest("s", EPOCH, seq))
            assert await stage.step(StepRequest("s", EPOCH, seq)) == reply
            (chunk,) = reply.chunks
            options = {tuple(colour(7, f"p{n}", seq)): n for n in range(4)}
            seen.append(options[tuple(chunk.data[0, 1, 1])])
            assert chunk.revision == seen[-1]
        return seen

    return asyncio.run(go()), direct


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ((4,), [0, 1, 1, 1]),
        ((5,), [0, 0, 1, 1]),
        ((0, 9), [1, 1, 1, 2]),
        ((1, 2, 3), [0, 3, 3, 3]),
        ((400,), [0, 0, 0, 0]),
    ],
)
def test_the_chunk_that_begins_at_or_after_the_frame(frames, expected):
    assert run(prompts(*frames), 4)[0] == expected


def test_other_stages_controls_are_left_alone_and_embeddings_come_along():
    assert run(prompts(0, stage="vsr"), 2)[0] == [0, 0]
    seen, direct = run(prompts(0), 1, Encoder())
    assert seen == [1]
    assert next(e.tolist() for e in direct.embeddings if e is not None) == [2.0, 2.0]


def test_a_refused_control_is_an_error():
    with pytest.raises(BadRequest, match="control 1: parameters that can change"):
        run([TimedControl(4, Control(1, "parameters", {"height": 3}))], 3)
    with pytest.raises(BadRequest, match="the prompt is empty"):
        run([TimedControl(4, Control(1, "prompt", ""))], 3, Encoder())
    with pytest.raises(BadRequest, match="stage 'gen' takes no 'dance'"):
        run([TimedControl(4, Control(1, "dance"), "gen")], 3)
