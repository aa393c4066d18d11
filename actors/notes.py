"""What a controller must not forget when it dies: kept where Ray keeps what it knows of the cluster (its GCS), as long
as the actors that it is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put


@dataclass(frozen=True)
class Notes:
    """frozen: nothing is moved and nothing scaled. cordons: actors' incarnations and nodes that sessions leave, and
    leaving: incarnations whose place others take, each with its time, seconds since 1970 (inf: whenever it may be)."""

    frozen: bool = False
    cordons: Mapping[str, float] = field(default_factory=dict)
    leaving: Mapping[str, float] = field(default_factory=dict)


class Notebook:
    """name: of the controller whose notes they are."""

    def __init__(self, name: str) -> None:
        self._key = f"riverrun:{name}".encode()
        self._holder = f"riverrun:{name}:holder".encode()

    def claim(self, who: str) -> None:
        """`who` holds it from now on, whoever held it before."""
        _internal_kv_put(self._holder, who.encode(), overwrite=True)

    def is_held_by(self, who: str) -> bool:
        return _internal_kv_get(self._holder) == who.encode()

    def read(self) -> Notes:
        """What a later version noted beyond these is not known here."""
        kept = _internal_kv_get(self._key)
        values: dict[str, Any] = json.loads(kept) if kept else {}
        return Notes(**{each.name: values[each.name] for each in fields(Notes) if each.name in values})

    def write(self, notes: Notes) -> None:
        _internal_kv_put(self._key, json.dumps(asdict(notes)).encode(), overwrite=True)
