import math
import random

import pytest
import torch

from riverrun.train.scenes import MOTIONS, OBJECT_COLOURS, SHAPES, Camera, Scene, Thing, is_held_out, sample_scene, twin
from riverrun.train.world import camera_pose, pictures, render, world_points


def scene(shape="cube", motion="orbit left", **camera):
    return Scene((Thing("red", shape, yaw=0.4),), "grass", "day", Camera(motion, azimuth=0.3, **camera))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])
def test_shapes_and_dtypes(height, width):
    footage = render(scene(), 3, height, width)
    assert (footage.frames.shape, footage.frames.dtype) == ((3, height, width, 3), torch.uint8)
    assert (footage.depth.shape, footage.depth.dtype) == ((3, height, width), torch.float32)
    assert footage.intrinsics.shape == (3, 3)
    assert footage.camera_to_world.shape == (3, 4, 4)
    assert footage.objects.shape == (3, height, width)
    assert torch.isinf(footage.depth[:, 0]).all()  # sky
    assert torch.isfinite(footage.depth[:, -1]).all()  # floor


@pytest.mark.parametrize("motion", MOTIONS)
def test_any_time_can_be_entered_alone(motion):
    film, still = render(scene(motion=motion), 6), render(scene(motion=motion), [5.0])
    assert torch.equal(film.frames[5], still.frames[0])
    assert torch.equal(film.depth[5], still.depth[0])
    assert (render(scene(motion=motion), [10_000.25]).objects > 0).any()  # endless, and between frames


def test_poses_are_rotations_with_opencv_axes():
    pose = camera_pose(Camera("up and down", azimuth=1.0), 17)
    rotation = pose[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-6)
    assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)
    assert rotation[1, 1] < 0  # the camera's y points down, the world's up
    assert (pose[:3, :3] @ torch.tensor([0.0, 0.0, 1.0]))[1] < 0  # and it looks down at the object


@pytest.mark.parametrize("shape", SHAPES)
def test_points_of_one_frame_lie_where_another_sees_them(shape):
    footage = render(scene(shape, phase=0.5), [0.0, 4.0], 96, 96)
    points = world_points(footage.depth, footage.intrinsics, footage.camera_to_world)
    seen = torch.isfinite(points[0]).all(-1)
    inverse = torch.linalg.inv(footage.camera_to_world[1])
    camera = points[0][seen] @ inverse[:3, :3].T + inverse[:3, 3]
    pixel = (camera / camera[:, 2:]) @ footage.intrinsics.T
    column, row = pixel[:, 0].floor().long(), pixel[:, 1].floor().long()
    inside = (column >= 1) & (row >= 1) & (column < 95) & (row < 95)
    around = [footage.depth[1][row[inside] + i, column[inside] + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    low, high = torch.stack(around).amin(0), torch.stack(around).amax(0)
    depth = camera[inside, 2]
    agrees = (depth >= low - 0.02) & (depth <= high + 0.02)
    assert agrees.float().mean() > 0.93  # the rest is hidden in the other frame


def test_points_stand_on_the_floor_and_on_the_object():
    footage = render(scene("ball"), 1)
    points = world_points(footage.depth, footage.intrinsics, footage.camera_to_world)[0]
    on_floor = (footage.objects[0] == 0) & torch.isfinite(footage.depth[0])
    assert points[on_floor][:, 1].abs().max() < 1e-3
    ball = points[footage.objects[0] == 1] - torch.tensor([0.0, 1.0, 0.0])
    assert torch.allclose(ball.norm(dim=1), torch.ones(len(ball)), atol=1e-3)


def test_colours_are_those_of_the_centred_rays_up_to_antialiasing():
    footage, bright = render(scene(), 2, supersample=1), pictures(scene(), 2, supersample=1)
    assert torch.equal((bright * 255).round().to(torch.uint8).permute(0, 2, 3, 1), footage.frames)


def test_two_objects_hide_each_other():
    camera = Camera("still", azimuth=0.0)
    front, back = Thing("red", "cube", z=0.5), Thing("blue", "pillar", z=-1.5)
    both = render(Scene((front, back), "sand", "day", camera), 1).objects
    alone = render(Scene((back,), "sand", "day", camera), 1).objects
    assert set(both.unique().tolist()) == {0, 1, 2}
    assert (both == 2).sum() < (alone == 1).sum()


def test_splits_are_disjoint_and_every_colour_is_held_out_somewhere():
    rng = random.Random(0)
    train = {_key(sample_scene(rng)) for _ in range(600)}
    held = {_key(sample_scene(rng, held_out=True)) for _ in range(300)}
    assert not train & held
    assert {colour for colour, _, _ in held} == set(OBJECT_COLOURS)


def test_a_twin_keeps_the_camera_and_changes_the_colour():
    rng = random.Random(1)
    first = sample_scene(rng)
    second = twin(rng, first)
    assert second.camera == first.camera
    assert second.things[0].colour != first.things[0].colour
    assert not is_held_out(second.things[0], second.floor)


def test_orbits_close_after_a_full_turn():
    camera = Camera("orbit right", azimuth=0.2)
    assert camera.position(240) == pytest.approx(camera.position(0), abs=1e-9)
    assert math.hypot(*camera.position(7)[::2]) == pytest.approx(camera.distance)


def _key(scene):
    return scene.things[0].colour, scene.things[0].shape, scene.floor
