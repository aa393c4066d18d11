"""One thing that `riverrun doctor` has looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """state: "ok", "note" (it works, but look) or "missing" (a service can't run)."""

    what: str
    state: str
    found: str
    advice: str = ""
