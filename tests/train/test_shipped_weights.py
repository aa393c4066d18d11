from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import riverrun.weights
from riverrun.actors.loading import build
from riverrun.bench.adherence import Rig, held_out_scenes
from riverrun.configs import load_model
from riverrun.models.base import Chunk
from riverrun.train.captions import build_tokenizer
from riverrun.train.geometry_frames import batch_of, caption_clip
from riverrun.train.geometry_measure import score
from riverrun.train.geometry_start import FIELD_OF_VIEW
from riverrun.train.measure import count_colours
from riverrun.train.world import render

WEIGHTS = Path(riverrun.weights.__file__).parent


@pytest.fixture(scope="module")
def rig():
    return Rig()


def test_they_show_the_asked_colour_on_unseen_captions(rig):
    scenes = held_out_scenes(7)
    states = rig.open(scenes)
    first, second = rig.block(states), rig.block(states)
    assert [len(frames) for frames in first] == [9] * 7
    shown = [count_colours(f).shows(scene.things[0].colour) for f, scene in zip(second, scenes, strict=True)]
    assert sum(shown) >= 6


def test_the_vae_goes_both_ways(rig):
    frames = render(held_out_scenes(1)[0], 9).frames
    error = (rig.through_vae(frames).float() - frames.float()).abs().mean()
    assert error < 12  # levels of 255


def test_the_shipped_tokenizer_is_the_one_the_recipe_builds(rig):
    built = build_tokenizer()
    assert rig.encoder.tokenizer.get_vocab() == built.get_vocab()
    text = "A HUGE crimson Sphere on the beach at midnight!"
    ids = built.encode(text).ids
    assert rig.encoder.tokenizer(text)["input_ids"] == ids[: ids.index(1) + 1]


def test_the_geometry_stage_loads_and_speaks_of_a_frame():
    model = build(load_model("infinitevggt-world"))
    state = model.open(model.Params(), seed=0)
    model.push(state, Chunk("frames", np.zeros((1, 64, 64, 3), np.uint8), 0, 1, 1, 0))
    (chunks,) = model.step([state])
    said = {chunk.port: chunk.data for chunk in chunks}
    assert said["depth"].shape == (1, 112, 112)
    assert said["points"].shape == (1, 112, 112, 3)
    assert all(np.isfinite(said[port]).all() for port in ("depth", "points", "camera", "confidence"))
    assert model.describe(model.Params()).retained_bytes < 50e6


def test_the_geometry_stage_sees_an_orbit_and_how_far_things_are():
    model = build(load_model("infinitevggt-world"))
    numbers = range(3_000_000, 3_000_012)
    orbits = ("orbit left", "orbit right")
    clips = [caption_clip(n, 2, 112, True, gap=8, motion=orbits[n % 2]) for n in numbers]
    batch = batch_of(clips, [[0, 1]] * len(clips), FIELD_OF_VIEW)
    found = score(model.model, batch)
    assert found.rotation < 0.5 * found.rotation_still
    assert found.translation < 0.5 * found.translation_still
    assert found.depth < 0.5 * found.constant
    strangers = torch.stack([batch.images[:, 0], batch.images[:, 1].roll(1, dims=0)], dim=1)
    control = score(model.model, replace(batch, images=strangers))
    assert control.rotation > 0.9 * found.rotation_still  # so the answer is read off the pictures


def test_they_are_small_and_each_has_a_card():
    files = sorted(WEIGHTS.glob("world-*.safetensors"))
    vsr = [f"world-vsr-{part}" for part in ("decoder", "dit", "guidance", "vae")]
    assert [file.stem for file in files] == ["world-dit", "world-text", "world-vae", "world-vggt", *vsr]
    cards = {file.stem: "world-vsr" if file.stem in vsr else file.stem for file in files}
    assert all((WEIGHTS / f"{card}.md").is_file() for card in cards.values())
    assert all(file.with_suffix(".json").is_file() for file in files)
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert sum(file.stat().st_size for file in files if file.stem in vsr) <= 8e6
