"""Whose turn it is where not all can be served in time: the tenant's that has had least of the actor lately."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

HALF_S = 10.0
"""What a tenant has had counts half after so long: who comes back after a silence gets no more than a short start."""


@dataclass(frozen=True)
class Used:
    """ms: of steps, by tenant, as it counted at time `at`, seconds. A value: `after` returns the next one."""

    at: float = 0.0
    ms: Mapping[str, float] = field(default_factory=dict)

    def after(self, now: float, members: Sequence[str], took_ms: float) -> Used:
        """A step was shared by sessions of these tenants, each of which had its part of it. Who had next to nothing is
        forgotten."""
        fade = 0.5 ** ((now - self.at) / HALF_S)
        left = {tenant: ms * fade for tenant, ms in self.ms.items() if ms * fade > 0.01}
        for tenant in members:
            left[tenant] = left.get(tenant, 0.0) + took_ms / len(members)
        return Used(now, left)

    def least(self, tenants: Collection[str]) -> str:
        """Of these; the first by name of several."""
        return min(tenants, key=lambda tenant: (self.ms.get(tenant, 0.0), tenant))
