"""A service of one's own, in this process tree, with a client: for the command line, notebooks and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from riverrun.client.loop import LoopThread
from riverrun.client.sync import Client

if TYPE_CHECKING:
    from riverrun.configs import ServiceConfig


def serve(config: str | None = None, overrides: Sequence[str] = ()) -> AbstractContextManager[Client]:
    """Starts a service and yields a client of it: `with riverrun.serve() as rr: rr.stream(...)`.

    config: a name in `configs` or a YAML file. overrides: "limits.jobs=3", "port=0". It stops with the block.
    """
    from riverrun.configs import load_service

    return embedded(load_service(config, overrides))


@contextmanager
def embedded(config: ServiceConfig) -> Iterator[Client]:
    """A running service and its client, on one loop thread (grpc.aio wants one loop in a process)."""
    from riverrun.actors.serve import Service

    loop = LoopThread("riverrun service")
    stack = AsyncExitStack()
    try:
        service = loop.run(stack.enter_async_context(Service(config)))
        is_open = config.is_open and not config.tls.cert  # then what the environment says is for other services
        shown: dict[str, Any] = {"token": "", "tls": False} if is_open else {}
        with Client(service.address, loop=loop, **shown) as rr:
            yield rr
    finally:
        loop.run(stack.aclose())
        loop.stop()
