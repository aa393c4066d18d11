"""ViD-GPT as a stage, on tiny random weights: what it has beyond Ca2-VDM (test_ca2vdm.py)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from riverrun.kernels.noise import normal
from riverrun.models.base import BadRequest, Chunk, Control, Corrupt
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2, STDiTConfig
from riverrun.models.generation.ca2vdm_state import ClipParams, ClipState
from riverrun.models.generation.iddpm import progressive_noise
from riverrun.models.generation.vidgpt import ViDGPT

FORM = STDiTConfig(
    (4, 6), hidden_size=24, depth=2, num_heads=2, caption_channels=8, text_len=5, table_len=12, position="absolute"
)
OPTIONS = {"chunk": 3, "frames": 11, "steps": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = CausalSTDiT2(FORM)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(model.state_dict(), folder / "net.safetensors")
    (folder / "net.json").write_text(json.dumps(dataclasses.asdict(FORM)))
    return folder


def load(folder: Path, **options: object) -> ViDGPT:
    torch.set_num_threads(1)
    files = {"weights": str(folder / "net.safetensors"), "weights_config": str(folder / "net.json")}
    return ViDGPT(**files, **(OPTIONS | options))  # type: ignore[arg-type]


def first(frames: int = 1) -> Chunk:
    data = np.random.default_rng(frames).standard_normal((frames, 4, 4, 6), dtype=np.float32)
    return Chunk("first", data, 0, 1, frames)


def prompt(number: int = 1) -> Control:
    embedding = np.random.default_rng(number).standard_normal((5, 8), dtype=np.float32)
    return Control(0, "prompt", f"prompt {number}", embedding)


def start(model: ViDGPT, given: int = 1, guidance: float = 2.0, seed: int = 5, chunks: int | None = None) -> ClipState:
    state = model.open(ClipParams(guidance=guidance, chunks=chunks), seed)
    model.control(state, prompt())
    assert not model.ready(state)
    model.push(state, first(given))
    return state


def run(model: ViDGPT, state: ClipState, steps: int) -> list[np.ndarray]:
    return [model.step([state])[0][0].data for _ in range(steps)]


def test_the_cache_grows_to_a_hard_end(folder: Path) -> None:
    model = load(folder)
    state = start(model, given=2)
    held = []
    for _ in range(3):
        run(model, state, 1)
        held.append(state.stream.caches.temporal.lengths[0])
    assert held == [5, 8, 11]
    with pytest.raises(BadRequest, match="limit of 11 frames; a window has none"):
        model.step([state])
    state.snapshot()  # refused before anything was touched


def test_a_stream_that_could_not_end_in_time_is_refused_at_its_start(folder: Path) -> None:
    model = load(folder)
    state = model.open(ClipParams(chunks=4), 0)
    with pytest.raises(BadRequest, match="13 frames were asked for, this model's streams have at most 11"):
        model.push(state, first(1))
    with pytest.raises(BadRequest, match=r"\[1..8, "):
        model.push(state, first(9))
    start(model, given=2, chunks=3)


def test_a_window_changes_nothing_before_it_is_full(folder: Path) -> None:
    growing, bounded = load(folder), load(folder, window=8)
    a, b = start(growing, given=2), start(bounded, given=2)
    for x, y in zip(run(growing, a, 3), run(bounded, b, 3), strict=True):
        assert np.array_equal(x, y)


def test_noise_leans_on_the_frame_before_across_chunks(folder: Path) -> None:
    model = load(folder)
    state = start(model, chunks=2)
    seen = []
    for chunk in range(2):
        seen.append(model._noise([state], 0)[0])
        state.chunk = chunk + 1
    plain = [normal((4, 3, 4, 6), seed=5, chunk=chunk, draw=0) for chunk in range(2)]
    torch.testing.assert_close(torch.cat(seen, dim=1), progressive_noise(torch.cat(plain, dim=1), 2.0))
    assert not np.allclose(run(load(folder, alpha=0.0), start(model), 1)[0], run(model, start(model), 1)[0])


def test_a_snapshot_of_another_limit_is_corrupt(folder: Path) -> None:
    state = start(load(folder))
    with pytest.raises(Corrupt, match="does not fit"):
        load(folder, window=8).restore(state.params, state.snapshot())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 3}, "frames must be more than a chunk of 3, got 3"),
        ({"frames": 13}, "at most the table's 12 positions, got 13"),
        ({"window": 2}, "window must hold a chunk of 3 frames, got 2"),
        ({"alpha": -1.0}, "alpha must be 0..100"),
    ],
)
def test_wrong_options(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        load(folder, **options)
