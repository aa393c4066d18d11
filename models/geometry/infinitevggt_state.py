"""What an InfiniteVGGT session asks for and owns."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from riverrun.kernels.export import Rows
from riverrun.models.base import BadRequest
from riverrun.models.geometry.fitting import Fit
from riverrun.models.geometry.memory import GeometryStream
from riverrun.models.geometry.vggt import CameraMemory, TokenMemory
from riverrun.models.snapshot import Snapshotting
from riverrun.models.state import Rewindable, Waiting, check_kind, refuse_snapshot

SNAPSHOT_VERSION = 2

MOST_ROWS = 100_000_000
"""Of any cache here: what it costs is told, and refused, before anything is allocated."""

BOUNDS = ("total_budget", "memory_frames", "memory_mb")

PointSource = Literal["head", "depth"]


@dataclass(frozen=True)
class InfiniteVGGTParams:
    """What a session may ask for.

    height, width: pixels of the frames that will come; default: the first frame's, and what a session costs is then
    told for the largest. total_budget: rows a head may remember over all layers; or memory_frames: that many frames'
    rows; or memory_mb: as many as take 10^6 bytes so often; none of them: the model's own default. memory: which rows,
    see `vggt.TokenMemory`. camera_frames: frames that the camera head remembers, the first one always among them;
    official code never forgets, so poses are the official ones for that many frames. camera_memory: "sink_window", or
    "full", which takes no more frames than those. fit: see `fitting.Fit`. points: from the point head, or from depth
    and camera (VGGT's authors call that the more accurate); the confidence is that of their source.
    """

    height: int | None = None
    width: int | None = None
    total_budget: int | None = None
    memory_frames: int | None = None
    memory_mb: float | None = None
    memory: str = "diverse_keys"
    camera_frames: int = 1024
    camera_memory: str = "sink_window"
    fit: str = "crop"
    points: str = "head"

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None):
            raise BadRequest("height and width are given both or neither")
        given = {name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None}
        if len(given) > 1:
            raise BadRequest(f"the memory has one bound, got {' and '.join(given)}")
        for name, value in given.items():
            if not 1 <= value <= MOST_ROWS:
                raise BadRequest(f"{name} must be 1..{MOST_ROWS}, got {value:g}")
        if not 2 <= self.camera_frames <= MOST_ROWS:
            raise BadRequest(
                f"camera_frames must be 2..{MOST_ROWS}, the first and the current, got {self.camera_frames}"
            )
        choices = {"fit": Fit, "points": PointSource, "memory": TokenMemory, "camera_memory": CameraMemory}
        for name, allowed in ((name, get_args(kind)) for name, kind in choices.items()):
            if getattr(self, name) not in allowed:
                raise BadRequest(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


@dataclass
class InfiniteVGGTState(Snapshotting, Rewindable):
    """One session; see `parts` for what is kept.

    size: (height, width) of its frames in the network, once known; stream: its memory, from then on. waiting: frames
    pushed and not used. frames: those used. is_broken: a step failed half-way: only `rewind`, or a restored snapshot,
    can go on.
    """

    params: InfiniteVGGTParams
    seed: int
    size: tuple[int, int] | None = None
    stream: GeometryStream | None = None
    waiting: deque[Waiting] = field(default_factory=deque)
    frames: int = 0
    is_broken: bool = False

    @property
    def nbytes(self) -> int:
        held = 0 if self.stream is None else self.stream.nbytes
        return held + sum(int(frame.pixels.nbytes) for frame in self.waiting)

    def parts(self, kind: str) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """Exact: both caches' slots in their order, scores, frames that wait, counters. Raises Corrupt for a session
        that failed.

        The only kind: which keys were kept follows from all frames ever seen.
        """
        refuse_snapshot(self)
        check_kind(kind)
        meta: dict[str, Any] = {"version": SNAPSHOT_VERSION, "seed": self.seed, "frames": self.frames}
        meta["size"] = None if self.size is None else list(self.size)
        meta["waiting"] = [[w.pts, w.ticks, w.revision] for w in self.waiting]
        tensors: dict[str, Tensor | Rows] = {}
        tensors |= {f"waiting/{i}": torch.from_numpy(w.pixels) for i, w in enumerate(self.waiting)}
        if self.stream is not None:
            tensors["scores"] = self.stream.scores
            for name, cache in {"tokens": self.stream.tokens, "poses": self.stream.poses}.items():
                meta[name], rows = cache.snapshot()
                tensors |= {f"{name}/{part}": tensor for part, tensor in rows.items()}
        return meta, tensors
