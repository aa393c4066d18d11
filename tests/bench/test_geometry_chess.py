import numpy as np
import pytest

from riverrun.bench.geometry_chess import _plane_depth, chessboards
from riverrun.train.clips import Absent


def test_depth_of_a_plane_is_where_rays_meet_it():
    k = np.array([[50.0, 0, 16], [0, 40.0, 12], [0, 0, 1]])
    normal, point = np.array([0.3, -0.2, 0.93]), np.array([0.1, 0.05, 0.4])
    depth = _plane_depth(k, normal, point, (32, 24))
    assert depth.shape == (24, 32)
    for x, y in ((0, 0), (31, 23), (16, 12)):
        at = depth[y, x] * np.array([(x - 16) / 50, (y - 12) / 40, 1.0])
        assert normal @ (at - point) == pytest.approx(0, abs=1e-12)


def test_pictures_that_are_not_there_are_told_how_to_get(tmp_path):
    with pytest.raises(Absent, match="apt-get install opencv-doc"):
        chessboards(tmp_path)
