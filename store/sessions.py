"""Sessions in Redis (or Valkey), one server or a cluster: a hash and a list a session, an index for paging, a heartbeat
a gateway.

    rr:{<session>}:record   hash: version, epoch, nonce, json     (the braces keep a session in one cluster slot)
    rr:{<session>}:log      list: control log, cut with the record
    rr:client:<tenant>:<client_id>   the session that a client id stands for
    rr:tenant:<tenant>      sorted set: what counts as its sessions (`store/tenants.py`)
    rr:sessions             sorted set: session by time of creation; a hint, mended as pages are read and sessions come
    rr:gateway:<name>, rr:gateways   address with a TTL, and sorted set: gateway by expiry
    rr:born                 a name for all this, and when it was given: where it is another one, all was lost

Everything of a session expires so long after its last write as `Ttls` says (the runner of a live one writes every few
seconds; one that nobody writes any more is an orphan). No command here scans the key space, and no script touches keys
of two slots. Jobs: `store/jobs.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from riverrun.models.base import BadRequest, Corrupt
from riverrun.store import jobs, tenants
from riverrun.store.connection import connect, runs
from riverrun.store.reached import reached
from riverrun.store.records import (
    ANY,
    TTLS,
    Conflict,
    ControlEntry,
    Page,
    SessionRecord,
    StoreIdentity,
    Ttls,
    make_token,
    parse_token,
)

INDEX = "rr:sessions"
GATEWAYS = "rr:gateways"
BORN = "rr:born"
BATCH = 100
MENDED = 4
NEVER = -1  # PTTL of a key that does not expire
Args = list[str | int]

_CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'epoch', ARGV[2], 'nonce', ARGV[3], 'json', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
"""
_WRITE = """
local at = redis.call('HMGET', KEYS[1], 'version', 'epoch', 'nonce')
if at[1] ~= ARGV[1] or at[2] ~= ARGV[2] or at[3] ~= ARGV[3] then return 0 end
if ARGV[10] ~= '-1' and redis.call('LLEN', KEYS[2]) ~= tonumber(ARGV[10]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[4], 'epoch', ARGV[5], 'nonce', ARGV[6], 'json', ARGV[7])
redis.call('LTRIM', KEYS[2], ARGV[9], -1)
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
return 1
"""
_LOG = """
local at = redis.call('HMGET', KEYS[1], 'epoch', 'nonce')
if at[1] ~= ARGV[1] or at[2] ~= ARGV[2] then return 0 end
if ARGV[5] ~= '-1' and redis.call('LLEN', KEYS[2]) ~= tonumber(ARGV[5]) then return 0 end
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
"""
_CLAIM = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return ARGV[2]
"""

_FREE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


def record_key(session: str) -> str:
    return f"rr:{{{session}}}:record"


def log_key(session: str) -> str:
    return f"rr:{{{session}}}:log"


def client_key(record: SessionRecord) -> str:
    return f"rr:client:{record.tenant}:{record.client_id}"


class SessionStore:
    """See `records.Store`. url: redis://, rediss:// or unix://, of a cluster's node redis+cluster:// or
    rediss+cluster://. timeout_s: of connecting, and of each command.

    Raises BadRequest for another kind of URL.
    """

    def __init__(self, url: str, timeout_s: float = 2.0, ttls: Ttls = TTLS):
        self._redis = connect(url, timeout_s)
        self._ttls = ttls
        self.jobs = jobs.RedisJobs(self._redis)
        self._create = self._redis.register_script(_CREATE)
        self._write = self._redis.register_script(_WRITE)
        self._log = self._redis.register_script(_LOG)
        self._claim = self._redis.register_script(_CLAIM)
        self._free = self._redis.register_script(_FREE)
        self._admit = self._redis.register_script(tenants.ADMIT)

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raises Unavailable if the store can't be reached."""
        with reached():
            await self._redis.ping()

    async def create(self, record: SessionRecord) -> SessionRecord:
        """The record is written before its client id is claimed, so a claimed id always has one to show."""
        new = replace(record, version=1)
        with reached():
            fields: Args = [1, new.epoch, new.nonce, new.to_json(), self._ttl_ms(new)]
            if not await self._create(keys=[record_key(new.id)], args=fields):
                return await self.get(new.id) or await self.create(record)  # it expired in between
            await self._redis.zadd(INDEX, {new.id: new.created})
            await self._mend()
        winner = await self._claimed(new) if new.client_id else new
        if winner.id != new.id:
            await self.delete(new.id)
        return winner

    async def _mend(self) -> None:
        """Takes a few members whose records have expired out of the index: more than come in, so that it stays as
        large as what is there, even if nobody ever reads a page."""
        ids = await self._redis.zrandmember(INDEX, MENDED)
        async with self._redis.pipeline(transaction=False) as pipe:
            for session in ids:
                pipe.exists(record_key(session))
            there = await pipe.execute()
        if gone := [session for session, found in zip(ids, there, strict=True) if not found]:
            await self._redis.zrem(INDEX, *gone)

    async def _claimed(self, new: SessionRecord) -> SessionRecord:
        """The record that holds the client id now: `new`, or a live one that had it before."""
        dead = ""
        while True:
            with reached():
                held = await self._claim(keys=[client_key(new)], args=[dead, new.id, self._ttl_ms(new)])
            if held == new.id:
                return new
            holder = await self.get(held)
            if holder is not None and not holder.state.ended:
                return holder
            dead = held

    async def admit(self, record: SessionRecord, most: int) -> bool:
        alive = await self.gateways()
        with reached():
            return await tenants.admit(self._redis, self._admit, self._read, alive, record, most)

    async def get(self, session: str) -> SessionRecord | None:
        with reached():
            text = await self._redis.hget(record_key(session), "json")
        return SessionRecord.from_json(text) if text else None

    async def page(
        self, size: int = 50, token: str = "", include_ended: bool = False, tenant: str | None = None
    ) -> Page:
        after = parse_token(token)
        found: list[SessionRecord] = []
        skip = 0
        while len(found) <= size:
            with reached():
                top = "+inf" if after is None else repr(after[0])
                rows = await self._redis.zrevrangebyscore(INDEX, top, "-inf", skip, BATCH, withscores=True)
                ids = [member for member, score in rows if after is None or (score, member) < after]
                records = await self._read(ids)
            if not rows:
                break
            found += [r for r in records if (include_ended or not r.state.ended) and tenant in (None, r.tenant)]
            skip += len(rows) - (len(ids) - len(records))
        page = tuple(found[:size])
        return Page(page, make_token(page[-1]) if len(found) > size else "")

    async def _read(self, ids: list[str]) -> list[SessionRecord]:
        """Records that are still there; the others leave the index."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for session in ids:
                pipe.hget(record_key(session), "json")
            texts = await pipe.execute() if ids else []
        if gone := [session for session, text in zip(ids, texts, strict=True) if text is None]:
            await self._redis.zrem(INDEX, *gone)
        return [SessionRecord.from_json(text) for text in texts if text is not None]

    async def update(self, record: SessionRecord, drop: int = 0, has: int = ANY) -> SessionRecord:
        return await self._replace(record, replace(record, version=record.version + 1), drop, has)

    async def take(self, session: str, version: int, epoch: int, nonce: str) -> SessionRecord:
        stored = await self.get(session)
        if stored is None or stored.version != version:
            raise Conflict(f"session {session} has not version {version}")
        if epoch <= stored.epoch:
            raise BadRequest(f"epoch {epoch} must be above {stored.epoch}")
        return await self._replace(stored, replace(stored, version=version + 1, epoch=epoch, nonce=nonce))

    async def _replace(self, old: SessionRecord, new: SessionRecord, drop: int = 0, has: int = ANY) -> SessionRecord:
        ttl = self._ttl_ms(new)
        guard: Args = [old.version, old.epoch, old.nonce]
        fields: Args = [new.version, new.epoch, new.nonce, new.to_json(), ttl, drop, has]
        with reached():
            if not await self._write(keys=[record_key(new.id), log_key(new.id)], args=guard + fields):
                raise Conflict(f"session {new.id} is not as version {old.version} of epoch {old.epoch} any more")
            if new.client_id:
                await self._redis.pexpire(client_key(new), ttl)
            if new.tenant and new.state.ended:
                await self._redis.zrem(tenants.tenant_key(new.tenant), new.id)
        return new

    def _ttl_ms(self, record: SessionRecord) -> int:
        return int(self._ttls.of(record.state) * 1000)

    async def log(self, record: SessionRecord, entry: ControlEntry, has: int = ANY) -> None:
        args: Args = [record.epoch, record.nonce, entry.to_json(), self._ttl_ms(record), has]
        with reached():
            if not await self._log(keys=[record_key(record.id), log_key(record.id)], args=args):
                raise Conflict(f"session {record.id} is not held with epoch {record.epoch}, or its log is another")

    async def read_log(self, session: str) -> tuple[ControlEntry, ...]:
        with reached():
            lines = await self._redis.lrange(log_key(session), 0, -1)
        return tuple(ControlEntry.from_json(line) for line in lines)

    async def delete(self, session: str) -> None:
        """Its client id, if it holds one, is free again."""
        record = None
        with suppress(Corrupt):  # what can't be read can be deleted
            record = await self.get(session)
        with reached():
            if record and record.client_id:
                await self._free(keys=[client_key(record)], args=[session])
            await self._redis.delete(record_key(session), log_key(session))
            await self._redis.zrem(INDEX, session)

    async def check(self) -> None:
        """Raises Corrupt for a key of ours that would stay for ever. Scans the key space: for tests."""
        with reached():
            async for key in self._redis.scan_iter("rr:*", count=1000):
                lasts = key in (INDEX, GATEWAYS, BORN, jobs.INDEX, jobs.RUNNING) or key.startswith(tenants.PREFIX)
                if not lasts and await self._redis.pttl(key) == NEVER:
                    raise Corrupt(f"{key} never expires")

    async def heartbeat(self, gateway: str, address: str, ttl_s: float) -> None:
        now = time.time()
        with reached():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(f"rr:gateway:{gateway}", address, px=int(ttl_s * 1000))
                pipe.zadd(GATEWAYS, {gateway: now + ttl_s})
                pipe.zremrangebyscore(GATEWAYS, "-inf", now - 3600)
                await pipe.execute()

    async def identity(self) -> StoreIdentity:
        with reached():
            await self._redis.set(BORN, f"{secrets.token_hex(8)} {time.time()!r}", nx=True)
            born, at = (await self._redis.get(BORN)).split()
            return StoreIdentity(await runs(self._redis), born, float(at))

    async def gateways(self) -> Mapping[str, str]:
        with reached():
            names = await self._redis.zrange(GATEWAYS, 0, -1)
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.get(f"rr:gateway:{name}")
                found = await pipe.execute() if names else []
        return {name: address for name, address in zip(names, found, strict=True) if address is not None}
