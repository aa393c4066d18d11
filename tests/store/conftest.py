"""Every store there is, so that one table of tests holds them to the same rules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from riverrun.store.embedded import EmbeddedServer
from riverrun.store.memory import MemoryStore
from riverrun.store.sessions import SessionStore

from .cluster import redis_cluster


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as url:
        yield url


@pytest.fixture(params=["memory", "redis", "cluster"])
def with_store(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs an async test with a fresh store of each sort; keywords go to the store."""
    url = {
        "memory": lambda: None,
        "redis": lambda: request.getfixturevalue("server").url,
        "cluster": lambda: request.getfixturevalue("cluster"),
    }[request.param]()

    def run(test: Callable[[Any], Any], **options: float) -> None:
        async def body() -> None:
            if url is None:
                await test(MemoryStore(**options))
                return
            store = SessionStore(url, **options)
            await store._redis.flushall()
            try:
                await test(store)
            finally:
                await store.close()

        asyncio.run(asyncio.wait_for(body(), 20))

    return run
