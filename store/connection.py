"""Connections to one Redis, or to a Redis Cluster."""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from riverrun.models.base import BadRequest

CLUSTER = "+cluster"
"""In a URL's scheme: redis+cluster://, rediss+cluster://. It names one node, which knows the others."""


def plain(url: str) -> str:
    """The URL of the one node."""
    return url.replace(CLUSTER, "", 1)


def connect(url: str, timeout_s: float) -> Any:
    """A client that decodes replies; each command is tried twice. timeout_s: of connecting, and of each command. A
    cluster's first command must be alone (redis-py 8.1 breaks connections of others that come meanwhile). Raises
    BadRequest for another kind of URL."""
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 1),
    }
    try:
        if CLUSTER in url.partition("://")[0]:
            return RedisCluster.from_url(plain(url), **options)
        return redis.asyncio.from_url(url, **options)
    except ValueError as error:  # the URL may hold a password, so it is not shown
        raise BadRequest(f"redis_url: {error}") from None


async def runs(client: Any) -> str:
    """The run of the server, or of every server that takes writes: another one where any was restarted or replaced."""
    if not isinstance(client, RedisCluster):
        return (await client.info("server"))["run_id"]
    await client.initialize()
    found = [(await client.info("server", target_nodes=node))["run_id"] for node in client.get_primaries()]
    return " ".join(sorted(found))
