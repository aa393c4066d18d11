"""What a runner says of itself, for `Sessions.Get`."""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.models.base import Kind
from riverrun.store.records import SessionState


@dataclass(frozen=True)
class StageStatus:
    """One stage. compute_ms_*: of the last 100 steps, in the model."""

    stage: str
    model: str
    actor: str
    incarnation: str
    steps: int
    held_bytes: int
    compute_ms_p50: float
    compute_ms_p99: float


@dataclass(frozen=True)
class OutputStatus:
    """One graph output. frame_shape: (H, W), if its stage makes frames."""

    port: str
    kind: Kind
    fps: float
    frame_shape: tuple[int, int] | None
    chunk_frames: int
    first_frames: int


@dataclass(frozen=True)
class RunnerStatus:
    """frames_delivered: on all outputs, to controllers, each counted once."""

    session: str
    graph: str
    state: SessionState
    reason: str
    created: float
    paused: bool
    frames_delivered: int
    stages: tuple[StageStatus, ...]
    outputs: tuple[OutputStatus, ...]
