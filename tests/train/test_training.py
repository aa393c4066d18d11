import dataclasses

import pytest
import torch

from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import SinkWindow
from riverrun.kernels.shared import TextEntry
from riverrun.models.generation.rollout import BlockSampler, LatentStream
from riverrun.models.wan.dit import WanConfig, WanModel
from riverrun.models.wan.schedule import FlowSchedule
from riverrun.train import distil, generator, vae
from riverrun.train.teacher_forcing import initialise, slot_turn, teacher_forced_flow

SMALL = WanConfig(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, in_dim=16, out_dim=16, freq_dim=16, text_dim=16, text_len=32
)
RECIPE = generator.Recipe(shape=SMALL, steps=6, batch=2, shards=1, shard_clips=4, size=16, warm_up=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards and codec of a tiny run, rendered once."""
    folder = tmp_path_factory.mktemp("run")
    generator.Trainer(RECIPE, folder)
    return folder / "data"


def run_folder(tmp_path, data, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "data").symlink_to(data)
    return folder


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_generator_resumes_as_if_never_stopped(tmp_path, data):
    whole = generator.Trainer(RECIPE, run_folder(tmp_path, data, "whole"))
    generator.train(whole)
    parts = run_folder(tmp_path, data, "parts")
    first = generator.Trainer(RECIPE, parts)
    for _ in range(3):
        first.advance()
    first.save()
    second = generator.Trainer(RECIPE, parts)
    assert second.load()
    generator.train(second)
    assert second.step == RECIPE.steps
    assert_equal_states(whole.model.state_dict(), second.model.state_dict())
    assert_equal_states(whole.average.state_dict(), second.average.state_dict())


def test_distillation_starts_from_the_average_and_resumes(tmp_path, data):
    folder = run_folder(tmp_path, data, "run")
    recipe = distil.Recipe(steps=4, batch=2, ode_steps=2)
    with pytest.raises(FileNotFoundError, match="train the generator first"):
        distil.Distiller(recipe, RECIPE, folder)
    generator.train(generator.Trainer(RECIPE, folder))
    whole = distil.Distiller(recipe, RECIPE, folder)
    assert_equal_states(whole.teacher.state_dict(), whole.model.state_dict())
    for _ in range(recipe.steps):
        whole.advance()
    first = distil.Distiller(recipe, RECIPE, folder)
    first.advance()
    first.save()
    second = distil.Distiller(recipe, RECIPE, folder)
    assert second.load()
    generator.train(second)
    assert_equal_states(whole.model.state_dict(), second.model.state_dict())


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_vae_resumes_as_if_never_stopped(tmp_path, data, part):
    phases = (vae.Phase(2, 2, 1, 1e-3, 1e-3), vae.Phase(2, 1, 5, 1e-3, 1e-4))
    recipe = vae.Recipe(scenes=3, size=16)
    whole = vae.Trainer(recipe, run_folder(tmp_path, data, "whole"), part, phases)
    vae.train(whole)
    parts = run_folder(tmp_path, data, "parts")
    first = vae.Trainer(recipe, parts, part, phases)
    for _ in range(3):
        first.advance()
    first.save()
    second = vae.Trainer(recipe, parts, part, phases)
    assert second.load()
    vae.train(second)
    assert_equal_states(whole.trained.state_dict(), second.trained.state_dict())


def test_inflated_vae_holds_each_picture_for_its_group(data):
    codec = vae.load_codec(data, size=16)
    model = vae.WanVAE(vae.tiny_config(codec))
    vae.inflate(model)
    with torch.no_grad():
        frames = model.decode_clip(torch.randn(1, 3, 16, 2, 2))
    assert frames.shape == (1, 9, 3, 16, 16)
    assert torch.allclose(frames[:, 1:5], frames[:, 1:2].expand(-1, 4, -1, -1, -1), atol=1e-5)


def test_teacher_forcing_equals_cached_streaming():
    torch.manual_seed(0)
    model = WanModel(dataclasses.replace(SMALL, dim=48, num_heads=3)).eval().requires_grad_(False)
    initialise(model)
    torch.nn.init.normal_(model.head.head.weight, std=0.3)
    clean, noisy = torch.randn(2, 4, 3, 16, 4, 6), torch.randn(2, 4, 3, 16, 4, 6)
    sigma, text = torch.rand(2, 4), torch.randn(2, 20, 16)
    turn = slot_turn(model.config, 3, 4, 3, 4, 6)
    forced = teacher_forced_flow(model, clean[:, :3], noisy, sigma, text, text, turn)

    spec = CacheSpec("self", 2, 3, 16, "normed", page=6)
    caches = [KVCache(spec, SinkWindow(12 * 6, 3 * 6), torch.float32, "cpu") for _ in range(2)]
    texts = [TextEntry(*model.text_keys_values(model.embed_text(rows[None]))) for rows in text]
    streams = [LatentStream(c, t, torch.zeros(0, 16, 4, 6)) for c, t in zip(caches, texts, strict=True)]
    sampler = BlockSampler(model, FlowSchedule.shifted(5.0), torch.tensor([1000.0]))
    for block in range(4):
        times = 1000 * sigma[:, block, None].expand(-1, 3)
        flow = sampler.call(streams, noisy[:, block], times).flow
        assert torch.allclose(flow, forced[:, block], atol=1e-4)
        sampler.call(streams, clean[:, block], 0.0)
        for stream in streams:
            stream.start += 3
