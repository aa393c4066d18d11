"""Who calls: a name, its tenant, and what its role lets it do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from riverrun.configs.auth import TENANT
from riverrun.models.base import BadRequest


class Role(IntEnum):
    """Each may do what the one before it may."""

    VIEWER = 1
    """Sees its tenant's sessions and jobs, and watches streams."""
    CONTROLLER = 2
    """Opens, steers and ends them."""
    ADMIN = 3
    """All of it, for every tenant; and what concerns the service itself."""


@dataclass(frozen=True)
class Principal:
    """tenant: whose sessions it sees ("": of an open service, where everything is everybody's)."""

    tenant: str
    role: Role
    name: str = ""

    def sees(self, tenant: str) -> bool:
        """Whether what belongs to `tenant` is there for it at all."""
        return self.role is Role.ADMIN or self.tenant == tenant

    @property
    def scope(self) -> str | None:
        """The tenant whose things it is shown; None: those of all."""
        return None if self.role is Role.ADMIN else self.tenant


ANYBODY = Principal("", Role.ADMIN)
"""Whoever reaches an open service."""


def principal(tenant: object, role: object, name: object) -> Principal:
    """Raises BadRequest for a tenant's name that can't be one, or a role there is not."""
    if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
        raise BadRequest(f"tenant must be 1..64 letters, digits, '.', '_' or '-', got {tenant!r}")
    if not isinstance(role, str) or role.upper() not in Role.__members__:
        raise BadRequest(f"role must be {', '.join(r.name.lower() for r in Role)}, got {role!r}")
    return Principal(tenant, Role[role.upper()], str(name))
