"""Ca2-VDM as a stage, on tiny random weights: what goes beyond the table of models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from riverrun.kernels.attention import reference_attention
from riverrun.kernels.noise import normal
from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Snapshot, parse_params
from riverrun.models.generation.ca2vdm import Ca2VDM
from riverrun.models.generation.ca2vdm_flops import clip_call, denoise_call, write_call
from riverrun.models.generation.ca2vdm_memory import band_mask
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2, STDiTConfig
from riverrun.models.generation.ca2vdm_sizes import clip_session
from riverrun.models.generation.ca2vdm_state import ClipParams, ClipState
from riverrun.models.generation.iddpm import IDDPM

PLAIN = STDiTConfig((4, 6), hidden_size=24, depth=2, num_heads=2, table_len=7, prefix_frames=3)
FORMS = {
    "plain": PLAIN,
    "text": dataclasses.replace(PLAIN, caption_channels=8, text_len=5),
    "rope": dataclasses.replace(PLAIN, position="rope", prefix_frames=0, mask_channel=False),
    "partial": dataclasses.replace(PLAIN, causality="partial"),
}
OPTIONS = {"chunk": 2, "past": 5, "steps": 3, "perturb_t": 0, "device": "cpu"}


def save(folder: Path, name: str, config: STDiTConfig) -> None:
    """Random weights, those too that start at zero: a layer without effect would hide its faults."""
    torch.manual_seed(0)
    model = CausalSTDiT2(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(config)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for name, config in FORMS.items():
        save(folder, name, config)
    return folder


def load(folder: Path, form: str, **options: object) -> Ca2VDM:
    torch.set_num_threads(1)
    files = {"weights": str(folder / f"{form}.safetensors"), "weights_config": str(folder / f"{form}.json")}
    return Ca2VDM(**files, **(OPTIONS | options))  # type: ignore[arg-type]


def first(frames: int = 1, number: int = 0) -> Chunk:
    data = np.random.default_rng(number).standard_normal((frames, 4, 4, 6), dtype=np.float32)
    return Chunk("first", data, 0, 1, frames)


def prompt(number: int, revision: int = 0, tokens: int = 4) -> Control:
    embedding = np.random.default_rng(number).standard_normal((tokens, 8), dtype=np.float32)
    return Control(revision, "prompt", f"prompt {number}", embedding)


def start(model: Ca2VDM, number: int = 0, seed: int = 5, given: int = 1, **params: object) -> ClipState:
    state = model.open(parse_params(ClipParams, params), seed)
    assert not model.ready(state)
    if model.config.caption_channels:
        model.control(state, prompt(number))
    model.push(state, first(given, number))
    assert model.ready(state)
    return state


def run(model: Ca2VDM, state: ClipState, steps: int) -> list[np.ndarray]:
    return [model.step([state])[0][0].data for _ in range(steps)]


def assert_near(actual: np.ndarray, wanted: np.ndarray) -> None:
    """Within 1e-5 of the values' size: an untrained network's latents, never clipped, run into the hundreds."""
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_counts_and_clock(folder: Path) -> None:
    model = load(folder, "plain")
    state = start(model, given=3)
    chunks = [model.step([state])[0][0] for _ in range(3)]
    assert [chunk.frames for chunk in chunks] == [2, 2, 2]
    assert [chunk.first_frame for chunk in chunks] == [0, 2, 4]
    assert [chunk.pts for chunk in chunks] == [0, 2 * 11250, 4 * 11250]
    assert chunks[0].data.shape == (2, 4, 4, 6)
    assert chunks[0].data.dtype == np.float32
    assert state.stream.caches.frames == 3 + 6
    description = model.describe(state.params)
    assert (description.chunk_frames, description.fps, description.controls) == (2, 8, ())


def test_a_stream_of_so_many_chunks_ends(folder: Path) -> None:
    model = load(folder, "plain")
    state = start(model, chunks=2)
    run(model, state, 2)
    assert not model.ready(state)
    with pytest.raises(BadRequest, match="has made all its chunks"):
        model.step([state])


def assert_twin_agrees(model: Ca2VDM, state: ClipState, steps: int) -> None:
    snapshot = state.snapshot()
    meta = json.loads(json.dumps(snapshot.meta))  # what a store does to it
    twin = model.restore(state.params, Snapshot(meta, snapshot.tensors))
    for poisoned in snapshot.tensors.values():
        poisoned.fill(99)  # the restored state must own its memory
    for a, b in zip(run(model, state, steps), run(model, twin, steps), strict=True):
        assert np.array_equal(a, b)


def test_a_snapshot_of_other_guidance_is_corrupt(folder: Path) -> None:
    model = load(folder, "text")
    state = start(model, guidance=2.0)
    run(model, state, 1)
    snapshot = state.snapshot()
    with pytest.raises(Corrupt, match="does not fit"):
        model.restore(ClipParams(), snapshot)


def test_equal_captions_share_their_keys(folder: Path) -> None:
    model = load(folder, "text")
    a, b, c = start(model, 1, guidance=2.0), start(model, 1, guidance=2.0), start(model, 2, guidance=2.0)
    for state in (a, b, c):
        run(model, state, 1)
    assert a.stream.text[1] is b.stream.text[1]
    assert a.stream.text[1] is not c.stream.text[1]
    assert a.stream.text[0] is c.stream.text[0]  # the null caption, cut to equal length


def test_prompt_switch(folder: Path) -> None:
    model = load(folder, "text")
    state, same = start(model), start(model)
    run(model, state, 2)
    run(model, same, 2)
    model.control(state, prompt(7, revision=3))
    chunk, other = model.step([state])[0][0], model.step([same])[0][0]
    assert (chunk.revision, other.revision) == (3, 0)
    assert not np.allclose(chunk.data, other.data)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [1, 2])
def test_caches_amount_to_one_pass_under_the_band_mask(folder: Path, form: str, given: int) -> None:
    """The queue overflows after the third chunk; a recomputation of all frames under the band mask agrees.

    No more prefix frames than a chunk has: of others the caches keep fewer than a recomputation sees (§11.5).
    """
    config = dataclasses.replace(FORMS[form], prefix_frames=min(FORMS[form].prefix_frames, 2))
    save(folder, "band", config)
    model = load(folder, "band")
    state = start(model, given=given, guidance=2.0)
    assert state.given is not None
    frames = [state.given.numpy(), *run(model, state, 6)]
    starts = [0] * given + [given + i // 2 * 2 for i in range(12)]
    for number, chunk in enumerate(frames[1:]):
        done = torch.from_numpy(np.concatenate(frames[: number + 1])).transpose(0, 1)[None]
        again = recomputed(model, state, done, number, starts)
        assert_near(again[0].transpose(0, 1).numpy(), chunk)


def recomputed(model: Ca2VDM, state: ClipState, done: Tensor, number: int, starts: Sequence[int]) -> Tensor:
    given = done.shape[2]
    mask = band_mask(starts[: given + 2], past=5)
    if model.config.causality == "partial":
        mask[given:, given:] = True

    def predict(x: Tensor, t: int) -> Tensor:
        return model.sampler.recompute(done, x, t, 0, state.stream.text, state.params.guidance, mask)

    def draw(index: int) -> Tensor:
        return normal((4, 2, 4, 6), seed=5, chunk=number, draw=index)[None]

    with torch.no_grad():
        return model.sampler.denoise(predict, draw)


def test_a_deterministic_sampler_draws_once(folder: Path) -> None:
    model = load(folder, "plain", method="ddim")
    a, b = start(model), start(model)
    assert np.array_equal(run(model, a, 2)[1], run(model, b, 2)[1])
    assert not np.allclose(run(model, a, 1)[0], run(load(folder, "plain"), start(model), 3)[2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((6, 4, 4, 6), np.float32), r"must be \[1..5, \(4, 4, 6\)\], got \[6, 4, 4, 6\]"),
        (np.zeros((1, 4, 4, 4), np.float32), r"got \[1, 4, 4, 4\]"),
        (np.zeros((1, 4, 4, 6), np.uint8), "finite floats, got uint8"),
        (np.full((1, 4, 4, 6), np.nan, np.float32), "finite floats"),
    ],
)
def test_wrong_first_frames(folder: Path, data: np.ndarray, message: str) -> None:
    model = load(folder, "plain")
    state = model.open(ClipParams(), 0)
    with pytest.raises(BadRequest, match=message):
        model.push(state, Chunk("first", data, 0, 1, len(data)))
    model.push(state, first())
    with pytest.raises(BadRequest, match="takes its first frames once"):
        model.push(state, first())


def test_wrong_controls(folder: Path) -> None:
    model = load(folder, "text")
    state = start(model)
    with pytest.raises(BadRequest, match="takes prompts, got a control of kind 'camera'"):
        model.control(state, Control(1, "camera", 1.0))
    with pytest.raises(BadRequest, match=r"must be \[1..5 valid tokens, 8\], got \(6, 8\)"):
        model.control(state, prompt(1, tokens=6))
    plain = load(folder, "plain")
    with pytest.raises(BadRequest, match="takes no control"):
        plain.control(start(plain), prompt(1))


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("plain", {"past": 1}, "past must hold a chunk of 2 frames, got 1"),
        ("plain", {"chunk": 0}, "chunk must be at least 1"),
        ("plain", {"steps": 1001}, r"steps must be 1..1000"),
        ("plain", {"perturb_t": 50}, "perturb_t 50 is no step of 3"),
        ("plain", {"method": "euler"}, "method must be one of ddpm, ddim"),
        ("plain", {"windw": 5}, "unknown parameter 'windw'"),
        ("rope", {"past": 6}, "must be the table's 7 positions, got 8"),
    ],
)
def test_wrong_options(folder: Path, form: str, options: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        load(folder, form, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"position": "absolute"}, "absolute positions end the stream"), ({"causality": "full"}, "both directions")],
)
def test_networks_that_cannot_stream(folder: Path, change: dict, message: str) -> None:
    save(folder, "other", dataclasses.replace(PLAIN, **change))
    with pytest.raises(BadRequest, match=message):
        load(folder, "other")


def test_new_layers_leave_a_checkpoint_as_it_was() -> None:
    """Prefix and temporal attention start at zero, the mask channel's merge at the identity (ca2vdm.md §7)."""
    block = CausalSTDiT2(PLAIN).blocks[0]
    for layer in (block.attn_temp, block.attn_cf):
        assert not layer.proj.weight.any()
    x = torch.randn(3, 25)
    torch.testing.assert_close(block.attn_temp_pre_merge(x), x[:, :24])


@pytest.mark.parametrize(("captions", "millions"), [(4096, 909.7), (0, 754.9)])
def test_the_released_size(captions: int, millions: float) -> None:
    """Parameters and bytes of XL/2, from shapes (ca2vdm.md §9, §10)."""
    config = dataclasses.replace(STDiTConfig(), caption_channels=captions)
    with torch.device("meta"):
        model = CausalSTDiT2(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    parts = clip_session(config, itemsize=2, frames=25)
    assert parts["temporal cache"] / 2**30 == 0.76904296875  # the paper's, whose cache has no room for the chunk
    assert (parts["temporal cache"] + parts["prefix cache"]) / 2**30 == 0.861328125


@pytest.mark.parametrize("form", ["plain", "text"])
def test_half_precision(folder: Path, form: str) -> None:
    model = load(folder, form, dtype="bfloat16")
    state = start(model, guidance=2.0)
    chunk = run(model, state, 4)[-1]
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()
    assert_twin_agrees(model, state, steps=3)


def test_the_bound_trains_the_variance_only() -> None:
    """Frames that were given carry no loss and get no gradient from it; the bound's means are detached."""
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 4, 2, 5, 3, 3)
    out = torch.randn(4, 4, 5, 3, 3, requires_grad=True)
    step, mask = torch.tensor([0, 5, 500, 999]), torch.tensor([[False, False, True, True, True]]).expand(4, -1)
    diffusion = IDDPM(1000)
    loss = diffusion.loss(x0, diffusion.q_sample(x0, step, noise), out, noise, step, mask)
    (gradient,) = torch.autograd.grad(loss.vb.sum(), out)
    assert not gradient[:, :2].any()
    assert gradient[:, 2:, 2:].abs().sum() > 0
    assert not gradient[:, :, :2].any()
    assert loss.total.shape == (4,)
    assert torch.isfinite(loss.total).all()


@pytest.mark.parametrize("form", ["plain", "rope"])
@pytest.mark.parametrize("given", [1, 4])
def test_calls_cost_what_the_count_says(folder: Path, form: str, given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on our network: a denoising call, a call without cache and, where nothing is shared, a write."""
    written_out = lambda q, k, v, mask, _: reference_attention(q, k, v, mask=mask)  # noqa: E731
    monkeypatch.setattr("riverrun.kernels.attention._sdpa", written_out)
    model = load(folder, form)
    config, sampler = model.config, model.sampler
    streams = [model.open(ClipParams(), 0).stream]
    past, x = torch.randn(1, 4, given, 4, 6), torch.randn(1, 4, 2, 4, 6)
    sampler.write(streams, past)
    with torch.no_grad():
        assert counted(lambda: sampler.predict(streams, x, 500)) == denoise_call(config, given, 2).total
        if not config.prefix_frames:  # clean frames see their own keys once, not P copies of them
            assert counted(lambda: sampler.write(streams, x)) == write_call(config, given, 2).total
            assert counted(lambda: sampler.recompute(past, x, 500)) == clip_call(config, given, 2).total


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
