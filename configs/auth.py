"""Who may call a service, and how much: the part of the configuration that is about trust."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from riverrun.models.base import BadRequest

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A tenant's name is also a folder's and part of the store's keys."""

EVERYBODY = "*"
"""In `AuthConfig.tenants`: the quota of each tenant that is not named."""


@dataclass(frozen=True)
class Quota:
    """What a tenant takes at most; null: no limit.

    sessions: live ones, over all gateways of one store. frames_per_s: delivered to its clients and jobs by one gateway,
    all together; it paces them and fails nothing.
    """

    sessions: int | None = None
    frames_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.sessions is not None and self.sessions < 0:
            raise BadRequest(f"a tenant's sessions must not be negative, got {self.sessions}")
        if self.frames_per_s is not None and not 0 < self.frames_per_s < math.inf:
            raise BadRequest(f"a tenant's frames_per_s must be finite and above 0, got {self.frames_per_s}")


@dataclass(frozen=True)
class AuthConfig:
    """Whom the service listens to.

    tokens_file: YAML or JSON, see `actors/tokens.py` ("": no tokens are taken). tenants: quotas by name; "*" is that of
    each tenant which is not named, and without it those have none. allow_open: serve others than this machine though
    nobody is asked who they are (behind a proxy that asks).
    """

    tokens_file: str = ""
    tenants: dict[str, Quota] = field(default_factory=dict)
    allow_open: bool = False

    def __post_init__(self) -> None:
        for name in self.tenants:
            if name != EVERYBODY and not TENANT.fullmatch(name):
                raise BadRequest(
                    f"tenant {name!r} must be 1..64 letters, digits, '.', '_' or '-', and begin with a letter or digit"
                )

    def quota(self, tenant: str) -> Quota:
        """What this tenant may take; nobody's (an open service has no tenants) is without limit."""
        return self.tenants.get(tenant) or (self.tenants.get(EVERYBODY) if tenant else None) or Quota()


@dataclass(frozen=True)
class TlsConfig:
    """PEM files. cert, key: the service's own ("": it speaks plain text). client_ca: who signs the certificates that
    clients must show ("": they need none)."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise BadRequest("tls.cert and tls.key go together: set both, or neither")
        if self.client_ca and not self.cert:
            raise BadRequest("tls.client_ca needs tls.cert and tls.key: a service without TLS sees no certificates")
