"""Sessions that do not run at this gateway: what store and checkpoints tell of them, and how one gets hold of them."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection, Iterable
from dataclasses import replace

from riverrun.actors.errors import Denied, NotFound
from riverrun.actors.grants import Grants
from riverrun.actors.vault import Vault
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.waiting import Clock
from riverrun.models.base import BadRequest, Unavailable
from riverrun.store.rebuild import noted, rebuilt
from riverrun.store.records import Conflict, SessionRecord, SessionState, Store, token_digest

TAKE_TRIES = 8


class Elsewhere:
    """name: of this gateway."""

    def __init__(self, store: Store, vault: Vault | None, grants: Grants, clock: Clock, name: str) -> None:
        self._store, self._vault, self._grants, self._clock, self._name = store, vault, grants, clock, name

    async def record(self, session: str) -> SessionRecord:
        """What the store has of a session; if it has lost it, what its checkpoints tell. Raises NotFound."""
        record = await self._store.get(session) or await self._rebuilt(session)
        if record is None:
            await self._grants.check()  # it may be one that the store has yet to be told of again
            raise no_session(session)
        return record

    async def _rebuilt(self, session: str) -> SessionRecord | None:
        try:
            left = noted(await self._vault.manifests(session)) if self._vault else None
        except BadRequest:  # nothing that could be a session's name
            return None
        if self._vault is None or left is None:
            return None
        await self._grants.check_lost()
        record = rebuilt(left, await self._vault.age_s(session, self._clock.now()))
        return await self._store.create(record) if record else None

    async def shown(self, records: Iterable[SessionRecord]) -> list[SessionRecord]:
        """Stored records as those who ask should see them: what only the record calls live counts as failed."""
        alive = await self._store.gateways()
        return [as_seen(record, self._name, alive, keeps=bool(self._vault)) for record in records]

    async def discard(self, record: SessionRecord, reason: str) -> None:
        """Ends a suspended session: its record says so, and what is kept for it is deleted. Raises Conflict if it is
        not as `record` has it any more."""
        await self.settle(replace(record, manifests=()), SessionState.CLOSED, reason)
        if self._vault:
            await self._vault.forget(record.id)

    async def settle(self, record: SessionRecord, state: SessionState, reason: str) -> None:
        """Writes what has become of a session that nobody runs. Raises Conflict if it is not as `record` has it any
        more."""
        taken = await self._store.take(record.id, record.version, record.epoch + 1, secrets.token_hex(8))
        await self._store.update(replace(taken, state=state, reason=reason, manifests=record.manifests))

    async def take(self, session: str, token: str | None) -> SessionRecord:
        """Puts this gateway in charge of one. token: None for who needs none. Raises NotFound, Denied, SessionEnded,
        Unavailable (this service keeps no checkpoints), Conflict."""
        if self._vault is None:
            raise Unavailable(f"session {session} does not run here, and this service keeps no checkpoints")
        for attempt in range(TAKE_TRIES):
            record = await self.record(session)
            if token is not None:
                check_token(record, token)
            if record.state.ended:
                raise SessionEnded(f"session {session} is {record.state.value}: {record.reason}")
            epoch = max(record.epoch, await self._vault.max_epoch(session)) + 1
            try:
                return await self._store.take(session, record.version, epoch, secrets.token_hex(8))
            except Conflict:  # its runner lives and has just written
                if attempt == TAKE_TRIES - 1:
                    raise
        raise AssertionError("the last try returns or raises")

    def why_not_here(self, record: SessionRecord) -> BadRequest | Unavailable:
        """Why nothing can be done to it here."""
        about = f"session {record.id}"
        if record.state.ended:
            return SessionEnded(f"{about} is {record.state.value}: {record.reason}")
        if record.state is SessionState.SUSPENDED:
            return SessionEnded(f"{about} is suspended: {record.reason}; connect with its resume_token")
        if record.gateway == self._name:
            return SessionEnded(f"{about} has ended; the store was away, so why is not known")
        return Unavailable(f"{about} is of gateway {record.gateway or 'unknown'}, which is not this one")


def check_token(record: SessionRecord, token: str) -> None:
    """Raises Denied unless `token` is the session's resume token."""
    if not hmac.compare_digest(token_digest(token), record.token_digest):
        raise Denied("resume_token is not this session's; Sessions.Create gives it to the creator")


def no_session(session: str) -> NotFound:
    return NotFound(f"there is no session {session!r}; it may have ended and been forgotten")


def as_seen(record: SessionRecord, here: str, alive: Collection[str], keeps: bool = False) -> SessionRecord:
    """A stored record of a session that does not run at gateway `here`. alive: the gateways that are. keeps: there are
    checkpoints, so its client can go on with it.

    It may call a session live whose gateway died, or could not tell the store of its end.
    """
    if record.state.ended or (record.gateway in alive and record.gateway != here):
        return record
    if record.state is SessionState.SUSPENDED:
        return record
    why = f"its gateway {record.gateway} is gone"
    if record.gateway == here:
        why = "it has ended; the store was away, so why is not known"
    if keeps:
        return replace(record, reason=f"{why}; connect with its resume_token to go on")
    return replace(record, state=SessionState.FAILED, reason=why)
