"""The sessions of one gateway: opened for whoever asks, found by id, forgotten when they have ended."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from riverrun.actors.directory import Directory, Placed
from riverrun.actors.errors import Denied, NotFound
from riverrun.actors.principal import Principal
from riverrun.actors.quota import Quotas
from riverrun.actors.sessions import NoRoom
from riverrun.configs import ServiceConfig
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Graph, route_params
from riverrun.graphs.observer import SILENT, Observer
from riverrun.graphs.runner import Runner, SessionEnded
from riverrun.graphs.stage import BadRequest, StageHandle
from riverrun.graphs.status import RunnerStatus
from riverrun.graphs.waiting import Clock
from riverrun.models.base import Corrupt, Unavailable
from riverrun.store.records import SessionRecord, SessionState, Store, token_digest

log = logging.getLogger(__name__)
MAX_CLIENT_ID = 128
Wrap = Callable[[str, StageHandle], StageHandle]
Observe = Callable[[Graph, str], Observer]


@dataclass(frozen=True)
class SessionWish:
    """What a session is asked for. idle_timeout_s, max_frames: 0 means the service's own, and endless. lead_s: see
    `ServiceConfig`; None means its value. tenant: whose it will be."""

    graph: str
    params: Mapping[str, Any]
    seed: int = 0
    client_id: str = ""
    idle_timeout_s: float = 0.0
    max_frames: int = 0
    lead_s: float | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        if len(self.client_id) > MAX_CLIENT_ID:
            raise BadRequest(f"client_id has {len(self.client_id)} characters, at most {MAX_CLIENT_ID}")


@dataclass
class Hosted:
    """A session that runs here.

    token: its resume token. opened: set when its opening is over, well or not. inputs: frames taken in, by graph input;
    input_pts: media time of the last one. feeding: held while one is, since an old connection may still be at it when
    its client has come back on a new one.
    """

    runner: Runner
    token: str = field(repr=False)
    feeding: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    inputs: dict[str, int] = field(default_factory=dict)
    input_pts: dict[str, int] = field(default_factory=dict)


class SessionHost:
    """name: this gateway's, in the records it writes. observe: who is told what a session does, by graph and id."""

    def __init__(
        self,
        directory: Directory,
        store: Store,
        clock: Clock,
        config: ServiceConfig,
        name: str,
        observe: Observe = lambda graph, session: SILENT,
    ) -> None:
        self._observe = observe
        self.directory, self.store, self.clock, self.config, self.name = directory, store, clock, config, name
        self.closing = ""
        self.quotas = Quotas(config.auth, clock)
        self._hosted: dict[str, Hosted] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._hosted)

    async def create(self, wish: SessionWish, wrap: Wrap | None = None) -> Hosted:
        """Places and opens a session. A repeat with the client_id of a live one returns that.

        wrap: what to put around each stage's handle. Raises BadRequest, NotFound, NoRoom, Unavailable.
        """
        self._check_open()
        graph = self.directory.graph(wish.graph)
        if len(self._hosted) >= self.config.limits.sessions:
            raise NoRoom(f"this gateway has {len(self._hosted)} sessions, its limit; one must end first")
        placed = await self.directory.place(graph)
        self._check_open()  # a model may have been loading for minutes
        token = secrets.token_urlsafe(24)
        record = self._record(graph, wish, placed, token)
        stages = {name: wrap(name, handle) if wrap else handle for name, handle in placed.stages.items()}
        config = RunnerConfig(idle_timeout_s=self.config.idle_timeout_s)
        written = replace(record, version=1)  # as the store will have it
        observer = self._observe(graph, record.id)
        runner = Runner(written, graph, stages, placed.encoders, self.store, self.clock, config, observer)
        return await self._open(Hosted(runner, token), record)

    def count(self, who: Principal) -> int:
        """How many sessions that `who` may see run here."""
        return sum(who.sees(hosted.runner.record.tenant) for hosted in self._hosted.values())

    def find(self, session: str) -> Hosted | None:
        """The session, if it runs here."""
        return self._hosted.get(session)

    def statuses(self) -> list[RunnerStatus]:
        """What every session here is doing now."""
        return [hosted.runner.status() for hosted in self._hosted.values()]

    async def live(self, session: str) -> Hosted:
        """The session. Raises NotFound, SessionEnded, Unavailable (it is another gateway's)."""
        hosted = self._hosted.get(session)
        if hosted and not hosted.runner.state.ended:
            return hosted
        record = hosted.runner.record if hosted else await self.record(session)
        if record.state.ended:
            raise SessionEnded(f"session {session} is {record.state.value}: {record.reason}")
        if record.gateway == self.name:
            raise SessionEnded(f"session {session} has ended; the store was away, so why is not known")
        raise Unavailable(f"session {session} is of gateway {record.gateway or 'unknown'}, which is not this one")

    async def record(self, session: str) -> SessionRecord:
        """What the store has of a session. Raises NotFound."""
        record = await self.store.get(session)
        if record is None:
            raise no_session(session)
        return record

    async def check_owner(self, session: str, who: Principal) -> None:
        """Raises NotFound for a session which `who` is not to see, in the words for one that there is not."""
        hosted = self._hosted.get(session)
        record = hosted.runner.record if hosted else await self.record(session)
        if not who.sees(record.tenant):
            raise no_session(session)

    async def shown(self, records: Iterable[SessionRecord]) -> list[SessionRecord]:
        """Stored records as those who ask should see them: what only the record calls live counts as failed."""
        alive = await self.store.gateways()
        return [as_seen(record, self.name, alive) for record in records]

    async def close(self, session: str, reason: str) -> None:
        """Ends a session; one that has ended is no error. Raises NotFound, Unavailable (it is another gateway's)."""
        try:
            hosted = await self.live(session)
        except SessionEnded:
            return
        await hosted.runner.close(reason)

    async def close_all(self, reason: str) -> None:
        """Ends every session and waits until all is freed; from now on none is opened. What the store has missed of
        earlier ones is given up."""
        self.closing = reason
        await asyncio.gather(*(hosted.runner.close(reason) for hosted in list(self._hosted.values())))
        await asyncio.gather(*self._tasks)
        for task in self._writing:
            task.cancel()

    def check_token(self, hosted: Hosted, token: str) -> None:
        """Raises Denied unless `token` is the session's resume token."""
        if not hmac.compare_digest(token_digest(token), hosted.runner.record.token_digest):
            raise Denied("resume_token is not this session's; Sessions.Create gives it to the creator")

    def check(self) -> None:
        """Raises Corrupt if a session's books do not add up, or an opened one has nobody who forgets it at its end."""
        for session, hosted in self._hosted.items():
            if hosted.runner.record.id != session:
                raise Corrupt(f"session {hosted.runner.record.id} goes by the name {session}")
            hosted.runner.check()
        opened = sum(hosted.opened.is_set() for hosted in self._hosted.values())
        waiting = sum(not task.done() for task in self._tasks)
        if opened != waiting:
            raise Corrupt(f"{opened} sessions are open, {waiting} are waited for")

    def _check_open(self) -> None:
        if self.closing:
            raise Unavailable(f"no new sessions: {self.closing}")

    async def _open(self, hosted: Hosted, record: SessionRecord) -> Hosted:
        session = record.id
        self._hosted[session] = hosted  # before the store has it: a repeat may come the moment it does
        try:
            stored = await self.store.create(record)
            if stored.id == session:
                await self.quotas.admit(stored, self.store)
                await hosted.runner.open()
        except BaseException:
            await hosted.runner.ended()  # it writes its record once more; only then can that be deleted
            self._hosted.pop(session, None)
            with contextlib.suppress(Unavailable):
                await self.store.delete(session)  # it never was; what the caller gets is the reason
            raise
        finally:
            hosted.opened.set()
        if stored.id != session:
            self._hosted.pop(session)
            return await self._repeated(stored)
        task = asyncio.create_task(self._forget(session, hosted.runner))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        log.info("session %s is open", session, extra=hosted.runner.record.about)
        return hosted

    async def _repeated(self, stored: SessionRecord) -> Hosted:
        hosted = self._hosted.get(stored.id)
        if hosted is None:
            raise Unavailable(f"client_id {stored.client_id!r} is of session {stored.id} at gateway {stored.gateway}")
        await hosted.opened.wait()
        if self._hosted.get(stored.id) is not hosted:
            raise Unavailable(f"session {stored.id} of client_id {stored.client_id!r} has just failed; try again")
        return hosted

    async def _forget(self, session: str, runner: Runner) -> None:
        record = await runner.ended()
        log.info("session %s is %s: %s", session, record.state.value, record.reason, extra=record.about)
        self._hosted.pop(session, None)
        task = asyncio.create_task(runner.catch_up())
        self._writing.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("%s", error)

    def _record(self, graph: Graph, wish: SessionWish, placed: Placed, token: str) -> SessionRecord:
        return SessionRecord(
            id=uuid.uuid4().hex,
            graph=graph.name,
            tenant=wish.tenant,
            client_id=wish.client_id,
            params=route_params(graph, wish.params, placed.fields),
            seed=wish.seed,
            max_frames=wish.max_frames,
            idle_timeout_s=wish.idle_timeout_s,
            lead_s=self.config.lead_s if wish.lead_s is None else wish.lead_s,
            nonce=secrets.token_hex(8),
            gateway=self.name,
            placement=placed.placement,
            created=self.clock.now(),
            token_digest=token_digest(token),
        )


def no_session(session: str) -> NotFound:
    return NotFound(f"there is no session {session!r}; it may have ended and been forgotten")


def as_seen(record: SessionRecord, here: str, alive: Collection[str]) -> SessionRecord:
    """A stored record of a session that does not run at gateway `here`. alive: the gateways that are.

    It may call a session live whose gateway died, or could not tell the store of its end.
    """
    if record.state.ended or (record.gateway in alive and record.gateway != here):
        return record
    why = f"its gateway {record.gateway} is gone"
    if record.gateway == here:
        why = "it has ended; the store was away, so why is not known"
    return replace(record, state=SessionState.FAILED, reason=why)
