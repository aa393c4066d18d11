import math

import pytest
import torch

from riverrun.models.geometry.clouds import compare, icp, neighbours, normals, voxels, without_outliers
from riverrun.models.geometry.metrics import relative_errors


def corner(count=900, seed=0):
    """Three walls that meet at the origin, with outward normals along the axes."""
    draws = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=draws, dtype=torch.float64)
    axis = torch.arange(count) % 3
    points[torch.arange(count), axis] = 0
    return points, torch.nn.functional.one_hot(axis, 3).double()


def turn(degrees, axis=2):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    flat = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    order = [(axis + 1) % 3, (axis + 2) % 3, axis]
    rotation = torch.zeros(3, 3, dtype=torch.float64)
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            rotation[a, b] = flat[i, j]
    return rotation


def test_voxels_are_means_of_cubes():
    points = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [1.2, 0.0, 0.0], [-0.1, 0.0, 0.0]])
    found = voxels(points, 1.0)
    assert found.shape == (3, 3)
    assert torch.allclose(found[found[:, 0].argsort()][1], torch.tensor([0.2, 0.1, 0.1]).double())


def test_neighbours_leave_the_point_itself_out():
    points = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    distance, index = neighbours(points, 1)
    assert distance[:, 0].tolist() == [1.0, 1.0, 2.0]
    assert index[:, 0].tolist() == [1, 0, 1]


def test_outliers_go():
    points, _ = corner()
    kept = without_outliers(torch.cat([points, torch.full((1, 3), 9.0, dtype=torch.float64)]), 20, 3.0)
    assert kept.max() < 2
    assert len(kept) > 850


def test_normals_of_walls():
    points, true = corner()
    is_inside = (points + true > 0.15).all(dim=1)
    found = normals(points, 12)[is_inside]
    assert (found * true[is_inside]).sum(1).abs().median() > 0.999


def test_icp_lays_a_moved_cloud_back():
    points, true = corner()
    moved = points @ turn(4).T + torch.tensor([0.03, -0.02, 0.02], dtype=torch.float64)
    back = icp(moved, points, true, within=0.2)
    assert (back.points(moved) - points).norm(dim=1).max() < 1e-3


def test_a_cloud_compares_well_with_itself_only():
    points, _ = corner(3000)
    other = torch.rand(3000, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    same, different = compare(points * 2.5, points, 0.03), compare(other, points, 0.03)
    assert same.accuracy.mean < 0.03
    assert same.completion.mean < 0.03
    assert same.normals > 0.9
    assert different.accuracy.mean > 3 * same.accuracy.mean


def poses(shift):
    made = torch.eye(4, dtype=torch.float64).repeat(9, 1, 1)
    for t in range(9):
        made[t, :3, :3] = turn(3.0 * t, axis=1)
        made[t, :3, 3] = torch.tensor([shift * t, 0.0, 0.0])
    return made


def test_relative_errors_know_no_motion_and_the_scale():
    truth = poses(0.5)
    still = relative_errors(torch.eye(4).repeat(9, 1, 1), truth, gap=4, scale=1.0)
    assert still.rotation == pytest.approx(12.0)
    assert still.rotation_ratio == pytest.approx(1.0)
    assert still.translation_ratio == pytest.approx(1.0)
    exact = relative_errors(poses(0.1), truth, gap=4, scale=5.0)
    assert exact.rotation < 1e-6
    assert exact.translation < 1e-6
    world_to_camera = torch.linalg.inv(poses(0.1))  # taken the wrong way round, all is wrong
    assert relative_errors(world_to_camera, truth, gap=4, scale=5.0).rotation_ratio > 1.5
