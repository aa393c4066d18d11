"""What a runner says of itself, for `Sessions.Get`."""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.graphs.driver import StageDriver, percentile
from riverrun.graphs.graph import Endpoint
from riverrun.models.base import Description, Kind
from riverrun.store.records import Placement, SessionState


@dataclass(frozen=True)
class StageStatus:
    """One stage. compute_ms_*: of the last 100 steps, in the model; wait_ms_p50: before it, in the actor.
    queued: chunks that lie before it, the one in a step included. held_bytes: of its State; retained_bytes: what the
    model says that comes to."""

    stage: str
    model: str
    actor: str
    incarnation: str
    steps: int = 0
    held_bytes: int = 0
    compute_ms_p50: float = 0.0
    compute_ms_p99: float = 0.0
    wait_ms_p50: float = 0.0
    queued: int = 0
    retained_bytes: int = 0


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
    """frames_delivered: on all outputs, to controllers, each counted once. outputs: empty until the stages are open.

    lead_s: media made and not played. parked: no step is begun because that is more than the session may have, or it
    rests between two chunks."""

    session: str
    graph: str
    state: SessionState
    reason: str
    created: float
    paused: bool
    parked: bool
    lead_s: float
    frames_delivered: int
    stages: tuple[StageStatus, ...]
    outputs: tuple[OutputStatus, ...]


def stage_status(name: str, model: str, place: Placement, driver: StageDriver | None) -> StageStatus:
    """driver: None while the session is opening."""
    if driver is None:
        return StageStatus(name, model, place.actor, place.incarnation)
    p50, p99 = (percentile(driver.compute_ms, share) for share in (0.5, 0.99))
    return StageStatus(
        stage=name,
        model=model,
        actor=place.actor,
        incarnation=place.incarnation,
        steps=driver.next_seq,
        held_bytes=driver.held_bytes,
        compute_ms_p50=p50,
        compute_ms_p99=p99,
        wait_ms_p50=percentile(driver.wait_ms, 0.5),
        queued=sum(len(edge) for edge in driver.inputs.values()),
        retained_bytes=driver.description.retained_bytes,
    )


def output_status(name: str, at: Endpoint, about: Description) -> OutputStatus:
    """about: of the stage that makes it."""
    return OutputStatus(
        port=name,
        kind=next(p.kind for p in about.outputs if p.name == at.port),
        fps=about.fps,
        frame_shape=about.frame_shape,
        chunk_frames=about.chunk_frames,
        first_frames=about.chunk_frames if about.first_frames is None else about.first_frames,
    )
