import random

import pytest
import torch

from riverrun.train.codec import PatchCodec
from riverrun.train.data import film, load_shard
from riverrun.train.measure import count_colours, floor_and_sky, label_pixels
from riverrun.train.scenes import OBJECT_COLOURS, sample_scene
from riverrun.train.world import pictures, render


@pytest.fixture(scope="module")
def codec():
    rng = random.Random(8)
    return PatchCodec.fit(torch.stack([pictures(sample_scene(rng), [40, 41, 42, 43]) for _ in range(160)]))


def test_unseen_scenes_come_back(codec):
    rng = random.Random(9)
    errors = []
    for _ in range(12):
        clip = pictures(sample_scene(rng, held_out=True), range(20, 37))[None]
        latents = codec.encode(clip)
        assert latents.shape == (1, 5, 16, 8, 8)
        errors.append((codec.decode(latents) - clip).square().mean())
    assert -10 * torch.stack(errors).mean().log10() >= 28.5


def test_a_clip_is_its_first_frame_and_groups_of_four(codec):
    clip = pictures(sample_scene(random.Random(10)), 9)[None]
    whole = codec.encode(clip)
    assert torch.equal(whole[:, 1:], codec.encode_later(clip[:, 1:]))
    assert torch.equal(whole[:, :1], codec.encode(clip[:, :1]))
    assert torch.equal(film(codec, sample_scene(random.Random(10)), later=1)[:3], whole[0])


def test_a_shard_is_the_same_when_rendered_again(tmp_path):
    first = load_shard(tmp_path / "a", 0, clips=2, size=16)
    again = load_shard(tmp_path / "a", 0, clips=2, size=16)
    other = load_shard(tmp_path / "b", 0, clips=2, size=16)
    assert first.scenes == again.scenes == other.scenes
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.latents, other.latents)
    assert first.latents.shape == (2, 12, 16, 2, 2)
    assert first.scenes[0].camera == first.scenes[1].camera


def test_the_yardstick_agrees_with_the_truth():
    rng = random.Random(11)
    for _ in range(20):
        scene = sample_scene(rng)
        footage = render(scene, [0, 30])
        count = count_colours(footage.frames)
        assert count.shows(scene.things[0].colour)
        assert sum(count.shows(colour) for colour in OBJECT_COLOURS) == 1
        truth, found = footage.objects > 0, label_pixels(footage.frames) >= 0
        assert (truth & found).sum() / (truth | found).sum() > 0.85
        assert floor_and_sky(footage.frames) == (scene.floor, scene.sky)


def test_a_picture_without_an_object_shows_no_colour():
    grey = torch.full((1, 16, 16, 3), 90, dtype=torch.uint8)
    assert not any(count_colours(grey).shows(colour) for colour in OBJECT_COLOURS)
