"""What the next controller goes on from, beside what it finds: the last decisions, for people who ask why, and what
steps were learned to take. Kept where Ray keeps what it knows of the cluster (its GCS), as `notes` are, but apart from
them: it changes often, and should a write of it be lost, so is only knowledge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from riverrun.actors.decisions import Decision
from riverrun.cluster.latency import Ratios

KEPT = 256
"""Of so many decisions; at some 500 bytes each."""

FOR_S = 86_400.0
"""Decisions older than that are of no use to anybody."""


class Journal:
    """name: of the controller whose it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._decisions: Sequence[Decision] = ()
        self._learned: Mapping[str, Ratios] = {}

    def decisions(self, now: float) -> list[Decision]:
        """Oldest first; those of a version that told other things are left out. now: seconds since 1970."""
        kept = json.loads(_internal_kv_get(self._key("decisions")) or b"[]")
        names = {each.name for each in fields(Decision)}
        return [Decision(**each) for each in kept if set(each) == names and each["at"] > now - FOR_S]

    def learned(self) -> dict[str, Ratios]:
        """By model, as its configuration was."""
        kept = json.loads(_internal_kv_get(self._key("learned")) or b"{}")
        return {model: {int(n): (count, mean) for n, (count, mean) in of.items()} for model, of in kept.items()}

    def keep(self, decisions: Sequence[Decision], learned: Mapping[str, Ratios]) -> None:
        """Writes what has changed."""
        last = decisions[-KEPT:]
        if last != self._decisions:
            self._write("decisions", [asdict(each) for each in last])
            self._decisions = last
        if learned != self._learned:
            self._write("learned", learned)
            self._learned = learned

    def _write(self, what: str, values: object) -> None:
        _internal_kv_put(self._key(what), json.dumps(values).encode(), overwrite=True)

    def _key(self, what: str) -> bytes:
        return f"riverrun:{self._name}:{what}".encode()
