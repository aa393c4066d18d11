import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from riverrun.bench import (
    geometry_camera,
    geometry_drift,
    geometry_pairs,
    geometry_paths,
    geometry_quality,
    geometry_speed,
    geometry_world,
    long3d,
)
from riverrun.bench.adherence import held_out_scenes
from riverrun.bench.geometry_paths import PATHS, pieces, whole
from riverrun.bench.geometry_watch import stream_of, watch
from riverrun.models.base import BadRequest
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.vggt import VGGT
from riverrun.train.export import write
from riverrun.train.geometry_flat import turning
from riverrun.train.geometry_frames import Batch
from riverrun.train.geometry_measure import score
from riverrun.train.geometry_start import TINY, initialise
from riverrun.train.world import render

SMALL = dataclasses.replace(
    TINY, image=56, depth=2, dino_depth=1, dpt_features=8, dpt_channels=(8, 8, 8, 8), dpt_layers=(0, 0, 1, 1)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = VGGT(SMALL)
    initialise(network)
    write(network.state_dict(), dataclasses.asdict(SMALL), folder / "vggt")
    assert json.loads((folder / "vggt.json").read_text())["image"] == 56
    return InfiniteVGGT(str(folder / "vggt.safetensors"), weights_config=str(folder / "vggt.json"))


@pytest.mark.parametrize("path", PATHS)
def test_a_path_may_be_entered_anywhere(path, monkeypatch):
    monkeypatch.setattr(geometry_paths, "PIECE", 4)
    through = whole(path, 3, 8, 32)
    late = next(pieces(path, 3, 4, 32, first=4))
    assert torch.equal(through.frames[4:], late.frames)
    assert torch.equal(through.poses[4:], late.poses)
    assert through.depth.isfinite().float().mean() > 0.3


def test_the_path_that_revisits_comes_back_and_the_other_never_does():
    back = next(pieces("revisits", 1, 1, 32, first=geometry_paths.ROUND))
    assert torch.allclose(back.poses, whole("revisits", 1, 1, 32).poses, atol=1e-4)
    assert next(pieces("walks on", 1, 1, 32, first=9000)).poses[0, 0, 3] > 500
    assert next(pieces("walks on", 1, 1, 32, first=9000)).depth.isfinite().any()


def test_the_truth_scores_perfectly_and_answers_without_a_network_do_not(model):
    truth = whole("revisits", 0, 20, 56)
    said = watch(model, [truth], stream_of(model, "sink_window", 4))
    home = torch.linalg.inv(truth.poses[0])
    true = torch.where(truth.depth.isfinite(), truth.depth, 0.0)
    points = geometry_quality.moved(geometry_quality.unprojected(true), home @ truth.poses) / 3
    perfect = dataclasses.replace(said, points=points)
    found = geometry_quality.reconstruction(perfect, truth, scale=3.0)
    assert found["accuracy"] < 0.05
    assert found["completion"] < 0.05
    assert found["accuracy_chance"] > 2 * found["accuracy"]


def test_the_bare_floor_is_the_floor(model):
    truth = whole("orbit left", 0, 1, 56)
    plane = geometry_quality.floor_plane(56)
    bottom = (plane[-4:] / truth.depth[0, -4:]).median()
    assert bottom.item() == pytest.approx(1, abs=0.1)


def test_a_ratio_is_that_of_the_means(model, monkeypatch):
    monkeypatch.setattr(geometry_quality, "mean_map", lambda side: torch.ones(side, side))
    monkeypatch.setattr(geometry_quality, "QUALITY_PATHS", ("orbit left", "in and out"))
    orbit, dolly, together = geometry_quality.quality(model, 1, 10)
    assert orbit["rotation_still"] == pytest.approx(12, abs=0.1)
    turned = orbit["rotation"] + dolly["rotation"]
    assert together["rotation_ratio"] == pytest.approx(turned / (orbit["rotation_still"] + dolly["rotation_still"]))
    assert together["constant"] == pytest.approx((orbit["constant"] + dolly["constant"]) / 2)
    assert dolly["abs_rel"] > 0


def test_pairs_stand_beside_strangers(model, monkeypatch):
    turn = torch.eye(4)[:3].repeat(4, 2, 1, 1)
    turn[:, 1, :, :3] = turning(torch.full((4,), 0.2), torch.zeros(4), torch.zeros(4))
    batch = Batch(torch.rand(4, 2, 3, 56, 56), turn)
    seen = []
    monkeypatch.setattr(geometry_pairs, "_batches", lambda side, scenes: iter([("turns", batch)]))
    monkeypatch.setattr(geometry_pairs, "score", lambda network, shown: seen.append(shown) or score(network, shown))
    (row,) = geometry_pairs.pairs(model, 4)
    assert row["rotation_still"] == pytest.approx(math.degrees(0.2), rel=1e-3)
    assert row["translation_ratio"] is None  # nothing moves
    assert torch.equal(seen[1].images[1], torch.stack([batch.images[1, 0], batch.images[0, 1]]))


def test_a_path_is_compared_with_the_one_asked_for():
    scene = held_out_scenes(1)[0]
    left, right = (render(dataclasses.replace(scene, camera=dataclasses.replace(scene.camera, motion=motion)), 24, 8, 8)
                   .camera_to_world for motion in ("orbit left", "orbit right"))  # fmt: skip
    assert geometry_world._turned(left, left) == pytest.approx(12, abs=0.1)  # 1.5 degrees a frame, 8 frames
    assert geometry_world._turned(right, left) == pytest.approx(-12, abs=0.1)
    assert geometry_world._direction(left, left) == pytest.approx(0, abs=1)
    assert geometry_world._direction(right, left) > 150


@pytest.mark.parametrize("memory", ["diverse_keys", "sink_window"])
def test_rows_stay_within_the_budget(model, memory):
    stream = stream_of(model, memory, 9)
    said = watch(model, pieces("walks on", 0, 24, 56), stream, every=8)
    assert said.most <= 9 * SMALL.depth * SMALL.tokens(56, 56)
    assert said.kept.tolist() == [0, 8, 16]
    assert said.poses.shape == (24, 4, 4)


def test_drift_marks_every_policy_and_goes_on_from_its_file(model, monkeypatch, tmp_path):
    monkeypatch.setattr(geometry_drift, "mean_map", lambda side: torch.ones(56, 56))
    monkeypatch.setattr(geometry_drift, "LATE", 20)
    found = geometry_drift.drift(model, (20, 40), tmp_path / "rows")
    assert {(row["path"], row["policy"], row["frames"]) for row in found["drift"]} == {
        (path, policy, mark) for path in geometry_drift.DRIFT_PATHS for policy in geometry_drift.POLICIES
        for mark in (20, 40)
    }  # fmt: skip
    assert all(np.isfinite(row["abs_rel"]) and row["accuracy_chance"] > 0 for row in found["drift"])
    assert [row["windows"] for row in found["differences"]] == [2] * 6
    first, *_ = (tmp_path / "rows").read_text().splitlines()
    (tmp_path / "rows").write_text(first + "\n")
    filmed = []
    monkeypatch.setattr(geometry_drift, "pieces", lambda path, *rest: filmed.append(path) or pieces(path, *rest))
    assert geometry_drift.drift(model, (20, 40), tmp_path / "rows") == found
    assert filmed == ["walks on"]


def test_a_difference_within_its_noise_is_seen_as_such():
    truth = whole("revisits", 0, 400, 8).poses
    runs = {}
    for name, lag in (("right", 0), ("alike", 0), ("late", 4)):
        depth = [torch.ones(2, 2)] * 40
        runs[name] = geometry_drift._Kept((400,), 0, list(truth.roll(lag, dims=0)), list(truth), depth, depth)
    alike = geometry_drift._difference(runs, "right", "alike")
    assert (alike["rotation"], alike["windows"]) == (0, 4)
    late = geometry_drift._difference(runs, "late", "right")
    assert late["rotation"] > 0
    assert late["translation"] > 0


def test_the_camera_s_bound_stands_beside_none(model, monkeypatch):
    monkeypatch.setattr(geometry_camera, "LATE", 10)
    short, enough, full = geometry_camera.camera_bounds(model, 30, kept=(4, 30), seeds=1)
    assert full["rows"] == 30 * SMALL.camera_iterations * SMALL.camera_depth
    assert short["rows"] == 4 * SMALL.camera_iterations * SMALL.camera_depth
    assert short["bytes"] < full["bytes"]
    assert (full["moved_off"], enough["moved_off"]) == (0, 0)
    assert short["moved_off"] > 0


def test_concatenated_caches_say_the_same(model):
    (row,) = geometry_speed.speeds(model, (9,), 3)
    assert row["difference"] < 1e-5
    assert row["ours"] > 0


def scene(folder, kind):
    (folder / "image").mkdir()
    for n in (2, 1):
        Image.new("RGB", (8, 6), (n, 0, 0)).save(folder / "image" / f"{n:04d}.png")
    points = np.array([[1.0, 2, 3], [4, 5, 6], [np.nan, 0, 0]], np.float32)
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 3\nHEIGHT 1\n"
    )
    header += f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 3\nDATA {kind}\n"
    if kind == "ascii":
        body = "\n".join(f"{x} {y} {z} 7" for x, y, z in points).encode()
    else:
        table = np.zeros(3, np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")]))
        for i, name in enumerate("xyz"):
            table[name] = points[:, i]
        body = table.tobytes()
    (folder / "dense_cloud_map.pcd").write_bytes(header.encode() + body)
    return folder


@pytest.mark.parametrize("kind", ["ascii", "binary"])
def test_long3d_folder(tmp_path, kind):
    found = long3d.long3d_scene(scene(tmp_path, kind))
    assert found.cloud.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert [int(frame[0, 0, 0]) for frame in found.frames()] == [1, 2]
    np.savetxt(tmp_path / "camera_from_lidar.txt", [[1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert long3d.long3d_scene(tmp_path).cloud[0].tolist() == [11, 2, 3]


def cloud(change):
    """Spoils the cloud's file by `change` of its bytes."""

    def spoil(folder):
        path = folder / "dense_cloud_map.pcd"
        path.write_bytes(change(path.read_bytes()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "dense_cloud_map.pcd").unlink(), "no dense_cloud_map.pcd"),
        (lambda f: [p.unlink() for p in (f / "image").iterdir()], "no PNG or JPEG"),
        (cloud(lambda data: b"ply\n"), "no PCD header"),
        (cloud(lambda data: data[:-5]), "ends early"),
        (cloud(lambda data: data.replace(b"DATA binary", b"DATA binary_compressed")), "compressed"),
    ],
)
def test_a_spoilt_long3d_folder_is_told(tmp_path, spoil, message):
    spoil(scene(tmp_path, "binary"))
    with pytest.raises(BadRequest, match=message):
        long3d.long3d_scene(tmp_path)
