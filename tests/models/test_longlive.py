"""LongLive as a stage, on tiny random weights: what goes beyond the table of models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from riverrun.models.base import BadRequest, Control, Corrupt, Snapshot
from riverrun.models.generation.longlive import LongLive
from riverrun.models.generation.longlive_state import LongLiveParams, LongLiveState
from riverrun.models.wan.dit import WanConfig, WanModel
from riverrun.models.wan.vae import VAEConfig, WanVAE

DIT = WanConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)
VAE = VAEConfig(
    dim=3,
    z_dim=4,
    dim_mult=(1, 2, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(False, True, True),
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_file(WanModel(DIT).state_dict(), folder / "dit.safetensors")
    save_file(WanVAE(VAE).state_dict(), folder / "vae.safetensors")
    (folder / "dit.json").write_text(json.dumps(dataclasses.asdict(DIT)))
    (folder / "vae.json").write_text(json.dumps(dataclasses.asdict(VAE)))
    return folder


def load(folder: Path, **options: object) -> LongLive:
    files = {name: str(folder / file) for name, file in FILES.items()}
    return LongLive(**files, **({"height": 32, "width": 48} | options))  # type: ignore[arg-type]


FILES = {
    "weights": "dit.safetensors",
    "vae": "vae.safetensors",
    "weights_config": "dit.json",
    "vae_config": "vae.json",
}


@pytest.fixture(scope="module")
def model(folder: Path) -> LongLive:
    torch.set_num_threads(1)
    return load(folder)


def prompt(number: int, revision: int = 0) -> Control:
    embedding = np.random.default_rng(number).standard_normal((DIT.text_len, DIT.text_dim), dtype=np.float32)
    return Control(revision, "prompt", f"prompt {number}", embedding)


def start(model: LongLive, number: int = 1, seed: int = 5, **params: object) -> LongLiveState:
    state = model.open(LongLiveParams("x", **params), seed)  # type: ignore[arg-type]
    assert not model.ready(state)
    model.control(state, prompt(number))
    assert model.ready(state)
    return state


def run(model: LongLive, state: LongLiveState, steps: int) -> list[np.ndarray]:
    return [model.step([state])[0][0].data for _ in range(steps)]


def as_stored(snapshot: Snapshot) -> Snapshot:
    """What a store makes of it."""
    return Snapshot(json.loads(json.dumps(snapshot.meta)), snapshot.tensors)


def test_counts_and_clock(model: LongLive) -> None:
    state = start(model)
    chunks = [model.step([state])[0][0] for _ in range(3)]
    assert [chunk.frames for chunk in chunks] == [9, 12, 12]
    assert [chunk.first_frame for chunk in chunks] == [0, 9, 21]
    assert [chunk.pts for chunk in chunks] == [0, 9 * 5625, 21 * 5625]
    assert chunks[1].data.shape == (12, 32, 48, 3)
    assert chunks[1].data.dtype == np.uint8
    assert chunks[1].data.flags.c_contiguous, "it goes into Ray's store and onto the wire as it lies"
    description = model.describe(state.params)
    assert (description.first_frames, description.chunk_frames, description.frame_shape) == (9, 12, (32, 48))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"height": 48}, r"its latents are \[4, 4, 6\], the parameters ask for \[4, 6, 6\]"),
        ({"height": 48, "width": 32}, r"its latents are \[4, 4, 6\]"),  # as many tokens, elsewhere
        ({"sink": False}, r"snapshot is of SinkWindow\(capacity=72, sink=18.*, this one is SinkWindow.*sink=0"),
    ],
)
def test_snapshot_of_other_params_is_corrupt(model: LongLive, params: dict, message: str) -> None:
    state = start(model)
    run(model, state, 1)
    with pytest.raises(Corrupt, match=message):
        model.restore(dataclasses.replace(state.params, **params), state.snapshot())


def test_snapshot_of_a_wider_window_is_corrupt(model: LongLive, folder: Path) -> None:
    state = start(model)
    run(model, state, 5)
    snapshot = state.snapshot()
    with pytest.raises(Corrupt, match=r"capacity=72.*capacity=54"):
        load(folder, window=9).restore(state.params, snapshot)


def test_a_short_embedding_is_padded_with_zero_rows(model: LongLive) -> None:
    """Prompts of other lengths share a step: what is attended to always has `text_len` rows."""
    short = prompt(1).embedding[:2]  # type: ignore[index]
    states = [model.open(LongLiveParams("x"), 5) for _ in range(2)]
    model.control(states[0], Control(0, "prompt", "x", short))
    model.control(states[1], Control(0, "prompt", "x", np.pad(short, ((0, DIT.text_len - 2), (0, 0)))))
    assert model.batch_key(states[0]) == model.batch_key(states[1])
    first, second = model.step(states)
    assert np.abs(first[0].data.astype(int) - second[0].data).max() <= 1  # rows of a batch round differently


@pytest.mark.parametrize("recache", [True, False])
def test_prompt_switch(model: LongLive, recache: bool) -> None:
    state, same = start(model, recache=recache), start(model, recache=recache)
    run(model, state, 5)
    run(model, same, 5)
    before = state.stream.cache.slots("v", 1).clone()
    model.control(state, prompt(2, revision=3))
    chunk, other = model.step([state])[0][0], model.step([same])[0][0]
    assert (chunk.revision, other.revision) == (3, 0)
    assert not np.array_equal(chunk.data, other.data)
    # 12 frames of 6 tokens; sink 3, and after the step past frames lie in 3..9
    kept = torch.equal(before[:, 36:72], state.stream.cache.slots("v", 1)[:, 18:54])
    assert kept != recache


def test_equal_prompts_share_their_keys(model: LongLive) -> None:
    a, b, c = start(model, 1), start(model, 1), start(model, 2)
    for state in (a, b, c):
        run(model, state, 1)
    assert a.stream.text is b.stream.text
    assert a.stream.text is not c.stream.text


def test_without_a_sink_the_first_block_goes(model: LongLive) -> None:
    with_sink, without = start(model), start(model, sink=False)
    sinks = []
    for state in (with_sink, without):
        run(model, state, 1)
        first = state.stream.cache.slots("k", 0)[:, :18].clone()
        run(model, state, 5)
        sinks.append(torch.equal(first, state.stream.cache.slots("k", 0)[:, :18]))
    assert sinks == [True, False]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"height": 40}, "multiples of 16, got 40 x 48"),
        ({"height": 0, "width": -16}, "multiples of 16"),
        ({"height": 1600, "width": 1600}, "at most 399360 pixels"),
    ],
)
def test_wrong_sizes(model: LongLive, params: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        model.open(LongLiveParams("x", **params), 0)


def test_wrong_controls(model: LongLive) -> None:
    state = start(model)
    with pytest.raises(BadRequest, match="takes prompts, got a control of kind 'camera'"):
        model.control(state, Control(1, "camera", 1.0))
    with pytest.raises(BadRequest, match=r"must be \[at most 5, 8\], got \(5, 9\)"):
        model.control(state, Control(1, "prompt", "x", np.zeros((5, 9), np.float32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sink": 4}, "sink must be at most a block of 3 latent frames, got 4"),
        ({"window": 5}, "window must hold sink and block, 6 frames, got 5"),
        ({"rope": "relative"}, "rope must be one of infinite, standard"),
        ({"windw": 5}, "unknown parameter 'windw'"),
        ({"block": 0, "sink": 0}, "block must be at least one latent frame, got 0"),
        ({"sink": -1}, "sink must not be negative, got -1"),
        ({"fps": 0}, r"fps must be 1..90000, got 0"),
        ({"steps": []}, r"steps must be whole numbers, at least one, got \[\]"),
        ({"steps": [1000.0]}, r"steps must be whole numbers, at least one, got \[1000.0\]"),
        ({"dtype": "bf16"}, "dtype must be one of float32, bfloat16, float16, got 'bf16'"),
    ],
)
def test_wrong_options(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        load(folder, **options)
