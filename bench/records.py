"""How many sessions a store carries: records as a runner writes them, against the store's own processor time.

`python -m riverrun.bench.records [--quick] [--json FILE]`

Asks `REDIS_URL` (of a cluster: redis+cluster://…), else an embedded server started for this. Each session has a record
with two checkpoints of each of two stages in short; all are written again and again, many at once, as the runners of
several gateways do. A live session writes its record every 5 s, and with each checkpoint, here every 10 s.
Writes a second are what this client gets; sessions a server are counted by the server's processor time, which a busy
machine does not change much, with half of a core in use.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from redis.asyncio.cluster import RedisCluster

from riverrun.bench.options import parsed
from riverrun.bench.report import table, write_json
from riverrun.store.embedded import store_url
from riverrun.store.records import Placement, PortMark, SessionRecord, SessionState
from riverrun.store.sessions import SessionStore, log_key, record_key

AT_ONCE = 64
WRITES_S = 1 / 5 + 1 / 10
"""A session's writes a second: its record every 5 s (`RunnerConfig.commit_every_s`), and with a checkpoint."""
USED = 0.5
"""Of a server's core, so that a failover's extra work finds room."""


@dataclass(frozen=True)
class Load:
    """What was measured. bytes: of a session's keys in the store. cpu_us: of the servers, a write."""

    sessions: int
    servers: int
    writes: int
    writes_s: float
    bytes: float
    cpu_us: float

    @property
    def carried(self) -> int:
        """Sessions that one server's thread carries."""
        return int(USED * 1e6 / self.cpu_us / WRITES_S)


def record(n: int) -> SessionRecord:
    prompt = {"prompt": "a large red ball on grass by day, the camera orbits left", "height": 480, "width": 832}
    mark = {"seq": 16, "consumed": {"frames": 16}, "emitted": {"frames": 192}}
    brief = {
        "epoch": 1,
        "kind": "exact",
        "path": f"{n:032x}/gen/000000000016-0001-4f2a9c",
        "nbytes": 6_170_000,
        "mark": mark,
    }
    places = {name: Placement(f"{name}-0", name, "0123456789ab", "0" * 64) for name in ("gen", "sr")}
    return SessionRecord(
        f"{n:032x}",
        "generate-upscale",
        tenant="acme",
        params={"gen": prompt},
        state=SessionState.RUNNING,
        nonce="0" * 16,
        gateway="0" * 12,
        placement=places,
        steps={"gen": 160, "sr": 80},
        consumed={"sr.frames": 80},
        forgotten={"sr.frames": 64},
        ports={"frames": PortMark(160, 1920, 1920, 1900)},
        manifests=tuple({**brief, "stage": stage} for stage in ("gen", "gen", "sr", "sr")),
        created=time.time(),
        token_digest="0" * 64,
    )


async def measured(url: str, sessions: int, rounds: int) -> Load:
    """Writes each session's record `rounds` times; they are deleted at the end."""
    store = SessionStore(url)
    client: Any = store._redis
    gate = asyncio.Semaphore(AT_ONCE)

    async def within(work: Any) -> Any:
        async with gate:
            return await work

    await store.ping()  # a cluster's client learns its servers with the first command, which must be alone
    found = await asyncio.gather(*(within(store.create(record(n))) for n in range(sessions)))
    before, began = await _cpu_s(client), time.perf_counter()
    for step in range(rounds):
        moved = (store.update(replace(each, steps={"gen": step, "sr": step})) for each in found)
        found = await asyncio.gather(*(within(work) for work in moved))
    took = time.perf_counter() - began
    cpu_s = await _cpu_s(client) - before
    sizes = [await client.memory_usage(key(found[0].id)) or 0 for key in (record_key, log_key)]
    servers = len(client.get_primaries()) if isinstance(client, RedisCluster) else 1
    await asyncio.gather(*(within(store.delete(each.id)) for each in found))
    await store.close()
    writes = sessions * rounds
    return Load(sessions, servers, writes, writes / took, float(sum(sizes)), 1e6 * cpu_s / writes)


async def _cpu_s(client: Any) -> float:
    """Processor time of all servers so far, seconds."""
    if not isinstance(client, RedisCluster):
        return _used(await client.info("cpu"))
    return sum([_used(await client.info("cpu", target_nodes=node)) for node in client.get_primaries()])


def _used(info: dict[str, Any]) -> float:
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])


def main(argv: Sequence[str] | None = None) -> None:
    options = parsed("records", __doc__ or "", argv)
    sessions, rounds = (200, 5) if options.quick else (2000, 5)
    with tempfile.TemporaryDirectory() as folder, store_url(Path(folder)) as url:
        load = asyncio.run(measured(url, sessions, rounds))
    found = {
        "sessions": load.sessions,
        "servers": load.servers,
        "writes": load.writes,
        "writes/s": round(load.writes_s),
        "bytes a session": load.bytes,
        "server CPU µs a write": round(load.cpu_us, 1),
        "sessions a server": load.carried,
    }
    print(table(tuple(found), [tuple(found.values())]))
    if options.json:
        write_json(options.json, "records", {"at_once": AT_ONCE, "writes_s": WRITES_S, "used": USED}, asdict(load))


if __name__ == "__main__":
    main(sys.argv[1:])
