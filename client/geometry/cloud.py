"""A point cloud that an endless stream can't make too large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riverrun.client.geometry.views import View

AXIS_BITS = 20
"""A cell's number on each axis lies in ±2^20, so that three of them fit one integer."""

VOXEL = 0.01
"""Of the first frame's median distance, where no size is given."""


@dataclass(frozen=True, eq=False)
class Points:
    """xyz: float32 [N, 3], world axes. rgb: uint8 [N, 3]. seen: int64 [N], pixels that fell into the point's cell."""

    xyz: np.ndarray
    rgb: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)


class VoxelCloud:
    """Means of the points in each cell of a grid, and of their colours.

    voxel: a cell's side, default `VOXEL` of the first frame's median distance. most: when more cells are filled, cells
    become twice as large, so the cloud stays bounded however far a camera walks. discard: share of each frame's pixels
    that is left out, those least believed first.
    """

    def __init__(self, voxel: float | None = None, most: int = 1_000_000, discard: float = 0.3) -> None:
        if voxel is not None and not voxel > 0:
            raise ValueError(f"voxel must be above 0, got {voxel:g}")
        if most < 1:
            raise ValueError(f"a cloud holds at least 1 point, got {most}")
        if not 0 <= discard < 1:
            raise ValueError(f"discard is a share, 0 up to below 1, got {discard:g}")
        self.voxel, self.most, self.discard = voxel, most, discard
        self._cells = _Cells.none()
        self._new: list[_Cells] = []

    def add(self, view: View) -> None:
        believed = view.confidence >= np.quantile(view.confidence, self.discard)
        keep = believed & np.isfinite(view.points).all(axis=-1) & (view.depth > 0)
        xyz, rgb = view.points[keep].astype(np.float64), view.image[keep]
        if not len(xyz):
            return
        if self.voxel is None:
            self.voxel = max(VOXEL * float(np.median(view.depth[keep])), 1e-9)
        reach = float(np.abs(xyz).max())
        while reach >= self.voxel * 2**AXIS_BITS:
            self._coarsen()
        self._new.append(_Cells.of(xyz, rgb, self.voxel))
        # Merging sorts everything: done when what is new is a quarter of what is there, it costs little a frame.
        if sum(map(len, self._new)) > max(len(self._cells) // 4, 50_000):
            self._merge()

    def points(self) -> Points:
        """All there are now, at most `most`, in the order of their cells."""
        self._merge()
        cells = self._cells
        mean = cells.sums / cells.seen[:, None]
        return Points(mean[:, :3].astype(np.float32), mean[:, 3:].round().astype(np.uint8), cells.seen)

    def _merge(self) -> None:
        self._cells = _Cells.joined([self._cells, *self._new])
        self._new = []
        while len(self._cells) > self.most:
            self._coarsen()

    def _coarsen(self) -> None:
        assert self.voxel is not None
        self.voxel *= 2
        self._cells = _Cells.joined([self._cells.coarser()])
        self._new = [cells.coarser() for cells in self._new]


@dataclass(frozen=True, eq=False)
class _Cells:
    """keys: int64 [N], the cell's place. sums: float64 [N, 6] of x, y, z, r, g, b. seen: int64 [N]."""

    keys: np.ndarray
    sums: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def none(cls) -> _Cells:
        return cls(np.empty(0, np.int64), np.empty((0, 6)), np.empty(0, np.int64))

    @classmethod
    def of(cls, xyz: np.ndarray, rgb: np.ndarray, voxel: float) -> _Cells:
        places = np.floor(xyz / voxel).astype(np.int64)
        sums = np.concatenate([xyz, rgb.astype(np.float64)], axis=1)
        return cls.joined([cls(_packed(places), sums, np.ones(len(xyz), np.int64))])

    @classmethod
    def joined(cls, parts: list[_Cells]) -> _Cells:
        """Cells of equal place become one."""
        keys, where = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
        sums, seen = np.zeros((len(keys), 6)), np.zeros(len(keys), np.int64)
        np.add.at(sums, where, np.concatenate([part.sums for part in parts]))
        np.add.at(seen, where, np.concatenate([part.seen for part in parts]))
        return cls(keys, sums, seen)

    def coarser(self) -> _Cells:
        """Cells twice as large; places may now be equal."""
        return _Cells(_packed(_unpacked(self.keys) >> 1), self.sums, self.seen)


def _packed(places: np.ndarray) -> np.ndarray:
    """int64 [N, 3] -> [N]."""
    x, y, z = (places[:, axis] + 2**AXIS_BITS for axis in range(3))
    return (x << 2 * (AXIS_BITS + 1)) | (y << (AXIS_BITS + 1)) | z


def _unpacked(keys: np.ndarray) -> np.ndarray:
    mask = 2 ** (AXIS_BITS + 1) - 1
    parts = [keys >> 2 * (AXIS_BITS + 1), (keys >> (AXIS_BITS + 1)) & mask, keys & mask]
    return np.stack(parts, axis=1) - 2**AXIS_BITS
