"""riverrun: a streaming service for unbounded video streams through causal models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from riverrun.client.aio import AsyncClient
    from riverrun.client.credentials import Tls
    from riverrun.client.embedded import serve
    from riverrun.client.errors import BadRequest, Denied, Error, NoRoom, NotFound, Rejected, Replaced, Unavailable
    from riverrun.client.sync import Client, connect
    from riverrun.client.types import Frame, Patience, Receipt
    from riverrun.graphs.graph import Graph

_HOMES = {
    "AsyncClient": "client.aio",
    "BadRequest": "client.errors",
    "Client": "client.sync",
    "Denied": "client.errors",
    "Error": "client.errors",
    "Frame": "client.types",
    "Graph": "graphs.graph",
    "NoRoom": "client.errors",
    "NotFound": "client.errors",
    "Patience": "client.types",
    "Receipt": "client.types",
    "Rejected": "client.errors",
    "Replaced": "client.errors",
    "Tls": "client.credentials",
    "Unavailable": "client.errors",
    "connect": "client.sync",
    "serve": "client.embedded",
}

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Client",
    "Denied",
    "Error",
    "Frame",
    "Graph",
    "NoRoom",
    "NotFound",
    "Patience",
    "Receipt",
    "Rejected",
    "Replaced",
    "Tls",
    "Unavailable",
    "__version__",
    "connect",
    "serve",
]


def __getattr__(name: str) -> Any:
    # Public names come when they are first used: `import riverrun` alone imports neither gRPC nor numpy nor torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'riverrun' has no attribute {name!r}; there are {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"riverrun.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
