"""How many sessions a tenant has, over all gateways of a store.

    rr:tenant:<tenant>      sorted set: its sessions by time of creation

Counted and added in one step, so that two gateways can't both give the last place away. A session leaves the set with
the write that ends it; one whose gateway died stays until somebody asks for its place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from riverrun.store.records import SessionRecord

ADMIT = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 1 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
"""
PREFIX = "rr:tenant:"
Read = Callable[[list[str]], Awaitable[list[SessionRecord]]]


def tenant_key(tenant: str) -> str:
    return f"{PREFIX}{tenant}"


async def admit(
    redis: Any, script: Any, read: Read, gateways: Collection[str], record: SessionRecord, most: int
) -> bool:
    """Whether the session is among its tenant's `most`. read: records by id. gateways: those that live."""
    key = tenant_key(record.tenant)

    async def tried(places: int) -> bool:
        return bool(await script(keys=[key], args=[record.id, places, record.created]))

    if await tried(most):
        return True
    members = await redis.zrange(key, 0, -1)
    there = {found.id: found for found in await read(members)}
    gone = [member for member in members if member not in there or there[member].state.ended]
    if gone:
        await redis.zrem(key, *gone)
    # Those of a dead gateway count no more, but are kept: another gateway may take them over.
    orphans = sum(one.gateway not in gateways for name, one in there.items() if name not in gone)
    return await tried(most + orphans)
