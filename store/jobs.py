"""Jobs in Redis: what another gateway must know to go on with one whose gateway has died.

    rr:{jobs}:<id>:job                  hash: version, json
    rr:{jobs}:<tenant>:<client>:client  the job that a client id stands for
    rr:{jobs}:all                       sorted set: job by time of creation
    rr:{jobs}:running                   set: those that have not ended

All in one slot of a cluster (the braces), since a job and the lists it is in are written in one step; jobs are few.
Where its session stands is in the session's record, how many frames are on disk its files say; so the record is written
when something changes that neither tells, and every few seconds for those who watch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from riverrun.models.base import Corrupt
from riverrun.store.reached import reached
from riverrun.store.records import ENDED_TTL_S, LIVE_TTL_S, Conflict, ScriptEntry

INDEX, RUNNING = "rr:{jobs}:all", "rr:{jobs}:running"
LISTED = 512
"""So many jobs are listed, the newest."""

_CREATE = """
if KEYS[4] then
  local held = redis.call('GET', KEYS[4])
  if held and redis.call('EXISTS', 'rr:{jobs}:' .. held .. ':job') == 1 then return held end
  redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[4])
end
redis.call('HSET', KEYS[1], 'version', 1, 'json', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -ARGV[5] - 1)
redis.call('SADD', KEYS[3], ARGV[1])
return ARGV[1]
"""
_UPDATE = """
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'json', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if ARGV[6] == '1' then redis.call('SREM', KEYS[2], ARGV[1]) end
return 1
"""


@dataclass(frozen=True)
class JobRecord:
    """One job. Times are seconds since 1970.

    graph, params, seed, frames, controls, sinks: what is asked for. outputs: by port that is written, frames a second,
    height and width, once they are known. state: "running", or how it ended. gateway: renders
    it; "" where the one that did has left. cancel: why it is to be stopped, once somebody wants that. frames_done: as
    of the last write. version: rises by one with each.
    """

    id: str
    graph: str
    params: Mapping[str, Any]
    seed: int
    frames: int
    controls: tuple[ScriptEntry, ...]
    sinks: Mapping[str, str]
    tenant: str = ""
    client_id: str = ""
    session: str = ""
    outputs: Mapping[str, tuple[float, int, int]] = field(default_factory=dict)
    gateway: str = ""
    state: str = "running"
    reason: str = ""
    cancel: str = ""
    frames_done: int = 0
    created: float = 0.0
    version: int = 1

    @property
    def has_ended(self) -> bool:
        return self.state != "running"

    @property
    def ttl_s(self) -> float:
        return ENDED_TTL_S if self.has_ended else LIVE_TTL_S

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> JobRecord:
        """Raises Corrupt."""
        try:
            raw = json.loads(text)
            return JobRecord(**{**raw, "controls": tuple(ScriptEntry(**each) for each in raw["controls"])})
        except (ValueError, TypeError, KeyError) as error:
            raise Corrupt(f"job record can't be read: {error}") from error


class Jobs(Protocol):
    """What a gateway asks of the store about jobs. Each method raises Unavailable when it can't be reached."""

    async def create(self, record: JobRecord) -> JobRecord:
        """Writes a new one, or returns the one there is of the same tenant and client id."""

    async def get(self, job: str) -> JobRecord | None: ...

    async def all(self, tenant: str | None = None) -> Sequence[JobRecord]:
        """Of one tenant or (None) all, newest first."""

    async def running(self) -> Sequence[JobRecord]:
        """Those that have not ended, whoever runs them."""

    async def delete(self, record: JobRecord) -> None:
        """It never was."""

    async def update(self, record: JobRecord) -> JobRecord:
        """Replaces it if the stored one has the same version; returns it with version + 1. Raises Conflict."""


class RedisJobs:
    """`Jobs` over a connection to Redis."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._create = redis.register_script(_CREATE)
        self._update = redis.register_script(_UPDATE)

    async def create(self, record: JobRecord) -> JobRecord:
        client = [f"rr:{{jobs}}:{record.tenant}:{record.client_id}:client"] if record.client_id else []
        with reached():
            args = [record.id, record.to_json(), repr(record.created), int(record.ttl_s * 1000), LISTED]
            held = await self._create(keys=[_key(record.id), INDEX, RUNNING, *client], args=args)
        return (await self.get(held) or record) if held != record.id else record

    async def get(self, job: str) -> JobRecord | None:
        with reached():
            text = await self._redis.hget(_key(job), "json")
        return JobRecord.from_json(text) if text else None

    async def all(self, tenant: str | None = None) -> Sequence[JobRecord]:
        with reached():
            ids = await self._redis.zrevrange(INDEX, 0, LISTED - 1)
            found, gone = await self._read(ids)
            if gone:
                await self._redis.zrem(INDEX, *gone)
        return [record for record in found if tenant in (None, record.tenant)]

    async def running(self) -> Sequence[JobRecord]:
        with reached():
            found, gone = await self._read(sorted(await self._redis.smembers(RUNNING)))
            if gone:
                await self._redis.srem(RUNNING, *gone)
        return found

    async def _read(self, ids: Sequence[str]) -> tuple[list[JobRecord], list[str]]:
        """Records that are there, and ids of the others."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in ids:
                pipe.hget(_key(job), "json")
            texts = await pipe.execute() if ids else []
        gone = [job for job, text in zip(ids, texts, strict=True) if text is None]
        return [JobRecord.from_json(text) for text in texts if text is not None], gone

    async def update(self, record: JobRecord) -> JobRecord:
        new = replace(record, version=record.version + 1)
        ends = int(new.has_ended)
        args = [record.id, record.version, new.version, new.to_json(), int(new.ttl_s * 1000), ends]
        with reached():
            if not await self._update(keys=[_key(record.id), RUNNING], args=args):
                raise Conflict(f"job {record.id} is not version {record.version} any more")
        return new

    async def delete(self, record: JobRecord) -> None:
        with reached():
            await self._redis.delete(_key(record.id))  # what leads there is mended by who reads it


@dataclass
class MemoryJobs:
    """`Jobs` in this process."""

    held: dict[str, JobRecord] = field(default_factory=dict)

    async def create(self, record: JobRecord) -> JobRecord:
        for other in self.held.values():
            if record.client_id and (other.tenant, other.client_id) == (record.tenant, record.client_id):
                return other
        self.held[record.id] = record
        return record

    async def get(self, job: str) -> JobRecord | None:
        return self.held.get(job)

    async def all(self, tenant: str | None = None) -> Sequence[JobRecord]:
        return [record for record in reversed(self.held.values()) if tenant in (None, record.tenant)]

    async def running(self) -> Sequence[JobRecord]:
        return [record for record in self.held.values() if not record.has_ended]

    async def update(self, record: JobRecord) -> JobRecord:
        if self.held[record.id].version != record.version:
            raise Conflict(f"job {record.id} is not version {record.version} any more")
        self.held[record.id] = replace(record, version=record.version + 1)
        return self.held[record.id]

    async def delete(self, record: JobRecord) -> None:
        self.held.pop(record.id, None)


def _key(job: str) -> str:
    return f"rr:{{jobs}}:{job}:job"
