"""InfiniteVGGT as a stage, on tiny random weights: what goes beyond the table of models."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from riverrun.kernels.policies import Full, smallest_total
from riverrun.models.base import BadRequest, Chunk, Corrupt, parse_params
from riverrun.models.geometry import metrics, poses
from riverrun.models.geometry.fitting import network_size
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.infinitevggt_state import InfiniteVGGTParams, InfiniteVGGTState
from riverrun.models.geometry.preprocess import prepare
from riverrun.models.geometry.sizes import geometry_session, infer_vggt
from riverrun.models.geometry.tracker import TrackConfig
from riverrun.models.geometry.vggt import RELEASED_BUDGET, VGGT, VGGTConfig, open_stream
from riverrun.models.inspect import inspect_checkpoint, render
from riverrun.models.weights import misfit
from riverrun.tests.models.table import GEOMETRY

TRACK = TrackConfig(features=8, iterations=1, levels=2, radius=1, hidden=16, depth=1, virtual=2)
TINY = dataclasses.replace(GEOMETRY, track=TRACK)
SIZE, INSIDE = (28, 42), (42, 56)  # of the frames, and in the network
TOKENS = TINY.tokens(*INSIDE)  # 17
BUDGET = smallest_total(TINY.depth, TOKENS)  # 269: five frames a layer
WINDOW = 6
OUTPUTS = ("image", "depth", "points", "camera", "confidence")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    model = VGGT(TINY)
    for name, parameter in model.named_parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
        if parameter.dim() == 1 and "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    save_file(model.state_dict(), folder / "vggt.safetensors")
    (folder / "vggt.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    return folder


def load(folder: Path, **options: object) -> InfiniteVGGT:
    return InfiniteVGGT(str(folder / "vggt.safetensors"), weights_config=str(folder / "vggt.json"), **options)


@pytest.fixture(scope="module")
def model(folder: Path) -> InfiniteVGGT:
    torch.set_num_threads(1)
    return load(folder)


def params(**values: object) -> InfiniteVGGTParams:
    given = {"height": SIZE[0], "width": SIZE[1], "total_budget": BUDGET, "camera_frames": 4} | values
    return parse_params(InfiniteVGGTParams, given)


def video(first: int, count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Chunk:
    """Frames `first`, ... of a video that never repeats."""
    draws = [np.random.default_rng([seed, t]) for t in range(first, first + count)]
    frames = [draw.integers(0, 256, (*size, 3), np.uint8) for draw in draws]
    return Chunk("frames", np.stack(frames), pts=9000 * first, frame_ticks=9000, frames=count, revision=first // 10)


def run(model: InfiniteVGGT, state: InfiniteVGGTState, first: int, count: int, seed: int = 0) -> list[list[Chunk]]:
    model.push(state, video(first, count, seed=seed))
    return [model.step([state])[0] for _ in range(count)]


def same(a: list[Chunk], b: list[Chunk]) -> bool:
    return all(np.array_equal(x.data, y.data) for x, y in zip(a, b, strict=True))


def test_names_and_shapes_are_the_released_checkpoint_s() -> None:
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in VGGT(VGGTConfig()).state_dict().items()}
    parts: Counter[str] = Counter()
    for name, shape in shapes.items():
        parts[name.split(".")[0]] += int(np.prod(shape))
    assert parts == {
        "aggregator": 909_112_320,
        "camera_head": 216_174_610,
        "point_head": 32_654_628,
        "depth_head": 32_654_562,
        "track_head": 65_941_396,
    }
    assert len(shapes) == 1797
    digest = hashlib.sha256("\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items())).encode())
    assert digest.hexdigest() == "7db43ba7e2e0d37113f4ae2223b57d53128f16177f8a7b1833fc7298198e7bb2"


def test_sizes_are_read_off_the_tensors(folder: Path) -> None:
    with torch.device("meta"):
        assert infer_vggt(VGGT(VGGTConfig()).state_dict()) == VGGTConfig(track=TrackConfig())
    tensors = load_file(folder / "vggt.safetensors")
    found = infer_vggt(tensors)
    with torch.device("meta"):
        assert not misfit({name: t.shape for name, t in VGGT(found).state_dict().items()}, tensors)
    session = geometry_session(VGGTConfig(), 392, 518, torch.bfloat16)
    assert session.parts["camera cache"] == 1024 * 4 * 4 * 2 * 2048 * 4
    slots = 1_200_000 + 24 * 1041
    assert 0 <= session.parts["token cache"] / (slots * 2 * 1024 * 2) - 1 < 2e-3  # a page a layer more


def test_models_check_knows_it(folder: Path) -> None:
    found = inspect_checkpoint(folder / "vggt.safetensors", 480, 640)
    assert (found.what, found.form, found.is_loadable, found.licence) == ("vggt", "original", True, None)
    assert found.session.parts.keys() == {"token cache", "camera cache"}
    assert "VGGT or StreamVGGT, 3 pairs of layers" in render(found)


def test_counts_and_clock(model: InfiniteVGGT) -> None:
    state = model.open(params(), 1)
    assert not model.ready(state)
    steps = run(model, state, 0, 3)
    assert not model.ready(state)
    for t, chunks in enumerate(steps):
        assert tuple(chunk.port for chunk in chunks) == OUTPUTS
        assert {(c.frames, c.first_frame, c.pts, c.frame_ticks) for c in chunks} == {(1, t, 9000 * t, 9000)}
        shapes = [chunk.data.shape for chunk in chunks]
        assert shapes == [(1, *INSIDE, 3), (1, *INSIDE), (1, *INSIDE, 3), (1, 9), (1, *INSIDE)]
        image, *values = (chunk.data for chunk in chunks)
        seen = prepare(video(t, 1).data[0], TINY.image).permute(1, 2, 0).numpy()
        assert np.abs(image[0] / 255 - seen).max() < 0.5 / 255 + 1e-6
        assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in values)
        assert (chunks[4].data > 1).all()
    assert run(model, state, 10, 1)[0][0].revision == 1
    description = model.describe(state.params)
    assert tuple(port.name for port in description.outputs) == OUTPUTS
    assert (description.chunk_frames, description.frame_shape) == (1, INSIDE)


def test_memory_and_cost_are_flat_over_twenty_windows(model: InfiniteVGGT) -> None:
    state = model.open(params(), 1)
    run(model, state, 0, WINDOW)
    held, seen = state.nbytes, set()
    assert held == model.describe(state.params).retained_bytes
    for t in range(WINDOW, 20 * WINDOW):
        run(model, state, t, 1)
        tokens, kept = state.stream.tokens, state.stream.poses
        assert state.nbytes == held
        assert sum(tokens.lengths) <= BUDGET
        assert kept.lengths == [16] * TINY.camera_depth or t < 4
        seen.add(tuple(tokens.lengths))
    assert len(seen) > 3  # rows moved between layers


def test_a_stream_not_begun_is_restored(model: InfiniteVGGT) -> None:
    open_size = params(height=None, width=None)
    state = model.open(open_size, 7)
    twin = model.restore(open_size, state.snapshot())
    assert (twin.stream, twin.size, twin.nbytes) == (None, None, 0)
    assert same(run(model, state, 0, 1)[0], run(model, twin, 0, 1)[0])
    again = model.restore(open_size, twin.snapshot())  # now the size is in it
    assert same(run(model, state, 1, 1)[0], run(model, again, 1, 1)[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"height": 14}, "its frames are"),
        ({"total_budget": BUDGET + 1}, "does not fit"),
        ({"camera_frames": 5}, "does not fit"),
    ],
)
def test_snapshot_of_other_parameters_is_corrupt(model: InfiniteVGGT, other: dict, message: str) -> None:
    state = model.open(params(), 1)
    run(model, state, 0, 1)
    with pytest.raises(Corrupt, match=message):
        model.restore(params(**other), state.snapshot())


def test_a_budget_too_small_for_the_anchors_is_refused_with_the_smallest_that_works(model: InfiniteVGGT) -> None:
    with pytest.raises(BadRequest, match=f"total_budget must be at least {BUDGET}, .* tokens, got {BUDGET - 1}"):
        model.open(params(total_budget=BUDGET - 1), 0)
    late = model.open(params(height=None, width=None, total_budget=BUDGET - 1), 0)
    with pytest.raises(BadRequest, match=f"at least {BUDGET}"):
        model.push(late, video(0, 1))


def test_the_released_default_holds_the_largest_frame() -> None:
    assert smallest_total(24, VGGTConfig().tokens(518, 518)) < RELEASED_BUDGET


def test_the_camera_s_bound_changes_nothing_before_it_is_reached(model: InfiniteVGGT) -> None:
    bounded, free = model.open(params(camera_frames=4), 0), model.open(params(camera_frames=100), 0)
    pairs = list(zip(run(model, bounded, 0, 8), run(model, free, 0, 8), strict=True))
    assert [np.array_equal(a[3].data, b[3].data) for a, b in pairs] == [True] * 4 + [False] * 4
    kept, whole = (state.stream.poses.slots("v", 0)[:, : state.stream.poses.lengths[0]] for state in (bounded, free))
    assert kept.shape[1] == 16
    assert torch.equal(kept[:, :4], whole[:, :4])  # the first frame stays


def test_points_from_depth_and_camera(model: InfiniteVGGT) -> None:
    _, depth, points, camera, confidence = run(model, model.open(params(points="depth"), 0), 0, 1)[0]
    head = run(model, model.open(params(), 0), 0, 1)[0]
    matrices = poses.matrices(torch.from_numpy(camera.data), *INSIDE)
    expected = poses.world_points(torch.from_numpy(depth.data), *matrices)
    torch.testing.assert_close(torch.from_numpy(points.data), expected.float())
    assert np.array_equal(camera.data, head[3].data)
    assert not np.array_equal(confidence.data, head[4].data)


def test_a_clip_at_once_equals_the_stream_s_tokens(model: InfiniteVGGT) -> None:
    images = torch.rand(5, 3, *INSIDE, generator=torch.Generator().manual_seed(0))
    network = model.model
    stream = open_stream(TINY, Full(5 * TOKENS), Full(20))
    wanted = range(TINY.depth)
    with torch.no_grad():
        clip = network.clip(images, wanted=wanted)
        frames = [network.frame(image, [stream], wanted=wanted) for image in images.split(1)]
    for layer in wanted:
        streamed = torch.cat([frame.pairs[layer] for frame in frames])
        torch.testing.assert_close(streamed, clip.pairs[layer], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([frame.depth for frame in frames]), clip.depth, atol=1e-5, rtol=1e-5)


def test_half_precision_runs_aggregator_and_cache_only(folder: Path) -> None:
    model = load(folder, dtype="bfloat16")
    state = model.open(params(), 0)
    chunks = run(model, state, 0, WINDOW + 2)[-1]
    assert (state.stream.tokens.k.dtype, state.stream.poses.k.dtype) == (torch.bfloat16, torch.float32)
    assert all(np.isfinite(chunk.data).all() for chunk in chunks)
    twin = model.restore(state.params, state.snapshot())
    assert same(run(model, state, 20, 1)[0], run(model, twin, 20, 1)[0])


def test_loading_is_strict_with_the_tracker_or_without(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "vggt.safetensors")
    (tmp_path / "vggt.json").write_text((folder / "vggt.json").read_text())

    def loaded(kept: dict[str, Tensor]) -> InfiniteVGGT:
        save_file(kept, tmp_path / "vggt.safetensors")
        return load(tmp_path)

    slim = loaded({name: t for name, t in tensors.items() if not name.startswith("track_head.")})
    assert not hasattr(slim.model, "track_head")
    assert not hasattr(load(folder).model, "track_head")
    half = {name: t for name, t in tensors.items() if not name.startswith("track_head.tracker.updateformer.")}
    with pytest.raises(BadRequest, match="missing: track_head"):
        loaded(half)
    with pytest.raises(BadRequest, match=r"1 unexpected: camera_head\.extra"):
        loaded(tensors | {"camera_head.extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": None}, "both or neither"),
        ({"camera_frames": 1}, "camera_frames must be 2"),
        ({"total_budget": -5}, "total_budget must be 1"),
        ({"total_budget": 10**12}, "total_budget must be 1"),
        ({"memory_frames": 4}, "the memory has one bound, got total_budget and memory_frames"),
        ({"total_budget": None, "memory_mb": 0.5}, "memory_mb must be 1"),
        ({"fit": "stretch"}, "fit must be one of crop, pad"),
        ({"points": "both"}, "points must be one of head, depth"),
        ({"memory": "all"}, "memory must be one of diverse_keys, sink_window, full"),
        ({"camera_memory": "diverse_keys"}, "camera_memory must be one of sink_window, full"),
        ({"budget": 5}, "unknown parameter 'budget'"),
    ],
)
def test_wrong_parameters(values: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        params(**values)


def test_wrong_inputs(model: InfiniteVGGT) -> None:
    state = model.open(params(), 0)
    with pytest.raises(BadRequest, match=r"takes uint8 \[T, H, W, 3\], got float32"):
        model.push(state, dataclasses.replace(video(0, 1), data=np.zeros((1, *SIZE, 3), np.float32)))
    with pytest.raises(BadRequest, match="takes a port 'frames', got 'text'"):
        model.push(state, dataclasses.replace(video(0, 1), port="text"))
    with pytest.raises(BadRequest, match="42 x 42 are 56 x 56 in the network, this stream's are 42 x 56 there"):
        model.push(state, video(0, 1, size=(42, 42)))
    with pytest.raises(BadRequest, match="too narrow"):
        model.open(params(height=2, width=100), 0)
    for fit in ("crop", "pad"):
        with pytest.raises(BadRequest, match="at most 64 to 1, got 1000 x 10"):
            model.open(params(height=1000, width=10, fit=fit), 0)
    with pytest.raises(BadRequest, match="sides above 0"):
        model.open(params(height=0, width=0), 0)
    assert not state.waiting


def test_the_memory_s_bound_in_frames_in_bytes_or_by_default(folder: Path) -> None:
    model = load(folder, memory_frames=7)
    rows = {
        "default": params(total_budget=None),
        "frames": params(total_budget=None, memory_frames=9),
        "bytes": params(total_budget=None, memory_mb=1.0),
    }
    found = {name: model.open(given, 0).stream.tokens.policy.total for name, given in rows.items()}
    row = 2 * TINY.dim * 4
    assert found == {"default": 7 * TINY.depth * TOKENS, "frames": 9 * TINY.depth * TOKENS, "bytes": 10**6 // row}
    assert load(folder)._budget(rows["default"], INSIDE) == RELEASED_BUDGET


def test_frames_of_another_size_go_on_where_they_look_alike_inside(model: InfiniteVGGT) -> None:
    state = model.open(params(), 0)
    run(model, state, 0, 1)
    model.push(state, video(1, 1, size=(56, 84)))
    assert model.step([state])[0][0].data.shape == (1, *INSIDE, 3)


@pytest.mark.parametrize("values", [{"memory": "full"}, {"camera_memory": "full"}])
def test_a_memory_that_forgets_nothing_says_when_it_is_full(model: InfiniteVGGT, values: dict) -> None:
    budget = 4 * TINY.depth * TOKENS + 5 if "memory" in values else 10 * BUDGET
    state = model.open(params(total_budget=budget, **values), 0)
    free = model.open(params(total_budget=10 * BUDGET, camera_frames=100), 0)
    assert same(*(run(model, s, 0, 3)[-1] for s in (state, free)))
    with pytest.raises(BadRequest, match="'full' holds 4 frames within its bound, this stream has 5"):
        run(model, state, 3, 2)
    run(model, state, 3, 1)
    twin = model.restore(state.params, state.snapshot())
    assert twin.stream.tokens.lengths == state.stream.tokens.lengths


def test_a_window_keeps_the_first_frame_and_the_newest(model: InfiniteVGGT) -> None:
    window, whole = (
        model.open(params(memory=memory, total_budget=frames * TINY.depth * TOKENS), 0)
        for memory, frames in (("sink_window", 3), ("full", 6))
    )
    for state in (window, whole):
        run(model, state, 0, 6)
    kept, rows = (state.stream.tokens.slots("v", 0) for state in (window, whole))
    assert window.stream.tokens.lengths == [3 * TOKENS] * TINY.depth
    assert torch.equal(kept[:, :TOKENS], rows[:, :TOKENS])
    assert torch.equal(kept[:, TOKENS : 3 * TOKENS], rows[:, 4 * TOKENS : 6 * TOKENS])  # layer 0 has seen no past
    with pytest.raises(BadRequest, match=f"at least {2 * TINY.depth * TOKENS}"):
        model.open(params(memory="sink_window", total_budget=2 * TINY.depth * TOKENS - 1), 0)


def test_sizes_in_the_network() -> None:
    assert network_size(480, 640) == (392, 518)
    assert network_size(640, 480) == (518, 518)
    assert network_size(480, 832) == (294, 518)
    assert network_size(480, 640, fit="pad") == (518, 518)
    pixels = np.zeros((20, 30, 3), np.uint8)
    assert prepare(pixels, side=56).shape == (3, 42, 56)
    padded = prepare(Image.fromarray(pixels), side=56, fit="pad")
    assert padded.shape == (3, 56, 56)
    assert padded[:, :7].min() == 1
    assert padded[:, 7:49].max() == 0


def test_errors_of_a_path_ignore_its_scale_and_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(12, 9, generator=generator, dtype=torch.float64) + 0.1
    truth = poses.camera_to_world(poses.matrices(draw, 10, 10)[0])
    assert max(dataclasses.astuple(metrics.trajectory_errors(truth, truth))) < 1e-6
    other = metrics.Similarity(truth[3, :3, :3], torch.tensor([1.0, 2, 3], dtype=torch.float64), 0.5)
    assert max(dataclasses.astuple(metrics.trajectory_errors(other.poses(truth), truth))) < 1e-6
    still = truth[:1].expand(12, -1, -1)
    with pytest.raises(BadRequest, match="can't be aligned"):
        metrics.trajectory_errors(still, truth)


def test_nearest_in_blocks() -> None:
    a, b = torch.rand(37, 3, dtype=torch.float64), torch.rand(50, 3, dtype=torch.float64)
    (far, at), (far_blocks, at_blocks) = metrics.nearest(a, b), metrics.nearest(a, b, block=100)
    assert torch.equal(far, far_blocks)
    assert torch.equal(at, at_blocks)
    assert metrics.completion_ratio(a, a, within=1e-9) == 1.0
    with pytest.raises(BadRequest, match="no pixel"):
        metrics.depth_errors(torch.ones(2, 2), torch.zeros(2, 2))
