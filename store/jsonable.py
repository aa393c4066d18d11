"""JSON of frozen dataclasses: as `dataclasses.asdict` would give it, without copying all they hold first."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


def dumps(value: Any) -> str:
    """Compact JSON. Raises TypeError for what is neither JSON-able nor a dataclass of such."""
    return json.dumps(value, default=_fields, separators=(",", ":"))


def _fields(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return vars(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
