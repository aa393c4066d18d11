"""Snapshots of kind "recache": smaller, of the same counts, and how near what follows is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riverrun.models.base import BadRequest, Chunk, Snapshot, StreamModel, parse_params
from riverrun.models.wan.sizes import decoder_reach
from riverrun.models.wan.vae import WAN21_VAE
from riverrun.tests.models.table import ROWS, Row, built

RECACHED = (
    "LongLive",
    "Ca2-VDM",
    "Ca2-VDM, rope",
    "Ca2-VDM, partial",
    "Ca2-VDM, no captions",
    "ViD-GPT",
    "ViD-GPT, bounded",
    "text autoregressive",
    "text jacobi",
    "text jacobi_sliding",
    "text wedlm",
    "text autoregressive, sampled",
    "text jacobi_sliding, sampled",
    "text wedlm, sampled",
)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def model(row: Row, tmp_path_factory: pytest.TempPathFactory) -> StreamModel:
    return loud(built(row, tmp_path_factory.mktemp("weights")))


def loud(model: Any) -> Any:
    """Fresh weights leave the prompt out (their last layers are zero); here everything has a say."""
    if type(model).__name__ == "LongLive":
        draw = torch.Generator().manual_seed(3)
        for parameter in model.model.parameters():
            parameter.data.normal_(std=0.25, generator=draw)
    return model


def run(row: Row, model: StreamModel, states: list[Any], steps: int, switch: int = -1) -> list[list[Chunk]]:
    """The same input and controls for every state; the chunks of each."""
    made: list[list[Chunk]] = [[] for _ in states]
    for step in range(steps):
        if step == switch and row.control is not None:
            for state in states:
                model.control(state, row.control(50 + step))
        turn = 0
        while not model.ready(states[0]):
            for chunk in row.feed(1, 10 * step + turn):
                for state in states:
                    model.push(state, chunk)
            turn += 1
        for chunks, state in zip(made, states, strict=True):
            assert model.ready(state)
            chunks += model.step([state])[0]
    return made


def opened(row: Row, model: StreamModel, **params: Any) -> Any:
    state = model.open(parse_params(model.Params, {**row.params, **params}), 6)
    if row.first_prompt:
        model.control(state, dataclasses.replace(row.control(1), revision=0))
    for chunk in row.given(1):
        model.push(state, chunk)
    return state


def restored(model: StreamModel, state: Any) -> Any:
    taken = state.snapshot("recache")
    assert taken.kind == "recache"
    stored = {name: array.copy() for name, array in taken.tensors.items()}
    return model.restore(state.params, Snapshot(json.loads(json.dumps(taken.meta)), stored, "recache"))


def counts(chunks: list[Chunk]) -> list[Chunk]:
    return [dataclasses.replace(chunk, data=chunk.data.shape) for chunk in chunks]


def apart(one: list[Chunk], other: list[Chunk]) -> float:
    """The largest difference, as a share of the largest value."""
    pairs = list(zip(one, other, strict=True))
    largest = max(float(np.abs(a.data).max()) for a, _ in pairs)
    return max(float(np.abs(a.data.astype(np.float64) - b.data).max()) for a, b in pairs) / largest


def test_which_models_can_be_computed_again(row: Row, model: StreamModel) -> None:
    kinds = model.snapshot_kinds()
    assert kinds == (("exact", "recache") if row.name in RECACHED else ("exact",))
    state = opened(row, model)
    for kind in {"recache", "no such kind"} - set(kinds):
        with pytest.raises(BadRequest, match=f"snapshots of this model are {' or '.join(kinds)}, '{kind}' was asked"):
            state.snapshot(kind)


@pytest.mark.parametrize("steps", [0, 1, 12])
def test_counts_are_exact_and_what_follows_is_near(row: Row, model: StreamModel, steps: int) -> None:
    """No prompt has changed: two layers reach no further back than the frames that warm up."""
    if row.name not in RECACHED:
        return
    steps = steps if row.length is None else min(steps, row.length - 1)
    state = opened(row, model)
    run(row, model, [state], steps)
    again = restored(model, state)
    assert again.nbytes == state.nbytes
    if steps:
        exact, small = state.snapshot().nbytes, state.snapshot("recache").nbytes
        assert small < exact / (4 if steps == 12 else 1)
    one, other = run(row, model, [state, again], 3 if row.length is None else min(3, row.length - steps))
    assert counts(one) == counts(other)
    if one:
        assert apart(one, other) < (0.01 if row.name.startswith("Ca2-VDM") else 1e-5)


@pytest.mark.parametrize(
    ("switch", "params"), [(1, {}), (8, {}), (11, {"keep_sink": False}), (9, {"sink": False})], ids=str
)
def test_longlive_after_a_prompt_switch(tmp_path: Path, switch: int, params: dict[str, Any]) -> None:
    """What the switch computed again is computed again."""
    row = ROWS[0]
    model = loud(built(row, tmp_path))
    state = opened(row, model, **params)
    run(row, model, [state], 12, switch)
    again = restored(model, state)
    assert torch.allclose(again.stream.cache.k, state.stream.cache.k, atol=1e-5)
    one, other = run(row, model, [state, again], 2)
    assert counts(one) == counts(other)
    assert apart(one, other) < 1e-5


def test_longlive_without_recomputing_at_a_switch_is_near_only(tmp_path: Path) -> None:
    """Keys of the old prompt are in the window, and only the new prompt is known."""
    row = ROWS[0]
    model = loud(built(row, tmp_path))
    state = opened(row, model, recache=False)
    run(row, model, [state], 12, switch=11)
    again = restored(model, state)
    assert not torch.allclose(again.stream.cache.k, state.stream.cache.k, atol=1e-3)
    one, other = run(row, model, [state, again], 2)
    assert counts(one) == counts(other)


def test_a_recached_longlive_can_be_stored_again(tmp_path: Path) -> None:
    row = ROWS[0]
    model = loud(built(row, tmp_path))
    state = opened(row, model)
    run(row, model, [state], 12, switch=9)
    again = restored(model, restored(model, state))
    one, other = run(row, model, [state, again], 2)
    assert apart(one, other) < 1e-5


def test_the_decoder_reaches_back_as_far_as_is_said(tmp_path: Path) -> None:
    """From so many latents its memory is what it was; from a few less it isn't."""
    assert decoder_reach(WAN21_VAE) == 39
    model = loud(built(ROWS[0], tmp_path))
    state = opened(ROWS[0], model)
    run(ROWS[0], model, [state], 13)
    reach = decoder_reach(model.vae.config)
    assert len(state.stream.recent) == reach == 31
    for count, is_near in ((reach, True), (reach - 3, False)):
        known = state.snapshot("recache")
        known.tensors["recent"] = known.tensors["recent"][-count:]
        again = model.restore(state.params, known)
        pairs = zip(again.histories.snapshot()[1].values(), state.histories.snapshot()[1].values(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs) == is_near
