"""The synthetic model: frames that say where they came from, and States that go back and come back exactly."""

import numpy as np
import pytest

from riverrun.models.base import BadRequest, Chunk, Control, Corrupt
from riverrun.models.synthetic import Synthetic, SyntheticParams, frame_number, source_frame

MODEL = Synthetic()


def test_frames_are_a_function_of_seed_prompt_and_number():
    params = SyntheticParams(prompt="sea", chunk_frames=3, height=4, width=6)
    state = MODEL.open(params, seed=5)
    for n in range(3):
        ((chunk,),) = MODEL.step([state])
        assert chunk.data.shape == (3, 4, 6, 3)
        for i, frame in enumerate(chunk.data):
            assert (frame == source_frame(5, "sea", n, 3 * n + i, 4, 6)).all()
    assert frame_number(source_frame(0, "x", 0, 1_000_000, 2, 2)) == 1_000_000


@pytest.mark.parametrize("takes", [0, 3])
def test_snapshot_and_restore_are_exact(takes):
    params = SyntheticParams(state_bytes=100, takes=takes, height=2, width=2)

    def feed(state):
        if takes:
            data = np.arange(2 * 12, dtype=np.uint8).reshape(2, 2, 2, 3)
            MODEL.push(state, Chunk("frames", data, pts=0, frame_ticks=5625, frames=2))
        return MODEL.step([state]) if MODEL.ready(state) else []

    state = MODEL.open(params, seed=1)
    for _ in range(4):
        feed(state)
    MODEL.control(state, Control(1, "prompt", "sand"))
    twin = MODEL.restore(params, state.snapshot())
    for _ in range(4):
        for (ours,), (theirs,) in zip(feed(state), feed(twin), strict=True):
            assert (ours.data == theirs.data).all()
            assert ours.pts == theirs.pts
    assert (state.buffer == twin.buffer).all()
    with pytest.raises(Corrupt, match="100 state bytes, parameters say 3"):
        MODEL.restore(SyntheticParams(state_bytes=3), state.snapshot())


def test_a_state_lends_what_a_snapshot_copies():
    state = MODEL.open(SyntheticParams(state_bytes=3), seed=1)
    lent, copied = state.lend(), state.snapshot()
    assert lent.meta == copied.meta
    MODEL.step([state])
    assert list(lent.tensors["buffer"]) == [1, 0, 0]
    assert list(copied.tensors["buffer"]) == [0, 0, 0]


def test_rewind_takes_a_step_back():
    state = MODEL.open(SyntheticParams(state_bytes=3), seed=1)
    MODEL.step([state])
    mark, before = state.mark(), state.snapshot()
    MODEL.control(state, Control(1, "prompt", "sand"))
    MODEL.step([state])
    state.rewind(mark)
    after = state.snapshot()
    assert after.meta == before.meta
    assert (after.tensors["buffer"] == before.tensors["buffer"]).all()


def test_a_source_takes_no_input_and_parameters_change_the_pace():
    state = MODEL.open(SyntheticParams(), seed=0)
    with pytest.raises(BadRequest, match="takes no input"):
        MODEL.push(state, Chunk("frames", None, 0, 1, 1))
    MODEL.control(state, Control(1, "parameters", {"step_ms": 2}))
    assert state.step_ms == 2
    with pytest.raises(BadRequest, match="step_ms"):
        MODEL.control(state, Control(2, "parameters", {"height": 2}))
