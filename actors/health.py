"""What an actor says of itself to the controller."""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.graphs.stage import Epoch


@dataclass(frozen=True)
class Measured:
    """Chunks made while so many sessions wanted some of the actor. steps: how many since it started. alone_ms, took_ms:
    means over the last ones of what the session's step takes by itself, and of what it took, waiting included."""

    sessions: int
    steps: int
    alone_ms: float
    took_ms: float


@dataclass(frozen=True)
class StageHealth:
    """A stage actor's own account of itself.

    held_bytes: of all States. reserved_bytes: what admission counts with, of max_bytes (None: no limit).
    retained_bytes, peak_bytes: what one session with default parameters keeps, and the most it has during a step, as
    measured when the model was loaded (0: not known). steps: batches made. running_s: age of the
    step in hand, 0 without one. p50_ms, p99_ms: of the last steps.
    """

    incarnation: str
    sessions: int
    max_sessions: int
    held_bytes: int
    reserved_bytes: int
    steps: int
    running_s: float
    p99_ms: float
    max_bytes: int | None = None
    retained_bytes: int = 0
    peak_bytes: int = 0
    pid: int = 0
    node: str = ""
    p50_ms: float = 0.0


@dataclass(frozen=True)
class Resident:
    """A State that an actor holds, or has set room aside for. epoch: the newest runner's it knows of. idle_s: since
    somebody called for it; 0 while a step runs. model, actor, incarnation: where it is. held_bytes: of the State.
    alone_ms: what its step takes by itself (0: not known)."""

    session: str
    stage: str
    epoch: Epoch
    idle_s: float
    model: str = ""
    actor: str = ""
    incarnation: str = ""
    held_bytes: int = 0
    alone_ms: float = 0.0


@dataclass(frozen=True)
class Look:
    """One actor, seen whole: its health, who is there, and what its steps took."""

    health: StageHealth
    residents: tuple[Resident, ...] = ()
    measured: tuple[Measured, ...] = ()
