"""What people take away from a stream of geometry, read back by readers that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from riverrun.client.export import ExportError
from riverrun.client.geometry.cameras import Camera, quaternion_of, rotation_matrix
from riverrun.client.geometry.cloud import VoxelCloud
from riverrun.client.geometry.folder import FORMATS, GeometryFolder
from riverrun.client.geometry.views import MOST_OPEN, View, Views
from riverrun.client.types import Frame
from riverrun.models.geometry.fitting import fitting
from riverrun.tests.client.geometry.scene import HEIGHT, WIDTH, frames, stands, values

plyfile = pytest.importorskip("plyfile")
pycolmap = pytest.importorskip("pycolmap")
rerun = pytest.importorskip("rerun")
trimesh = pytest.importorskip("trimesh")

COUNT = 6


def view(number: int, **more: float) -> View:
    views = Views()
    *_, complete = [views.add(frame) for frame in frames(number, **more)]
    assert complete is not None
    return complete


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a stream of COUNT frames, every format; the pictures were twice and a half as large before."""
    path = tmp_path_factory.mktemp("geometry")
    writer = GeometryFolder(path, FORMATS, cloud=VoxelCloud(voxel=0.02, discard=0.0))
    for number in range(COUNT):
        writer.original(number, np.asarray(Image.fromarray(view(number).image).resize((105, 70), 0)))
        for frame in frames(number):
            writer.add(frame)
    writer.close()
    writer.close()
    assert writer.frames == COUNT
    return path


def test_a_camera_stands_where_camera_to_world_says() -> None:
    for number in range(COUNT):
        camera = Camera(values(number))
        np.testing.assert_allclose(camera.camera_to_world, stands(number), atol=1e-6)
        np.testing.assert_allclose(camera.world_to_camera @ stands(number), np.eye(4), atol=1e-6)
    # Where the two are confused, a camera that walked right and turned would stand elsewhere.
    assert np.abs(Camera(values(5)).world_to_camera[:3, 3] - stands(5)[:3, 3]).max() > 0.5


def test_quaternions_of_every_turn() -> None:
    draws = np.random.default_rng(0).normal(size=(200, 4))
    for q in [*draws, *np.eye(4)]:
        again = quaternion_of(rotation_matrix(q))
        q = q / np.linalg.norm(q)
        assert min(np.abs(again - q).max(), np.abs(again + q).max()) < 1e-9


def test_ply_has_the_wall(folder: Path) -> None:
    vertices = plyfile.PlyData.read(folder / "points.ply")["vertex"]
    np.testing.assert_allclose(vertices["z"], 2.0, atol=1e-5)
    assert 500 < len(vertices) < COUNT * HEIGHT * WIDTH  # frames overlap
    assert {vertices[c].dtype for c in ("red", "green", "blue")} == {np.dtype(np.uint8)}
    assert len(np.unique(vertices["red"])) > 3
    assert plyfile.PlyData.read(folder / "points.ply").text is False


def test_glb_has_cloud_cameras_and_path_in_its_axes(folder: Path) -> None:
    scene = trimesh.load(folder / "scene.glb", force="scene")
    assert {"points", "cameras", "path"} <= {name.split("_")[0] for name in scene.geometry}
    clouds = [g for g in scene.dump() if isinstance(g, trimesh.PointCloud)]
    np.testing.assert_allclose(clouds[0].vertices[:, 2], -2.0, atol=1e-4)  # z goes back there
    lines = [g for g in scene.dump() if isinstance(g, trimesh.path.Path3D)]
    path = max(lines, key=lambda line: np.ptp(line.vertices[:, 0]) if len(line.entities) == COUNT - 1 else -1)
    np.testing.assert_allclose(np.ptp(path.vertices, axis=0), [0.1 * (COUNT - 1), 0, 0], atol=1e-5)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return pycolmap.Reconstruction(folder / "colmap" / "sparse" / "0")


def test_colmap_reads_its_model(folder: Path, model: Any) -> None:
    assert (model.num_images(), model.num_cameras()) == (COUNT, COUNT)
    assert model.num_points3D() == len(plyfile.PlyData.read(folder / "points.ply")["vertex"])
    for number, image in enumerate(sorted(model.images.values(), key=lambda image: image.name)):
        np.testing.assert_allclose(image.projection_center(), stands(number)[:3, 3], atol=1e-6)
        rotation = image.cam_from_world().rotation.matrix()
        np.testing.assert_allclose(rotation, stands(number)[:3, :3].T, atol=1e-6)
        assert Image.open(folder / "colmap" / "images" / image.name).size == (105, 70)


def test_colmap_s_points_fall_on_the_original_s_pixels(model: Any) -> None:
    """The whole chain of conventions: network pixel -> world -> COLMAP's projection -> pixel of the original."""
    for number, image in enumerate(sorted(model.images.values(), key=lambda image: image.name)):
        points = view(number).points[4:24:5, 3:40:6].reshape(-1, 3)
        v, u = (grid.reshape(-1) for grid in np.mgrid[4:24:5, 3:40:6])
        seen = np.array([image.project_point(point) for point in points.astype(np.float64)])
        centres = np.stack([(u + 0.5) * 105 / WIDTH, (v + 0.5) * 70 / HEIGHT], axis=1)
        np.testing.assert_allclose(seen, centres, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "fit"), [(640, 480, "crop"), (480, 832, "crop"), (640, 480, "pad"), (300, 700, "pad")]
)
def test_a_point_s_place_in_the_original(height: int, width: int, fit: str) -> None:
    laid = fitting(height, width, fit=fit)
    inside = Camera(values(0)).intrinsics(*laid.inside)
    original = inside.of_original(laid)
    (down, right), (by_row, by_column) = laid.offset, laid.scale
    for x, y in [(0.0, 0.0), (0.3, -0.2), (-0.4, 0.1)]:
        u, v = inside.fx * x + inside.cx, inside.fy * y + inside.cy  # in the network's image
        expected = (u - right) * by_column, (v - down) * by_row
        np.testing.assert_allclose((original.fx * x + original.cx, original.fy * y + original.cy), expected)
    if fit == "crop":
        assert (right, down <= 0) == (0, True)
        np.testing.assert_allclose(original.cx, width / 2, atol=width / 518)


def test_trajectory_is_tum(folder: Path) -> None:
    rows = np.loadtxt(folder / "trajectory.txt")
    assert rows.shape == (COUNT, 8)
    np.testing.assert_allclose(rows[:, 0], np.arange(COUNT) / 10)
    np.testing.assert_allclose(rows[:, 1:4], [stands(n)[:3, 3] for n in range(COUNT)], atol=1e-6)
    for number, row in enumerate(rows):
        np.testing.assert_allclose(rotation_matrix(row[4:]), stands(number)[:3, :3], atol=1e-6)


def test_arrays_of_each_frame(folder: Path) -> None:
    with np.load(folder / "frames" / "000003.npz") as arrays:
        np.testing.assert_array_equal(arrays["points"], view(3).points)
        np.testing.assert_allclose(arrays["camera_to_world"], stands(3), atol=1e-6)
        camera = (arrays["world_to_camera"] @ np.append(arrays["points"][9, 11], 1))[:3]
        u, v, z = arrays["intrinsics"] @ camera / camera[2]
        np.testing.assert_allclose((u, v, z, camera[2]), (11.5, 9.5, 1, arrays["depth"][9, 11]), atol=1e-4)


def test_recording_is_read_by_rerun(folder: Path) -> None:
    reader = pytest.importorskip("rerun.chunk").RrdReader(folder / "recording.rrd")
    chunks = list(reader.stream().to_chunks())
    rows = {chunk.entity_path: chunk.num_rows for chunk in chunks}
    expected = {"/world": 1, "/world/camera": COUNT, "/world/seen": COUNT, "/world/cloud": 4}  # at 1, 2, 4 and the end
    assert {path: rows[path] for path in expected} == expected
    assert {rows[f"/world/camera/{name}"] for name in ("picture", "depth")} == {COUNT}
    (camera,) = [chunk.to_record_batch() for chunk in chunks if chunk.entity_path == "/world/camera"]
    column = next(name for name in camera.schema.names if name.endswith("translation"))
    stood = np.squeeze(camera[column].to_pylist())
    np.testing.assert_allclose(stood, [stands(n)[:3, 3] for n in range(COUNT)], atol=1e-6)
    assert camera["frame"].to_pylist() == list(range(COUNT))


def test_a_cloud_stays_bounded_however_far_the_camera_walks() -> None:
    cloud = VoxelCloud(voxel=0.01, most=2000)
    for number in range(0, 3000, 50):
        walked = view(number % 20, wall=2.0 + number)
        cloud.add(walked)
    assert len(cloud.points()) <= 2000
    assert cloud.voxel > 0.01
    assert cloud.points().xyz[:, 2].max() > 2900


def test_a_place_seen_again_adds_no_point() -> None:
    cloud = VoxelCloud(voxel=0.02, discard=0.0)
    cloud.add(view(1))
    once = cloud.points()
    for _ in range(5):
        cloud.add(view(1))
    again = cloud.points()
    assert len(again) == len(once)
    np.testing.assert_array_equal(again.seen, 6 * once.seen)
    np.testing.assert_allclose(again.xyz, once.xyz, atol=1e-6)


def test_the_least_believed_are_left_out() -> None:
    whole, half = VoxelCloud(voxel=1e-4, discard=0.0), VoxelCloud(voxel=1e-4, discard=0.5)
    for cloud in (whole, half):
        cloud.add(view(0))
    assert len(half.points()) == pytest.approx(len(whole.points()) / 2, rel=0.01)
    believed = view(0).confidence >= np.median(view(0).confidence)
    expected = view(0).points[believed]
    assert {tuple(point) for point in half.points().xyz} == {tuple(point) for point in expected}


def test_points_that_are_no_numbers_are_left_out() -> None:
    broken = view(0)
    broken.points[3, 4] = np.nan
    broken.points[5, 6] = np.inf
    cloud = VoxelCloud(voxel=1e-4, discard=0.0)
    cloud.add(broken)
    assert len(cloud.points()) == HEIGHT * WIDTH - 2


def test_views_wait_for_all_their_ports_in_any_order() -> None:
    views = Views(originals="frames")
    first, second = frames(0), frames(1)
    picture = Frame(np.zeros((70, 105, 3), np.uint8), "frames", 0, 0.0, 0, 0)
    found = [views.add(frame) for frame in [*second[::-1], *first]]
    assert found == [None] * 10
    complete = views.add(picture)
    assert complete is not None
    assert (complete.number, complete.original is picture.array) == (0, True)
    assert views.add(Frame(np.zeros(1), "text", 0, 0.0, 0, 0)) is None
    for number in range(MOST_OPEN - 1):  # and frame 1
        views.add(Frame(first[0].array, "image", 10 + number, 0.0, 0, 0))
    with pytest.raises(ValueError, match="frames wait for original: "):
        views.add(Frame(first[0].array, "image", 9, 0.0, 0, 0))


def test_one_frame_and_none(tmp_path: Path) -> None:
    one = GeometryFolder(tmp_path / "one", FORMATS)
    for frame in frames(0):
        one.add(frame)
    one.close()
    assert (tmp_path / "one" / "scene.glb").exists()
    none = GeometryFolder(tmp_path / "none", FORMATS)
    none.close()
    assert not (tmp_path / "none" / "points.ply").exists()
    assert pycolmap.Reconstruction(tmp_path / "none" / "colmap" / "sparse" / "0").num_images() == 0


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no format is called 'obj'; there are ply, glb, colmap"):
        GeometryFolder(tmp_path, ["ply", "obj"])
    with pytest.raises(ExportError, match="fit must be one of crop, pad"):
        GeometryFolder(tmp_path, fit="stretch")
    with pytest.raises(ValueError, match="discard is a share"):
        VoxelCloud(discard=1.0)
    with pytest.raises(ValueError, match="voxel must be above 0"):
        VoxelCloud(voxel=-1)
