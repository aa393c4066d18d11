"""Pictures of geometry: what they show is where it should be."""

import numpy as np

from riverrun.client.geometry.chain import ChainShot
from riverrun.client.geometry.cloud import Points, VoxelCloud
from riverrun.client.geometry.picture import PATH, chain_picture, cloud_picture, depth_picture
from riverrun.client.geometry.views import View, Views
from riverrun.client.types import Frame
from riverrun.tests.client.geometry.scene import frames


def view(number: int) -> View:
    views = Views()
    *_, complete = [views.add(frame) for frame in frames(number)]
    assert complete is not None
    return complete


def test_near_is_bright_and_far_is_dark_whatever_the_unit() -> None:
    depth = np.linspace(1.0, 5.0, 64)[None].repeat(8, axis=0).astype(np.float32)
    picture = depth_picture(depth)
    brightness = picture.astype(int).sum(axis=-1)[0]
    assert brightness[2] > 2 * brightness[-2]
    assert (np.diff(brightness) <= 12).all()
    np.testing.assert_array_equal(picture, depth_picture(depth * 100))
    flat = depth_picture(np.full((4, 4), 2.0, np.float32))
    assert flat.shape == (4, 4, 3)
    assert depth_picture(np.array([[np.nan, 1.0, 2.0]], np.float32)).shape == (1, 3, 3)


def test_a_cloud_is_seen_with_the_path_of_its_camera() -> None:
    cloud, path = VoxelCloud(voxel=0.02, discard=0.0), []
    for number in range(8):
        cloud.add(view(number))
        path.append(view(number).camera)
    picture = cloud_picture(cloud.points(), path, 120, 160)
    assert picture.shape == (120, 160, 3)
    assert 0.2 < (picture != 255).any(axis=-1).mean() < 0.95
    orange = (picture == PATH).all(axis=-1)
    assert 20 < orange.sum() < 1000
    assert not (cloud_picture(cloud.points(), [], 120, 160) == PATH).all(axis=-1).any()
    empty = Points(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.int64))
    assert (cloud_picture(empty, path) == 255).all()


def test_a_row_of_pictures_has_one_height() -> None:
    sheet = chain_picture({"small": np.zeros((64, 64, 3), np.uint8), "large": np.full((256, 512, 3), 90, np.uint8)})
    assert sheet.size == (256 + 512 + 30, 256 + 40)
    assert np.asarray(sheet)[100, 100].tolist() == [0, 0, 0]
    assert np.asarray(sheet)[100, 400].tolist() == [90, 90, 90]


def test_a_chain_is_shown_at_the_newest_frame_that_has_passed_it() -> None:
    shot = ChainShot({"frames": "made", "sharp": "sharpened"})
    assert shot.draw() is None
    pictures = [np.full((32, 32, 3), 40 * n, np.uint8) for n in range(6)]
    for number, picture in enumerate(pictures):  # the last one is still on its way through the chain
        shot.add(Frame(picture, "frames", number, number / 10, 0, 0))
        if number < 5:
            for frame in (Frame(picture + 9, "sharp", number, number / 10, 0, 0), *frames(number)):
                shot.add(frame)
    drawn = shot.draw()
    assert drawn is not None
    row = np.asarray(drawn)
    assert row[100, 100].tolist() == [160] * 3
    assert row[100, 400].tolist() == [169] * 3
    assert (row == PATH).all(axis=-1).any()
