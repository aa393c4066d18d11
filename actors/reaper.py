"""Removes what nobody will come back for: checkpoints of sessions that are over, States that no session claims. Records
that call a session running which nobody runs are set right.

A loop in each gateway; what one has done the others find done. It decides from the records of the store, so it waits
while the store is away or may have forgotten something.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from enum import Enum

from riverrun.actors.health import Resident
from riverrun.actors.host import SessionHost
from riverrun.actors.vault import Vault
from riverrun.configs.durability import CheckpointConfig
from riverrun.graphs.stage import Epoch
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.rebuild import noted
from riverrun.store.records import SessionRecord, SessionState

log = logging.getLogger(__name__)
PAGE = 200
"""Records read at once."""
STRAY_S = 600.0
"""A blob under way has no manifest yet; none takes so long to write."""


class Fate(Enum):
    """What is to be done with the checkpoints of a session."""

    KEEP = "somebody may need them"
    FORGET = "delete them"
    CLOSE = "end the session, which was put away too long ago"


def fate(
    stored: SessionRecord | None, noted: SessionRecord | None, age_s: float, now: float, keep: CheckpointConfig
) -> Fate:
    """stored: the session's record; None if it is gone. noted: as its newest checkpoint has it, None if none can be
    read. age_s: since something was last written among its checkpoints. now: seconds since 1970."""
    if stored is None:
        is_away = noted is not None and noted.state is SessionState.SUSPENDED
        return Fate.FORGET if age_s > (keep.retention_s if is_away else keep.evidence_s) else Fate.KEEP
    if stored.state.runs:
        return Fate.KEEP
    since = now - stored.updated
    if stored.state is SessionState.SUSPENDED:
        return Fate.CLOSE if since > keep.retention_s else Fate.KEEP
    kept_s = keep.evidence_s if stored.state is SessionState.FAILED else keep.grace_s
    return Fate.FORGET if since > kept_s else Fate.KEEP


def is_orphan(resident: Resident, record: SessionRecord | None, alive: Collection[str], keep: CheckpointConfig) -> bool:
    """Whether nobody will call for a State any more: its session has ended, is put away, lives elsewhere, or was left
    by a gateway that died (it can go on from its checkpoints then). alive: the gateways that are.

    One that is being moved is on an actor that its record does not name yet, but not for as long as `keep.orphan_s`.
    """
    if resident.idle_s <= keep.orphan_s:
        return False
    if record is None or not record.state.runs or record.gateway not in alive:
        return True
    if record.state is SessionState.OPENING and resident.epoch == Epoch(record.epoch, record.nonce):
        return False  # its stages are being put on actors, and the record will say where once all are
    at = record.placement.get(resident.stage)
    return at is None or (at.actor, at.incarnation) != (resident.actor, resident.incarnation)


def left(record: SessionRecord, has_checkpoints: bool) -> SessionState | None:
    """What a session is that its record calls running, and nobody runs; None where that can't be known.

    Either its gateway died, and its client may come back; or it has ended, which the store was not told or forgot, and
    its checkpoints are deleted.
    """
    if has_checkpoints:
        return SessionState.SUSPENDED
    return SessionState.CLOSED if record.manifests else None


class Silence:
    """For how long records have stood as they are: a runner that can reach the store writes its own every few
    seconds."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, float]] = {}

    def of(self, records: Sequence[SessionRecord], now: float) -> list[float]:
        """Seconds that this one has seen each as it is. Those that are not among `records` are forgotten."""
        before, self._since = self._since, {}
        for record in records:
            version, since = before.get(record.id, (record.version, now))
            self._since[record.id] = record.version, since if version == record.version else now
        return [now - self._since[record.id][1] for record in records]


class Reaper:
    """vault: where checkpoints lie, if any are kept."""

    def __init__(self, host: SessionHost, vault: Vault | None, keep: CheckpointConfig) -> None:
        self._host, self._vault, self._keep = host, vault, keep
        self._silence = Silence()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._host.clock.sleep(self._keep.reap_s)
            await self._safely("what is left of sessions", self.round())

    async def round(self) -> None:
        """Looks at everything once. Raises Unavailable where store, blobs or controller are away."""
        try:
            await self._host.grants.check()
        except Unavailable:
            self._silence = Silence()  # nobody could write
            raise
        if self._vault:
            for session in await self._vault.sessions():
                await self._safely(f"session {session}", self._reap(self._vault, session))
            await self._set_right(self._vault)
        alive = {*await self._host.store.gateways(), self._host.name}
        for resident in await self._host.directory.residents():
            await self._safely(f"session {resident.session}", self._free(resident, alive))

    async def _reap(self, vault: Vault, session: str) -> None:
        if self._host.find(session):
            return
        now = self._host.clock.now()
        stored, age_s = await self._host.store.get(session), await vault.age_s(session, now)
        told = noted(await vault.manifests(session)) if stored is None else None
        match fate(stored, told, age_s, now, self._keep):
            case Fate.FORGET:
                log.info("session %s: its checkpoints are deleted, %.0f s old", session, age_s)
                await vault.forget(session)
            case Fate.CLOSE if stored:
                await self._host.elsewhere.discard(stored, f"nobody came back for {self._keep.retention_s:g} s")
            case _:
                await vault.sweep(session, now - STRAY_S)

    async def _set_right(self, vault: Vault) -> None:
        """Puts away what nobody has written for as long as its States stay."""
        running = [r async for r in self._stored() if r.state.runs and not self._host.find(r.id)]
        for record, seconds in zip(running, self._silence.of(running, self._host.clock.now()), strict=True):
            if seconds > self._keep.orphan_s:
                await self._safely(f"session {record.id}", self._put_away(vault, record))

    async def _stored(self) -> AsyncIterator[SessionRecord]:
        """All that the store has and calls not ended."""
        page = await self._host.store.page(PAGE)
        while True:
            for record in page.records:
                yield record
            if not page.token:
                return
            page = await self._host.store.page(PAGE, page.token)

    async def _put_away(self, vault: Vault, record: SessionRecord) -> None:
        state = left(record, bool(await vault.manifests(record.id)))
        if state is None:
            return  # its time to live is over some day
        log.warning("session %s: nobody runs it, it is %s", record.id, state.value)
        await self._host.elsewhere.settle(record, state, "nobody has run it for a while, and it was not said why")

    async def _free(self, resident: Resident, alive: Collection[str]) -> None:
        hosted = self._host.find(resident.session)
        record = hosted.runner.record if hosted else await self._host.store.get(resident.session)
        if is_orphan(resident, record, alive, self._keep):
            what = "session %s: its State of stage %s on %s is freed: nobody claims it"
            log.warning(what, resident.session, resident.stage, resident.actor)
            await self._host.directory.evict(resident)

    async def _safely(self, what: str, work: Awaitable[None]) -> None:
        """What can't be done now is tried again in the next round."""
        try:
            await work
        except (BadRequest, Unavailable, Corrupt) as error:
            log.info("%s: not looked after: %s", what, error)
