"""What a session needs to outlive its actors and its gateway; without it, it ends with the first that dies."""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.graphs.gate import Gate
from riverrun.graphs.saver import Blobs
from riverrun.graphs.stage import Placer


@dataclass(frozen=True)
class Durability:
    """placer: finds actors for this session's stages. blobs: where checkpoints lie. gate: of all sessions here."""

    placer: Placer
    blobs: Blobs
    gate: Gate
