"""A session store and a blob store in this process's memory, with the rules of the real ones. For tests and the
simulator."""

from __future__ import annotations

import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.checkpoints import Manifest
from riverrun.store.jobs import MemoryJobs
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


class MemoryStore:
    """See `records.Store`. now: seconds, for expiry. run: of its server; a test that restarts it changes that."""

    def __init__(self, ttls: Ttls = TTLS, now: Callable[[], float] = time.time):
        self._ttls = ttls
        self._now = now
        self.run = "memory"
        self.jobs = MemoryJobs()
        self._born: tuple[str, float] | None = None
        self._records: dict[str, str] = {}
        self._logs: dict[str, deque[str]] = {}
        self._expiry: dict[str, float] = {}
        self._counted: set[str] = set()
        self._gateways: dict[str, tuple[str, float]] = {}

    async def create(self, record: SessionRecord) -> SessionRecord:
        self._expire()
        for other in self._all():
            same = record.client_id and (other.tenant, other.client_id) == (record.tenant, record.client_id)
            if other.id == record.id or (same and not other.state.ended):
                return other
        return self._write(replace(record, version=1))

    async def admit(self, record: SessionRecord, most: int) -> bool:
        others = [r for r in self._all() if r.tenant == record.tenant and r.id in self._counted and not r.state.ended]
        alive = await self.gateways()
        if sum(r.gateway in alive for r in others if r.id != record.id) >= most:
            return False
        self._counted.add(record.id)
        return True

    async def get(self, session: str) -> SessionRecord | None:
        self._expire()
        text = self._records.get(session)
        return _read(text) if text else None

    async def page(
        self, size: int = 50, token: str = "", include_ended: bool = False, tenant: str | None = None
    ) -> Page:
        self._expire()
        after = parse_token(token)
        rows = sorted((r for r in self._all() if include_ended or not r.state.ended), key=_order, reverse=True)
        rows = [r for r in rows if (after is None or _order(r) < after) and tenant in (None, r.tenant)]
        page = tuple(rows[:size])
        return Page(page, make_token(page[-1]) if len(rows) > size else "")

    async def update(self, record: SessionRecord, drop: int = 0, has: int = ANY) -> SessionRecord:
        stored = await self._held(record, has)
        if stored.version != record.version:
            raise Conflict(f"session {record.id} has version {stored.version}, not {record.version}")
        lines = self._logs.get(record.id, deque())
        for _ in range(min(drop, len(lines))):
            lines.popleft()
        return self._write(replace(record, version=record.version + 1))

    async def take(self, session: str, version: int, epoch: int, nonce: str) -> SessionRecord:
        stored = await self.get(session)
        if stored is None or stored.version != version:
            raise Conflict(f"session {session} has not version {version}")
        if epoch <= stored.epoch:
            raise BadRequest(f"epoch {epoch} must be above {stored.epoch}")
        return self._write(replace(stored, version=version + 1, epoch=epoch, nonce=nonce))

    async def log(self, record: SessionRecord, entry: ControlEntry, has: int = ANY) -> None:
        await self._held(record, has)
        self._logs.setdefault(record.id, deque()).append(entry.to_json())

    async def read_log(self, session: str) -> tuple[ControlEntry, ...]:
        self._expire()
        return tuple(ControlEntry.from_json(line) for line in self._logs.get(session, ()))

    async def delete(self, session: str) -> None:
        self._records.pop(session, None)
        self._logs.pop(session, None)
        self._expiry.pop(session, None)
        self._counted.discard(session)

    async def heartbeat(self, gateway: str, address: str, ttl_s: float) -> None:
        self._gateways[gateway] = (address, self._now() + ttl_s)

    async def gateways(self) -> Mapping[str, str]:
        now = self._now()
        self._gateways = {name: (address, end) for name, (address, end) in self._gateways.items() if end > now}
        return {name: address for name, (address, _) in self._gateways.items()}

    async def identity(self) -> StoreIdentity:
        self._born = self._born or (secrets.token_hex(8), self._now())
        return StoreIdentity(self.run, *self._born)

    def wipe(self) -> None:
        """It has lost everything."""
        self._born = None
        for held in (self._records, self._logs, self._expiry, self._counted, self._gateways):
            held.clear()

    async def check(self) -> None:
        """Raises Corrupt for what belongs to no record, and for a record that would stay for ever."""
        orphans = (set(self._logs) | set(self._expiry)) - set(self._records)
        lasting = set(self._records) - set(self._expiry)
        if orphans or lasting:
            raise Corrupt(f"logs without record: {sorted(orphans)}, without expiry: {sorted(lasting)}")

    async def _held(self, record: SessionRecord, has: int) -> SessionRecord:
        stored = await self.get(record.id)
        if stored is None or (stored.epoch, stored.nonce) != (record.epoch, record.nonce):
            raise Conflict(f"session {record.id} is not held with epoch {record.epoch}")
        if has not in (ANY, lines := len(self._logs.get(record.id, ()))):
            raise Conflict(f"the control log of session {record.id} has {lines} lines, not {has}")
        return stored

    def _write(self, record: SessionRecord) -> SessionRecord:
        self._records[record.id] = record.to_json()
        self._expiry[record.id] = self._now() + self._ttls.of(record.state)
        return record

    def _all(self) -> list[SessionRecord]:
        return [_read(text) for text in self._records.values()]

    def _expire(self) -> None:
        for session in [s for s, end in self._expiry.items() if end <= self._now()]:
            self._records.pop(session, None)
            self._logs.pop(session, None)
            self._expiry.pop(session, None)


@lru_cache(maxsize=256)
def _read(text: str) -> SessionRecord:
    """Nobody changes a record, and most are read several times as they are."""
    return SessionRecord.from_json(text)


def _order(record: SessionRecord) -> tuple[float, str]:
    return record.created, record.id


class MemoryBlobs:
    """Checkpoints in this process's memory, with the methods of `BlobStore` and the awaitable ones a runner uses.

    damaged: paths whose blob can't be read. is_full: nothing can be written.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """now: seconds, for the age of what is written."""
        self._now = now
        self._times: dict[str, float] = {}
        self.damaged: set[str] = set()
        self.is_full = False
        self._held: dict[str, tuple[Manifest, dict[str, np.ndarray]]] = {}
        self._count = 0

    def write(self, manifest: Manifest, tensors: Mapping[str, np.ndarray]) -> Manifest:
        if self.is_full:
            raise Unavailable("no space left")
        self._count += 1
        path = f"{manifest.session}/{manifest.stage}/{manifest.epoch}-{manifest.mark.seq}-{self._count}"
        placed = replace(manifest, path=path)
        self._times[path] = self._now()
        self._held[path] = placed, {name: array.copy() for name, array in tensors.items()}
        return placed

    def read(self, manifest: Manifest) -> dict[str, np.ndarray]:
        if manifest.path not in self._held or manifest.path in self.damaged:
            raise Corrupt(f"checkpoint {manifest.path} is damaged or gone")
        return {name: array.copy() for name, array in self._held[manifest.path][1].items()}

    @property
    def paths(self) -> list[str]:
        return list(self._held)

    async def manifests(self, session: str) -> list[Manifest]:
        return sorted((m for m, _ in self._held.values() if m.session == session), key=lambda m: m.order)

    async def delete(self, manifest: Manifest) -> None:
        self._held.pop(manifest.path, None)

    async def max_epoch(self, session: str) -> int:
        return max((m.epoch for m, _ in self._held.values() if m.session == session), default=0)

    async def sessions(self) -> list[str]:
        return sorted({m.session for m, _ in self._held.values()})

    async def age_s(self, session: str, now: float) -> float:
        times = [self._times[path] for path, (m, _) in self._held.items() if m.session == session]
        return now - max(times, default=-math.inf)

    async def sweep(self, session: str, before: float) -> None:
        """Nothing here is ever left half written."""

    async def forget(self, session: str) -> None:
        self._held = {path: each for path, each in self._held.items() if each[0].session != session}
