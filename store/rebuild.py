"""What the checkpoints of a session tell of it, for a store that has lost its record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from riverrun.models.base import Corrupt
from riverrun.store.checkpoints import Manifest
from riverrun.store.records import ENDED_TTL_S, SessionRecord, SessionState


def noted(manifests: Iterable[Manifest]) -> SessionRecord | None:
    """The record as the newest checkpoint has it that holds one; its epoch is above none that wrote."""
    newest = sorted(manifests, key=lambda m: (m.epoch, m.created), reverse=True)
    for manifest in newest:
        try:
            record = SessionRecord.from_json(manifest.record)
        except Corrupt:
            continue
        if record.id == manifest.session:
            return replace(record, epoch=max(record.epoch, newest[0].epoch))
    return None


def rebuilt(record: SessionRecord | None, age_s: float) -> SessionRecord | None:
    """The record to go on from: put away, since nobody is known to run it. age_s: since its last checkpoint.

    None for one that may have ended since: had it been left running, and not ended, it would not be as old.
    """
    if record is None or (record.state is not SessionState.SUSPENDED and age_s > ENDED_TTL_S):
        return None
    why = record.reason if record.state is SessionState.SUSPENDED else "the store had lost it"
    return replace(record, state=SessionState.SUSPENDED, reason=why, version=0)
