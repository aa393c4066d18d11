"""InfVSR as a stage, and its parts, on tiny random weights: what goes beyond the table of models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from riverrun.kernels.histories import Histories
from riverrun.kernels.shared import TextEntry
from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Snapshot
from riverrun.models.state import Waiting, frames_of
from riverrun.models.super_resolution.guidance import VisualGuidance, merge_dape
from riverrun.models.super_resolution.infvsr import INFVSR_DIT, InfVSR
from riverrun.models.super_resolution.infvsr_state import InfVSRParams, InfVSRState
from riverrun.models.super_resolution.restorer import Restorer
from riverrun.models.super_resolution.scenes import CutFilter, SceneSplitter, difference, hsv
from riverrun.models.super_resolution.swin import SWIN_L, SwinConfig
from riverrun.models.super_resolution.tiles import TiledVAE, Tiling
from riverrun.models.wan.dit import WanConfig, WanModel
from riverrun.models.wan.stream import TextMemories
from riverrun.models.wan.vae import VAEConfig, WanVAE
from riverrun.tests.parity.infvsr import BandMemory

SWIN = SwinConfig(img_size=16, patch_size=4, embed_dim=4, depths=(2, 1), num_heads=(1, 2), window_size=2)
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
SIZE = (10, 14)  # enlarged: 40 x 56, padded: 48 x 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    parts: dict[str, tuple[torch.nn.Module, Any]]
    parts = {"dit": (WanModel(DIT), DIT), "vae": (WanVAE(VAE), VAE), "swin": (VisualGuidance(SWIN, 8), SWIN)}
    for name, (module, sizes) in parts.items():
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)  # no bias or table stays zero
        save_file(module.state_dict(), folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(sizes)))
    return folder


def load(folder: Path, **options: object) -> InfVSR:
    files = {"weights": "dit", "vae": "vae", "guidance": "swin"}
    paths = {arg: str(folder / f"{name}.safetensors") for arg, name in files.items()}
    configs = {f"{arg}_config": str(folder / f"{name}.json") for arg, name in files.items()}
    return InfVSR(**paths, **configs, **({"height": SIZE[0], "width": SIZE[1]} | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(folder: Path) -> InfVSR:
    torch.set_num_threads(1)
    return load(folder)


def video(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that drifts slowly: no cut in it. uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(seed)
    base, drift = rng.integers(60, 180, (*size, 3)), rng.normal(0, 0.4, (*size, 3))
    return np.stack([base + 20 * np.sin(drift * i / 3) for i in range(count)]).clip(0, 255).astype(np.uint8)


def chunk_of(frames: np.ndarray, first: int = 0, revision: int = 0) -> Chunk:
    return Chunk("frames", frames, pts=1000 + first * 5625, frame_ticks=5625, frames=len(frames), revision=revision)


def feed(model: InfVSR, state: InfVSRState, frames: np.ndarray, first: int = 0, by: int = 4) -> list[Chunk]:
    """Pushes a few frames at a time, and steps whenever that is possible, as a runner does."""
    made = []
    for at in range(0, len(frames), by):
        model.push(state, chunk_of(frames[at : at + by], first + at))
        while model.ready(state):
            made += model.step([state])[0]
    return made


def opened(model: InfVSR, **params: object) -> InfVSRState:
    return model.open(InfVSRParams(**params), 5)  # type: ignore[arg-type]


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def as_stored(snapshot: Snapshot) -> Snapshot:
    """What a store makes of it."""
    return Snapshot(json.loads(json.dumps(snapshot.meta)), snapshot.tensors)


# -- the stage -----------------------------------------------------------------------------------------------


def test_counts_and_clock(model: InfVSR) -> None:
    state = opened(model)
    description = model.describe(state.params)
    assert (description.first_frames, description.chunk_frames, description.frame_shape) == (9, 12, (40, 56))
    assert description.latency_frames == 24
    for seen in range(24):
        assert not model.ready(state)
        model.push(state, chunk_of(video(40)[seen : seen + 1], seen))
    assert model.ready(state)
    chunks = model.step([state])[0] + feed(model, state, video(40)[24:], 24) + model.finish(state)
    assert [chunk.frames for chunk in chunks] == [9, 12, 12, 7]
    assert [chunk.first_frame for chunk in chunks] == [0, 9, 21, 33]
    assert [chunk.pts for chunk in chunks] == [1000 + first * 5625 for first in (0, 9, 21, 33)]
    assert {chunk.frame_ticks for chunk in chunks} == {5625}
    assert chunks[1].data.shape == (12, 40, 56, 3)
    assert chunks[1].data.dtype == np.uint8
    assert chunks[1].data.flags.c_contiguous


@pytest.mark.parametrize("count", [1, 4, 9, 10, 21, 30])
@pytest.mark.parametrize("find_scenes", [True, False])
def test_every_frame_comes_out(model: InfVSR, count: int, find_scenes: bool) -> None:
    state = opened(model, find_scenes=find_scenes)
    chunks = feed(model, state, video(count)) + model.finish(state)
    assert sum(chunk.frames for chunk in chunks) == count
    assert model.finish(state) == []


def test_without_scenes_nothing_waits(model: InfVSR) -> None:
    state = opened(model, find_scenes=False)
    assert model.describe(state.params).latency_frames == 9
    assert [c.frames for c in feed(model, state, video(33), by=1)] == [9, 12, 12]
    assert not state.splitter.waiting


def test_how_frames_arrive_changes_nothing(model: InfVSR) -> None:
    one, other = opened(model), opened(model)
    frames = np.concatenate([video(30), video(30, seed=9)])
    for a, b in zip(feed(model, one, frames, by=1), feed(model, other, frames, by=12), strict=True):
        assert np.array_equal(a.data, b.data)


def test_a_cut_forgets_what_was_before(model: InfVSR) -> None:
    """After a cut the stream is, bit for bit, a stream that begins there."""
    dark, light = video(33) // 4, 255 - video(40, seed=3) // 4
    state, fresh = opened(model), opened(model)
    chunks = feed(model, state, np.concatenate([dark, light])) + model.finish(state)
    assert [chunk.frames for chunk in chunks] == [9, 12, 12, 9, 12, 12, 7]
    for a, b in zip(chunks[3:], feed(model, fresh, light) + model.finish(fresh), strict=True):
        assert np.array_equal(a.data, b.data)


def test_a_new_size_is_a_new_scene(model: InfVSR) -> None:
    state, fresh = opened(model), opened(model)
    small = video(25, size=(8, 9))
    chunks = feed(model, state, video(14)) + feed(model, state, small) + model.finish(state)
    assert [chunk.data.shape[:3] for chunk in chunks] == [
        (9, 40, 56),
        (5, 40, 56),
        (9, 32, 36),
        (12, 32, 36),
        (4, 32, 36),
    ]
    alone = feed(model, fresh, small) + model.finish(fresh)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(chunks[2:], alone, strict=True))


def test_a_control_that_begins_a_scene_takes_hold_at_the_next_chunk(model: InfVSR) -> None:
    state = opened(model, find_scenes=False)
    feed(model, state, video(21))
    model.control(state, Control(7, "parameters", {"new_scene": True}))
    (chunk,) = feed(model, state, video(9, seed=2))
    assert (chunk.frames, chunk.revision) == (9, 7)
    fresh = opened(model, find_scenes=False)
    assert np.array_equal(chunk.data, feed(model, fresh, video(9, seed=2))[0].data)


def test_after_a_flush_a_new_scene_begins(model: InfVSR) -> None:
    state, fresh = opened(model), opened(model)
    feed(model, state, video(30))
    model.finish(state)
    again = feed(model, state, video(30, seed=2))
    assert [chunk.first_frame for chunk in again] == [30]
    assert np.array_equal(again[0].data, feed(model, fresh, video(30, seed=2))[0].data)


def test_revisions_of_the_input_go_on(model: InfVSR) -> None:
    state = opened(model, find_scenes=False)
    model.push(state, chunk_of(video(9), revision=3))
    assert model.step([state])[0][0].revision == 3


@pytest.mark.parametrize("find_scenes", [True, False])
def test_a_switch_of_who_makes_the_frames_begins_a_scene(model: InfVSR, find_scenes: bool) -> None:
    """Whatever they look like: from there on it is, bit for bit, a stream that begins there, new reference and all."""
    state, fresh = opened(model, find_scenes=find_scenes), opened(model, find_scenes=find_scenes)
    before, after = video(14), video(28)  # the same picture, and so no cut
    for at, revision in ((0, 0), (7, 0)):
        model.push(state, chunk_of(before[at : at + 7], at, revision))
    model.push(state, chunk_of(after[:10], 14, revision=2))
    model.push(state, chunk_of(after[10:], 24, revision=2))
    chunks = []
    while model.ready(state):
        chunks += model.step([state])[0]
    chunks += model.finish(state)
    assert [(chunk.frames, chunk.revision) for chunk in chunks] == [(9, 0), (5, 0), (9, 2), (12, 2), (7, 2)]
    alone = feed(model, fresh, after) + model.finish(fresh)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(chunks[2:], alone, strict=True))


def test_a_switch_is_forced_on_a_replay_like_a_cut(model: InfVSR) -> None:
    inputs = [chunk_of(frame[None], n, revision=n // 20) for n, frame in enumerate(np.concatenate([video(20)] * 2))]
    decided: list[Any] = []

    def played(forced: list[Any]) -> list[int]:
        """As a stage does it: a step takes an input, or goes on with what lies there; lengths of the chunks."""
        state, coming, made = opened(model), iter(inputs), list[Chunk]()
        for at in range(2 * len(inputs)):
            chunk = None if model.ready(state) else next(coming, None)
            if chunk is None and not model.ready(state):
                break
            if forced:
                model.force(state, as_json(forced[at]))
            if chunk is not None:
                model.push(state, chunk)
            if model.ready(state):
                made += model.step([state])[0]
            if not forced:
                decided.append(model.decisions(state))
        return [chunk.frames for chunk in made + model.finish(state)]

    assert played([]) == played(list(decided)) == [9, 11, 9, 11]


def test_frames_keep_their_own_times(model: InfVSR) -> None:
    times = tuple(int(t) for t in np.cumsum(np.random.default_rng(0).integers(100, 9000, 25)))
    state, made = opened(model, find_scenes=False), []
    for n, frame in enumerate(video(25)):
        model.push(state, Chunk("frames", frame[None], times[n], times[n] - times[n - 1] if n else 5625, 1))
        while model.ready(state):
            made += model.step([state])[0]
    made += model.finish(state)
    assert tuple(chunk.time_of(i) for chunk in made for i in range(chunk.frames)) == times
    model.push(opened(model), dataclasses.replace(made[0], data=video(9)))  # and on into another stage
    assert [f.pts for f in frames_of(dataclasses.replace(made[0], data=video(9)))] == list(times[:9])


def test_memory_is_flat_and_as_described(model: InfVSR) -> None:
    state, held = opened(model), []
    stated, frames = model.describe(state.params).retained_bytes, video(12 * 41)  # twenty windows of two chunks
    for at in range(0, len(frames), 12):
        feed(model, state, frames[at : at + 12], at, by=12)
        held.append(state.nbytes)
    assert max(held) == max(held[4:8]) <= stated
    assert stated - max(held) < 26 * frames[0].nbytes, "but for frames that may wait and don't"


def test_restored_stream_is_bit_equal_over_a_full_window(model: InfVSR) -> None:
    state = opened(model)
    frames = np.concatenate([video(41), 255 - video(60, seed=4)])
    feed(model, state, frames[:41], by=1)
    assert state.splitter.waiting
    snapshot = as_stored(state.snapshot())
    twin = model.restore(state.params, snapshot)
    for poisoned in snapshot.tensors.values():
        poisoned.fill(99)  # the restored state must own its memory
    one = feed(model, state, frames[41:], 41) + model.finish(state)
    two = feed(model, twin, frames[41:], 41) + model.finish(twin)
    assert [dataclasses.replace(c, data=None) for c in one] == [dataclasses.replace(c, data=None) for c in two]
    assert len(one) > 4
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one, two, strict=True))


def test_half_precision_runs_and_is_restored(folder: Path) -> None:
    half, full = load(folder, dtype="bfloat16"), load(folder)
    state, exact = opened(half), opened(full)
    made, expected = feed(half, state, video(40)), feed(full, exact, video(40))
    apart = np.abs(made[0].data.astype(int) - expected[0].data)
    assert apart.mean() < 8, "levels of 255"
    assert state.nbytes < exact.nbytes / 1.8
    assert state.nbytes <= half.describe(state.params).retained_bytes
    twin = half.restore(state.params, as_stored(state.snapshot()))
    one, two = (feed(half, each, video(12), 40)[0].data for each in (state, twin))
    assert np.array_equal(one, two)


def test_wrong_snapshots(model: InfVSR, folder: Path) -> None:
    state = opened(model)
    feed(model, state, video(40))
    snapshot = state.snapshot()
    with pytest.raises(Corrupt, match=r"capacity=72.*capacity=108"):
        load(folder, previous=2).restore(state.params, snapshot)
    with pytest.raises(Corrupt, match=r"its VAE tiles are \['0,0'\], this model's"):
        load(folder, tile_above=16, tile_size=4, tile_stride=3).restore(state.params, snapshot)


def test_unequal_chunks_share_no_step(model: InfVSR) -> None:
    first, other, small = (opened(model, find_scenes=False) for _ in range(3))
    feed(model, other, video(9))
    assert model.batch_key(first) is None
    model.push(first, chunk_of(video(9)))
    model.push(other, chunk_of(video(12)))
    model.push(small, chunk_of(video(9, size=(3, 3))))
    assert model.batch_key(first) == model.batch_key(other), "3 latent frames both"
    assert model.batch_key(first) != model.batch_key(small)
    model.step([first, other])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (video(2).astype(np.float32), r"takes uint8 \[T, H, W, 3\], got float32 \[2, 10, 14, 3\]"),
        (video(2)[..., :2], r"got uint8 \[2, 10, 14, 2\]"),
        (video(2).tolist(), "got list"),
        (video(2, size=(40, 40)), "takes frames as large as 10 x 14, got 40 x 40"),
        (np.zeros((1, 0, 4, 3), np.uint8), "got 0 x 4"),
    ],
)
def test_wrong_frames(model: InfVSR, data: object, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        model.push(opened(model), Chunk("frames", data, 0, 5625, 2))


def test_wrong_params_controls_and_steps(model: InfVSR) -> None:
    with pytest.raises(BadRequest, match="at most 130560 pixels a frame here, got 1000 x 1000"):
        opened(model, height=1000, width=1000)
    with pytest.raises(BadRequest, match="must be at least 1, got 0 x 14"):
        opened(model, height=0)
    state = opened(model)
    with pytest.raises(BadRequest, match="takes parameters, got a control of kind 'prompt'"):
        model.control(state, Control(1, "prompt", "x"))
    for value in (None, {"new_scene": False}, {"new_scene": True, "scale": 2}):
        with pytest.raises(BadRequest, match=r"can change while it runs: new_scene \(true\), got"):
            model.control(state, Control(1, "parameters", value))
    with pytest.raises(BadRequest, match=r"1 session.s. wait for more frames"):
        model.step([state])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"previous": 0}, "previous must be at least 1, got 0"),
        ({"tile_stride": 0}, r"tile_stride must lie in 1..128 \(tile_size\), got 0"),
        ({"fps": 0}, "fps must be above 0, got 0"),
        ({"sigm": 0.5}, "unknown parameter 'sigm'"),
        ({"dtype": "bf16"}, "dtype must be one of"),
    ],
)
def test_wrong_options(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        load(folder, **options)


# -- chunk by chunk is the whole stream ------------------------------------------------------------------------


def whole(model: InfVSR, frames: np.ndarray, chunks: list[int], previous: int) -> Tensor:
    """Restored latents (1, F, C, h, w) of all frames at once: whole-clip encoder, transformer under the band mask."""
    levels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    z = model.vae.encode_clip(model._enlarged(levels * 2 - 1, is_first=True)[None])
    context = model.guidance(levels[:1])
    text = TextMemories([TextEntry(*model.model.text_keys_values(model.model.embed_text(context)))])
    band = BandMemory(model.model.config, chunks, (z.shape[3] // 2, z.shape[4] // 2), previous)
    times = torch.full(z.shape[:2], model.options.timestep)
    flow = model.model(z.transpose(1, 2), times, band, text).transpose(1, 2)
    return z - model.options.sigma * flow


@torch.no_grad()
@pytest.mark.parametrize("previous", [1, 2])
def test_chunk_by_chunk_is_the_whole_stream(folder: Path, previous: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage against one pass over the whole video, over eleven windows of previous + 1 chunks."""
    model = load(folder, previous=previous)
    count = 11 * (previous + 1)
    frames = video(9 + 12 * (count - 1))
    latents: list[Tensor] = []
    pixels: list[Tensor] = []

    def decode(state: InfVSRState, clean: Tensor, length: int) -> Tensor:
        latents.append(clean)
        pixels.append(plain(state, clean, length))
        return pixels[-1]

    plain = model._decode
    monkeypatch.setattr(model, "_decode", decode)
    feed(model, opened(model, find_scenes=False), frames, by=12)
    expected = whole(model, frames, [3] * count, previous)
    torch.testing.assert_close(torch.cat(latents, dim=1), expected, atol=1e-5, rtol=0)
    # This random decoder of three channels makes 3e-4 of a rounding error of 1e-6 in a latent.
    decoded = model.vae.decode_clip(expected)[0, :, :, :40, :56].clamp(-1, 1)
    torch.testing.assert_close(torch.cat(pixels), decoded, atol=1e-3, rtol=0)
    other = whole(model, frames, [3] * count, previous + 1)
    assert (expected - other).abs().max() > 1e-4, "the mask must matter"


@torch.no_grad()
@pytest.mark.parametrize("previous", [1, 3])
def test_uneven_chunks(folder: Path, previous: int) -> None:
    model = load(folder).model
    sizes = [3, 1, 2, 3, 3, 2, 1, 1, 3, 2]
    z, context = torch.randn(1, sum(sizes), 4, 4, 6), torch.randn(1, 5, 8)
    entry = TextEntry(*model.text_keys_values(model.embed_text(context)))
    restorer = Restorer(model, previous=previous)
    scene = restorer.open(z.shape[-2:])
    flows = [restorer.call([scene], [entry], part)[1] for part in z.split(sizes, dim=1)]
    band = BandMemory(model.config, sizes, (2, 3), previous)
    expected = model(z.transpose(1, 2), torch.full(z.shape[:2], 400.0), band, TextMemories([entry])).transpose(1, 2)
    torch.testing.assert_close(torch.cat(flows, dim=1), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at most 3 latent frames, got 4"):
        restorer.call([scene], [entry], z[:, :4])


# -- parts -----------------------------------------------------------------------------------------------------


def test_released_sizes() -> None:
    """Parameters of the transformer and the trunk as published, without allocating them."""
    with torch.device("meta"):
        dit = WanModel(INFVSR_DIT).to(torch.bfloat16)
        tensors = dit.state_dict()
        trunk = VisualGuidance(SWIN_L)
    assert len(tensors) == 825
    assert tensors["text_embedding.0.weight"].shape == (1536, 512)
    assert sum(t.numel() for t in tensors.values()) == 1_413_491_776
    assert trunk.tokens == INFVSR_DIT.text_len == 145
    names = trunk.state_dict()
    assert names["visual_encoder.layers.2.blocks.17.attn.relative_position_bias_table"].shape == (529, 24)
    assert names["visual_encoder.layers.2.downsample.reduction.weight"].shape == (1536, 3072)
    assert names["image_proj.weight"].shape == (512, 1536)
    cache = Restorer(dit).open((60, 104)).cache  # 480 x 832 pixels
    assert cache.spec.page * 3 == 4680
    assert round(cache.nbytes / 2 / 2**20) == 823, "a chunk; there is room for the current one too"


def test_hsv_of_known_colours() -> None:
    colours = {(255, 0, 0): (0, 255, 255), (0, 255, 0): (60, 255, 255), (0, 0, 255): (120, 255, 255)}
    colours |= {
        (255, 0, 10): (179, 255, 255),
        (128, 128, 128): (0, 0, 128),
        (0, 0, 0): (0, 0, 0),
        (200, 100, 50): (10, 191, 200),
    }
    for rgb, expected in colours.items():
        assert tuple(int(v) for v in hsv(np.array(rgb, np.uint8))) == expected
    black, red = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), (0, 255, 255), np.uint8)
    assert difference(black, red) == 170.0


def test_flicker_after_a_cut_is_merged_into_one_late_cut() -> None:
    filter, found = CutFilter(), []
    above = {5, 20, 30, 40, 46}
    for frame in range(80):
        cut = filter.cut(frame, frame in above)
        found += [] if cut is None else [(frame, cut)]
    assert found == [(20, 20), (61, 46)], "5 is too early; 30, 40 and 46 become one"


def test_a_stale_reference_is_replaced_without_a_cut() -> None:
    splitter = SceneSplitter(60.0, 20.0)
    for number in range(60):
        splitter.add(Waiting(np.full((4, 4, 3), 2 * number, np.uint8), number, 1, 0))
    splitter.cut()
    plan = []
    while chunk := splitter.take():
        plan.append((len(chunk.frames), chunk.is_new_scene, chunk.is_new_reference))
    assert plan == [
        (9, True, True),
        (12, False, False),
        (12, False, False),
        (12, False, True),
        (12, False, False),
        (3, False, False),
    ]


@pytest.mark.parametrize(
    ("height", "width", "tiles"),
    [
        (128, 999, ["0,0"]),  # 1024 pixels: the height alone decides
        (136, 240, ["0,0", "0,110", "0,220", "110,0", "110,110", "110,220"]),
        (136, 238, ["0,0", "0,110", "110,0", "110,110"]),  # 110 + 128 is the end
    ],
)
def test_tiles(height: int, width: int, tiles: list[str]) -> None:
    assert [tile.name for tile in Tiling().tiles(height, width, 8)] == tiles


@torch.no_grad()
def test_tiles_blend_and_stream(folder: Path) -> None:
    """In tiles nearly what is seen at once, and in chunks exactly what is seen in one call."""
    vae = load(folder).vae
    pixels = torch.rand(1, 9, 3, 64, 96) * 2 - 1
    plain, tiled = TiledVAE(vae, Tiling()), TiledVAE(vae, Tiling(32, size=6, stride=4))
    latents = plain.encode(pixels, plain.open(64, 96))
    assert torch.allclose(latents, vae.encode(pixels, Histories()), atol=1e-6)
    histories = tiled.open(64, 96)
    assert len(histories) == 2 * 3
    decoded = tiled.decode(latents, histories)
    again = tiled.open(64, 96)
    split = torch.cat([tiled.decode(part, again) for part in latents.split(1, dim=1)], dim=1)
    assert torch.equal(split, decoded)
    smooth = TiledVAE(vae, Tiling(32, size=8, stride=8))  # tiles that don't overlap meet at an edge
    assert smooth.decode(latents, smooth.open(64, 96)).shape == decoded.shape == pixels.shape


def test_in_tiles_the_stage_holds_what_it_says(folder: Path) -> None:
    model = load(folder, tile_above=16, tile_size=4, tile_stride=3)
    state = opened(model)
    chunks = feed(model, state, video(60))
    assert chunks[-1].data.shape == (12, 40, 56, 3)
    assert len(state.histories) == 2 * 3
    assert state.nbytes <= model.describe(state.params).retained_bytes
    twin = model.restore(state.params, as_stored(state.snapshot()))
    one, two = (feed(model, each, video(30, seed=2), 60) for each in (state, twin))
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one, two, strict=True))


def test_wrong_adapters_and_sizes() -> None:
    weights = {"a.qkv.weight": torch.zeros(12, 4)}
    pair = {"a.qkv.lora_A": torch.ones(4, 4), "a.qkv.lora_B": torch.ones(8, 2)}
    assert merge_dape(weights, pair)["a.qkv.weight"].sum(1).tolist() == [1.0] * 4 + [0.0] * 4 + [1.0] * 4
    with pytest.raises(BadRequest, match=r"1 tensors of the adapter have no other half: a\.qkv\.lora_B"):
        merge_dape(weights, {"a.qkv.lora_A": torch.ones(4, 4)})
    with pytest.raises(BadRequest, match=r"changes 1 layers that aren't there: a\.qkv"):
        merge_dape({}, pair)
    with pytest.raises(BadRequest, match=r"a.qkv: \(12, 4\) takes no \(4, 4\) \(8, 3\)"):
        merge_dape(weights, pair | {"a.qkv.lora_B": torch.ones(8, 3)})
    with pytest.raises(ValueError, match="stage 0 has a grid of side 6, no multiple of its window 4"):
        SwinConfig(24, patch_size=4, embed_dim=4, depths=(1,), num_heads=(1,), window_size=4)
    with pytest.raises(ValueError, match=r"stride must lie in 1\.\.3"):
        Tiling(size=3, stride=4)
