"""Thirteen stereo pairs of a chessboard (opencv-doc): metric depth of the board's plane and the pose between two real
cameras, from a calibration made here (specs: data.md (b) 2). Needs opencv-python-headless."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from riverrun.bench.geometry_stereo import Pair
from riverrun.train.clips import Absent

WIDE, HIGH, SQUARE = 9, 6, 0.025  # inner corners of the board, metres
OUTER = [0, WIDE - 1, WIDE * HIGH - 1, WIDE * (HIGH - 1)]
NUMBERS = tuple(n for n in range(1, 15) if n != 10)


def chessboards(folder: Path) -> list[Pair]:
    """All pairs, without their lenses' distortion; depth and move in metres, depth where the left camera sees the board
    between its outer corners. Raises Absent."""
    if not (folder / "left01.jpg").is_file():
        raise Absent("chessboard stereo is not there; get it by: apt-get install opencv-doc")
    try:
        cv2: Any = importlib.import_module("cv2")
    except ModuleNotFoundError:
        raise Absent("chessboard stereo wants a calibration: pip install opencv-python-headless") from None
    pictures = {side: [cv2.imread(str(folder / f"{side}{n:02}.jpg")) for n in NUMBERS] for side in ("left", "right")}
    corners = {side: [_corners(cv2, each) for each in pictures[side]] for side in pictures}
    grid = np.mgrid[:WIDE, :HIGH].T.reshape(-1, 2) * SQUARE
    board = np.column_stack([grid, np.zeros(len(grid))]).astype(np.float32)
    size = pictures["left"][0].shape[1::-1]
    lenses = {side: cv2.calibrateCamera([board] * len(NUMBERS), corners[side], size, None, None) for side in corners}
    k, bent, turns, moves = lenses["left"][1:5]
    fixed = cv2.stereoCalibrate(
        [board] * len(NUMBERS), corners["left"], corners["right"], k, bent, *lenses["right"][1:3], size,
        flags=cv2.CALIB_FIX_INTRINSIC,
    )  # fmt: skip
    to_right, offset = fixed[5], fixed[6][:, 0]  # left camera's coordinates -> the right one's
    pairs = []
    for n, (left, right) in enumerate(zip(*pictures.values(), strict=True)):
        left, right = (cv2.undistort(each, *lenses[side][1:3]) for side, each in (("left", left), ("right", right)))
        outline = cv2.undistortPoints(corners["left"][n], k, bent, P=k)[OUTER, 0]
        mask = cv2.fillConvexPoly(np.zeros(size[::-1], np.uint8), outline.round().astype(np.int32), 1)
        depth = _plane_depth(k, cv2.Rodrigues(turns[n])[0][:, 2], moves[n][:, 0], size) * mask
        seen = (left[..., ::-1], right[..., ::-1], depth.astype(np.float32))
        pairs.append(Pair("chessboard", *seen, rotation=to_right.T, move=-to_right.T @ offset))
    return pairs


def _corners(cv2: Any, picture: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    is_found, corners = cv2.findChessboardCorners(grey, (WIDE, HIGH))
    if not is_found:
        raise Absent("a chessboard was not found in one of opencv-doc's pictures")
    return cv2.cornerSubPix(grey, corners, (5, 5), (-1, -1), (cv2.TERM_CRITERIA_EPS, 30, 0.001))


def _plane_depth(k: np.ndarray, normal: np.ndarray, point: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth [H, W] of the plane through `point` with `normal`, both in the camera's coordinates."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], axis=-1)  # [H, W, 3]
    return (normal @ point) / (rays @ normal)
