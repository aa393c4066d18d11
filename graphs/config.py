"""How a runner behaves: bounds and times."""

from __future__ import annotations

from dataclasses import dataclass, field

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.driver import Deadlines
from riverrun.graphs.recovery import RecoveryConfig


@dataclass(frozen=True)
class RunnerConfig:
    """edge_chunks: chunks that may lie on an interior edge, the one being worked on included (at least the producer's
    `max_chunks`). ring_frames: sent but unacked frames kept a port for a reconnect (at least the credits given).
    log_entries: lines of the control log at most. idle_timeout_s: for records that name none; 0: never. cadence,
    recovery: of sessions that outlive their actors. grace_s: a checkpoint is deleted so long after it was replaced.
    suspend_idle: what is left alone is put away, not ended. Times are seconds of the clock.
    """

    edge_chunks: int = 2
    ring_frames: int = 16
    idle_timeout_s: float = 300.0
    deadlines: Deadlines = field(default_factory=Deadlines)
    encode_s: float = 60.0
    close_s: float = 10.0
    store_s: float = 2.0
    commit_every_s: float = 5.0
    log_entries: int = 4096
    cadence: Cadence = field(default_factory=Cadence)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    grace_s: float = 30.0
    suspend_idle: bool = False


DEFAULTS = RunnerConfig()
