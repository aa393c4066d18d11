import dataclasses
import math
import random

import pytest
import torch

from riverrun.models.geometry.vggt import VGGT
from riverrun.train import geometry
from riverrun.train.generator import train
from riverrun.train.geometry_clip import watch
from riverrun.train.geometry_flat import pairs, turning
from riverrun.train.geometry_frames import batch_of, caption_clip, yard_clip
from riverrun.train.geometry_loss import pose_loss
from riverrun.train.geometry_measure import degrees_between, relative
from riverrun.train.geometry_probe import probe
from riverrun.train.geometry_rooms import MOVES, room
from riverrun.train.geometry_start import FIELD_OF_VIEW, TINY, initialise

SMALL = dataclasses.replace(
    TINY, image=56, depth=2, dino_depth=1, dpt_features=8, dpt_channels=(8, 8, 8, 8), dpt_layers=(0, 0, 1, 1)
)


def started(config=TINY, seed=0):
    torch.manual_seed(seed)
    model = VGGT(config)
    initialise(model)
    return model


def test_poses_can_be_learned_from_the_first_values():
    images, extrinsics = pairs(640, random.Random(5), range(100), 112, FIELD_OF_VIEW)
    found = probe(started(), images, extrinsics)
    assert found.token[0] > 0.5
    assert found.token[1] > 0.2  # pitch is half as wide as yaw
    assert all(yaw > 0.7 and pitch > 0.4 for yaw, pitch in found.matching)


def test_usual_first_values_do_not_match():
    torch.manual_seed(0)
    images, extrinsics = pairs(320, random.Random(5), range(50), 112, FIELD_OF_VIEW)
    found = probe(VGGT(TINY), images, extrinsics)
    assert found.token[0] < 0.4
    assert all(yaw < 0.5 for yaw, _ in found.matching)


def test_a_flat_pair_is_one_canvas_seen_twice():
    images, extrinsics = pairs(8, random.Random(1), range(5), 112, FIELD_OF_VIEW)
    half = math.tan(FIELD_OF_VIEW / 2)
    at = ((torch.arange(112) + 0.5) / 112 * 2 - 1) * half
    v, u = torch.meshgrid(at, at, indexing="ij")
    rays = torch.einsum("bij,hwj->bhwi", extrinsics[..., :3], torch.stack([u, v, torch.ones_like(u)], -1))
    grid = rays[..., :2] / rays[..., 2:] / half
    is_inside = (grid.abs() < 0.98).all(-1)
    seen = torch.nn.functional.grid_sample(images[:, 1], grid, align_corners=False)
    off = (seen - images[:, 0]).abs().mean(1)[is_inside].mean()
    unmoved = (images[:, 1] - images[:, 0]).abs().mean(1)[is_inside].mean()
    assert off < 0.2 * unmoved


CLIPS = [*((f"room {move}", lambda move=move: room(3, range(9), 3, 112, FIELD_OF_VIEW, move)) for move in MOVES[:5]),
         ("caption", lambda: caption_clip(5, 3, 112, gap=8, motion="orbit left")),
         ("yard", lambda: yard_clip(4, 3, 112))]  # fmt: skip


@pytest.mark.parametrize("make", [make for _, make in CLIPS], ids=[name for name, _ in CLIPS])
def test_truth_of_a_clip_holds_together(make):
    batch = batch_of([make()], [[0, 2]], FIELD_OF_VIEW)
    place = batch.points[:, 1] / batch.points[:, 1, ..., 2:].clamp(min=1e-3) / math.tan(FIELD_OF_VIEW / 2)
    grid = place[..., :2]
    is_inside = batch.is_valid[:, 1] & (grid.abs() < 0.98).all(-1) & (batch.points[:, 1, ..., 2] > 0)
    seen = torch.nn.functional.grid_sample(batch.images[:, 0], grid, align_corners=False)
    off = (seen - batch.images[:, 1]).abs().mean(1)[is_inside].median()
    unmoved = (batch.images[:, 0] - batch.images[:, 1]).abs().mean(1)[is_inside].median()
    assert off < 0.02
    assert off < 0.6 * unmoved
    distance = batch.points[:, 0].norm(dim=-1)[batch.is_valid[:, 0]].mean()
    assert distance.item() == pytest.approx(1, abs=1e-4)  # the unit
    assert torch.allclose(batch.extrinsics[:, 0], torch.eye(4)[:3], atol=1e-6)


def test_relative_pose_of_the_truth_is_the_truth():
    rotation = turning(*torch.tensor([[0.3], [-0.2], [0.1]]))
    batch = batch_of([yard_clip(4, 3, 112)], [[0, 2]], FIELD_OF_VIEW)
    poses = torch.cat([batch.extrinsics[..., 3], batch.quaternions, torch.full((1, 2, 2), FIELD_OF_VIEW)], dim=-1)
    turned, moved = relative(poses)
    assert degrees_between(turned, batch.extrinsics[:, 1, :, :3]).item() < 0.1
    assert torch.allclose(moved, batch.extrinsics[:, 1, :, 3], atol=1e-5)
    assert degrees_between(rotation, torch.eye(3)[None]).item() > 10
    assert pose_loss(poses.repeat(4, 1, 1, 1), batch, FIELD_OF_VIEW).item() < 1e-4
    assert pose_loss(poses.repeat(4, 1, 1, 1) * torch.tensor([1.0, 1, 1, -1, -1, -1, -1, 1, 1]), batch,
                     FIELD_OF_VIEW).item() < 0.5  # only the first frame's sign counts  # fmt: skip


def test_watching_equals_streaming():
    from riverrun.models.geometry.vggt import rolling_stream

    model = started(SMALL).eval().requires_grad_(False)
    images = torch.rand(2, 3, 3, 56, 56)
    seen = watch(model, images)
    streams = [rolling_stream(SMALL, (56, 56), 10**6, 64, memory="diverse_keys") for _ in range(2)]
    for t in range(3):
        result = model.frame(images[:, t], streams)
        assert torch.allclose(result.poses, seen.poses[:, :, t], atol=1e-5)


def test_a_run_resumes_as_if_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(geometry.Trainer, "say", lambda self: None)
    lessons = (geometry.Lesson(2, {"flat": 1.0}), geometry.Lesson(9, {"captions": 0.5, "rooms": 0.5}))
    recipe = geometry.Recipe(shape=SMALL, lessons=lessons, steps=4, frames=4, pool=3)
    whole = geometry.Trainer(recipe, tmp_path / "whole", say_every=100)
    train(whole)
    first = geometry.Trainer(recipe, tmp_path / "parts")
    for _ in range(2):
        first.advance()
    first.save()
    second = geometry.Trainer(recipe, tmp_path / "parts")
    assert second.load()
    train(second)
    for a, b in ((whole.model, second.model), (whole.average, second.average)):
        states = a.state_dict(), b.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
