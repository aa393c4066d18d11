"""How sessions outlive actors, gateways and nodes."""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.models.base import BadRequest
from riverrun.store.records import SUSPENDED_TTL_S

KINDS = ("exact", "recache")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of sessions.

    uri: where they lie: a folder, or what pyarrow can open ("s3://bucket/folder"); "": a folder of the service's own
    (below data_dir if that is set). shared: a folder that every node sees under this path (a network mount); more than
    one node needs that, or a URI that all reach. kind: "exact", or "recache" where the model has it: smaller, and its
    pixels differ after a restore. chunks: one is taken every so many steps; 0: none, and a session ends with its actor.
    seconds: or after so many. inputs: or when so many of a client's frames are in none. grace_s: one is deleted so long
    after it was replaced. restores: at once, on one gateway. patience_s: for so long a place is looked for after a
    fault; then the session is suspended. suspend_idle: a session left alone is suspended, not ended.
    retention_s: a suspended session is kept so long. pressure_idle_s: where a session finds no room, the one that has
    been left alone longest is suspended for it, if nobody was there for so long. reap_s: so often what nobody needs any
    more is looked for. evidence_s: what a failed session left is kept so long, and that of one whose record is gone.
    orphan_s: a State that nobody has called for so long, and that no session has a claim to, is freed.
    """

    uri: str = ""
    shared: bool = False
    kind: str = "exact"
    chunks: int = 8
    seconds: float = 10.0
    inputs: int = 16
    grace_s: float = 30.0
    restores: int = 2
    patience_s: float = 60.0
    suspend_idle: bool = False
    retention_s: float = SUSPENDED_TTL_S
    pressure_idle_s: float = 5.0
    reap_s: float = 60.0
    evidence_s: float = 86_400.0
    orphan_s: float = 300.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadRequest(f"checkpoints.kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.chunks < 0 or self.inputs < 1 or self.restores < 1:
            raise BadRequest("checkpoints: chunks must not be negative, inputs and restores at least 1")
        times = (
            "seconds",
            "grace_s",
            "patience_s",
            "retention_s",
            "pressure_idle_s",
            "reap_s",
            "evidence_s",
            "orphan_s",
        )
        for name in times:
            if not 0 < getattr(self, name) < float("inf"):
                raise BadRequest(f"checkpoints.{name} must be positive and finite, got {getattr(self, name)}")
