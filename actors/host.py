"""The sessions of one gateway: opened for whoever asks, found by id, forgotten when they have ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

from riverrun.actors.directory import Directory, Placed
from riverrun.actors.elsewhere import Elsewhere, check_token, no_session
from riverrun.actors.grants import Grants
from riverrun.actors.orders import MoveOrder
from riverrun.actors.pressure import PressingPlacer, Pressure
from riverrun.actors.principal import Principal
from riverrun.actors.quota import Quotas
from riverrun.actors.sessions import NoRoom
from riverrun.actors.vault import Vault
from riverrun.configs import ServiceConfig
from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.durability import Durability
from riverrun.graphs.ending import RETRY_S
from riverrun.graphs.gate import Gate
from riverrun.graphs.graph import Graph, route_params
from riverrun.graphs.observer import SILENT, Observer
from riverrun.graphs.recovery import RecoveryConfig
from riverrun.graphs.runner import Runner, SessionEnded
from riverrun.graphs.script import TimedControl
from riverrun.graphs.stage import BadRequest, EncoderHandle, StageHandle
from riverrun.graphs.status import RunnerStatus
from riverrun.graphs.waiting import Clock
from riverrun.models.base import Corrupt, Unavailable
from riverrun.store.records import Conflict, SessionRecord, SessionState, Store, token_digest

log = logging.getLogger(__name__)
MAX_CLIENT_ID = 128
HANDOVER_S = 0.5
"""A client waits so long before it goes to the next gateway."""

Observe = Callable[[Graph, str], Observer]


@dataclass(frozen=True)
class SessionWish:
    """What a session is asked for. idle_timeout_s, max_frames: 0 means the service's own, and endless. lead_s: see
    `ServiceConfig`; None means its value. tenant: whose it will be. trace: a traceparent that its first chunk is traced
    under; "": none."""

    graph: str
    params: Mapping[str, Any]
    seed: int = 0
    client_id: str = ""
    idle_timeout_s: float = 0.0
    max_frames: int = 0
    lead_s: float | None = None
    tenant: str = ""
    trace: str = ""

    def __post_init__(self) -> None:
        if len(self.client_id) > MAX_CLIENT_ID:
            raise BadRequest(f"client_id has {len(self.client_id)} characters, at most {MAX_CLIENT_ID}")


@dataclass
class Hosted:
    """A session that runs here.

    token: its resume token; not known of one that a job goes on with. job: the one it is rendered for. opened: set when
    its opening is over, well or not. inputs: frames taken in, by graph input; input_pts: media time of the last one.
    feeding: held while one is, since an old connection may still be at it when its client has come back on a new one.
    """

    runner: Runner
    token: str = field(repr=False)
    job: str = ""
    feeding: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    inputs: dict[str, int] = field(default_factory=dict)
    input_pts: dict[str, int] = field(default_factory=dict)


class SessionHost:
    """name: this gateway's, in the records it writes. observe: who is told what a session does, by graph and id.
    vault: where checkpoints lie; None: sessions end with what they run on. hands_over: at the end, sessions are put
    away for other gateways."""

    def __init__(
        self,
        directory: Directory,
        store: Store,
        clock: Clock,
        config: ServiceConfig,
        name: str,
        observe: Observe = lambda graph, session: SILENT,
        vault: Vault | None = None,
        hands_over: bool = False,
    ) -> None:
        self._observe = observe
        self.vault, self.hands_over = vault, hands_over
        self._gate = Gate(config.checkpoints.restores)
        self._adopting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # as long as somebody holds one
        self.directory, self.store, self.clock, self.config, self.name = directory, store, clock, config, name
        self.grants = Grants(store, clock, config.store_grace_s)
        self.elsewhere = Elsewhere(store, vault, self.grants, clock, name)
        self.closing = ""
        self.quotas = Quotas(config.auth, clock)
        self._hosted: dict[str, Hosted] = {}
        self._pressure = Pressure(self._runners, config.checkpoints.pressure_idle_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._hosted)

    async def create(self, wish: SessionWish, script: Sequence[TimedControl] = ()) -> Hosted:
        """Places and opens a session; where there is no room, others that were left alone are put away for it. A repeat
        with the client_id of a live one returns that.

        script: controls that come into force by themselves. Raises BadRequest, NotFound, NoRoom, Unavailable.
        """
        self._check_open()
        await self.grants.check()
        graph = self.directory.graph(wish.graph)
        return await self._pressure.make(lambda: self._create(graph, wish, script), _models(graph))

    async def _create(self, graph: Graph, wish: SessionWish, script: Sequence[TimedControl]) -> Hosted:
        session = uuid.uuid4().hex
        try:
            placed = await self.directory.place(graph, session)
            self._check_open()  # a model may have been loading for minutes
            token = secrets.token_urlsafe(24)
            record = self._record(session, graph, wish, placed, token)
            written = replace(record, version=1)  # as the store will have it
            runner = self._runner(written, graph, placed.stages, placed.encoders, script)
            runner.observer.wanted(wish.trace)
            return await self._open(Hosted(runner, token), record)
        finally:
            self.directory.settled(session)

    def _runners(self) -> Iterator[Runner]:
        return (hosted.runner for hosted in list(self._hosted.values()))

    def _runner(
        self,
        record: SessionRecord,
        graph: Graph,
        stages: Mapping[str, StageHandle],
        encoders: Mapping[str, EncoderHandle],
        script: Sequence[TimedControl] = (),
    ) -> Runner:
        observer = self._observe(graph, record.id)
        durable = None
        if self.vault:
            placer = PressingPlacer(self.directory.placer(graph, record.id), self._pressure, record.id, graph)
            durable = Durability(placer, self.vault, self._gate)
        config = runner_config(self.config)
        return Runner(record, graph, stages, encoders, self.store, self.clock, config, observer, durable, script)

    async def reach(self, session: str, token: str | None, received: Mapping[str, int] | None = None) -> Hosted:
        """The session, running here: taken up first if need be, because it was suspended, or its gateway has died or is
        to lose it.

        token: None for who needs none, as a job. received: by graph output, frames that the client says it has. Raises
        NotFound, Denied (not its token), SessionEnded, Unavailable (no room, or this service keeps no checkpoints),
        Conflict (another was quicker).
        """
        async with self._adopting.setdefault(session, asyncio.Lock()):
            hosted = self._hosted.get(session)
            if hosted and hosted.runner.state.runs and not await self._is_lost(hosted, received or {}):
                return hosted
            if hosted:
                await hosted.runner.ended()  # and only then it can be taken up
                self._drop(session, hosted)
            return await self._adopt(session, token, received or {})

    def _drop(self, session: str, hosted: Hosted) -> None:
        """It does not run here any more, unless it was taken up again meanwhile."""
        if self._hosted.get(session) is hosted:
            del self._hosted[session]

    async def _is_lost(self, hosted: Hosted, received: Mapping[str, int] = MappingProxyType({})) -> bool:
        """Whether another gateway has taken the session over; then its runner here has stopped. Raises Unavailable
        where its client's frames say so, and the store can't be asked."""
        mine, is_overtaken = hosted.runner.record, hosted.runner.is_overtaken(received)
        try:
            stored = await self.store.get(mine.id)
            later = await self.vault.max_epoch(mine.id) if is_overtaken and self.vault else 0
        except Unavailable:
            if is_overtaken:
                raise
            return False  # nobody can take it over while the store is away
        if later > mine.epoch or (stored and (stored.epoch, stored.nonce) != (mine.epoch, mine.nonce)):
            await hosted.runner.lose()
            return True
        return False

    async def _adopt(self, session: str, token: str | None, received: Mapping[str, int]) -> Hosted:
        self._check_open()
        await self.grants.check()
        taken = await self.elsewhere.take(session, token)
        graph = self.directory.graph(taken.graph)
        encoders = await self.directory.encoders(graph)
        hosted = Hosted(self._runner(replace(taken, gateway=self.name), graph, {}, encoders), token or "")
        self._hosted[session] = hosted
        try:
            await hosted.runner.resume(received)
            hosted.inputs = hosted.runner.taken_in()
        except BaseException:
            await hosted.runner.ended()
            self._drop(session, hosted)
            raise
        finally:
            hosted.opened.set()
        log.info("session %s goes on here, epoch %d", session, taken.epoch, extra=hosted.runner.record.about)
        self._watch(session, hosted)
        return hosted

    async def suspend(self, session: str, reason: str) -> None:
        """Puts a session away. One that is away already is no error. Raises as `live`, Unavailable (not saved)."""
        if session not in self._hosted and (await self.elsewhere.record(session)).state is SessionState.SUSPENDED:
            return
        hosted = await self.live(session)
        if hosted.job:
            raise BadRequest(f"session {session} is rendered for job {hosted.job}, which would wait: cancel the job")
        await hosted.runner.suspend(reason)

    async def migrate(self, session: str, stage: str, actor: str) -> None:
        """Moves stages of a session: the one named, or all; to `actor`, or wherever there is room. Raises as `live`."""
        runner = (await self.live(session)).runner
        for name in [stage] if stage else list(runner.record.placement):
            await runner.migrate(name, actor)

    async def leave(self, actors: Collection[str], must: bool) -> None:
        """Moves every session here away from these actors (names or incarnations). must: time is up, what can't move
        is suspended."""
        for session, hosted in list(self._hosted.items()):
            runner = hosted.runner
            on = {stage: {at.actor, at.incarnation} for stage, at in runner.record.placement.items()}
            there = [stage for stage, names in on.items() if names.intersection(actors) and runner.state.runs]
            try:
                for stage in there:
                    await runner.migrate(stage)
            except (BadRequest, Unavailable, Corrupt) as error:
                log.warning("session %s could not be moved: %s", session, error, extra=runner.record.about)
                if must and runner.state.runs:
                    with contextlib.suppress(BadRequest, Unavailable, Corrupt):
                        await runner.suspend("its actor is taken out of service", retry_s=RETRY_S)

    async def carry_out(self, moves: Collection[MoveOrder]) -> None:
        """Makes those moves that are of sessions here and not made yet."""
        for order in moves:
            hosted = self._hosted.get(order.session)
            at = hosted.runner.record.placement.get(order.stage) if hosted and hosted.runner.state.runs else None
            if hosted and at and at.incarnation == order.source:
                try:
                    await hosted.runner.migrate(order.stage, order.target)
                except (BadRequest, Unavailable, Corrupt) as error:
                    log.warning("session %s was not moved: %s", order.session, error, extra=hosted.runner.record.about)

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
        if hosted and hosted.runner.state.runs and not await self._is_lost(hosted):
            return hosted
        if hosted and isinstance(hosted.runner.fault, Conflict):  # another gateway's by now: what is true is stored
            hosted = None
        raise self.elsewhere.why_not_here(hosted.runner.record if hosted else await self.elsewhere.record(session))

    async def check_owner(self, session: str, who: Principal) -> None:
        """Raises NotFound for a session which `who` is not to see, in the words for one that there is not."""
        hosted = self._hosted.get(session)
        record = hosted.runner.record if hosted else await self.elsewhere.record(session)
        if not who.sees(record.tenant):
            raise no_session(session)

    async def close(self, session: str, reason: str) -> None:
        """Ends a session; one that has ended is no error. Raises NotFound, Unavailable (it is another gateway's)."""
        try:
            hosted = await self.live(session)
        except SessionEnded:
            record = await self.elsewhere.record(session)
            if not record.state.runs and not record.state.ended:
                await self.elsewhere.discard(record, reason)
            return
        await hosted.runner.close(reason)

    async def close_all(self, reason: str) -> None:
        """Ends every session and waits until all is freed; from now on none is opened. What the store has missed of
        earlier ones is given up."""
        self.closing = reason
        await asyncio.gather(*(self._end(hosted.runner, reason) for hosted in list(self._hosted.values())))
        await asyncio.gather(*self._tasks)
        for task in self._writing:
            task.cancel()

    async def _end(self, runner: Runner, reason: str) -> None:
        """Another gateway can go on with what this one leaves, if the store stays when it goes."""
        if self.vault and self.hands_over:
            with contextlib.suppress(BadRequest, Unavailable, Corrupt):  # it can't be saved: then it ends
                return await runner.suspend(reason, retry_s=HANDOVER_S)
        await runner.close(reason)

    def check_token(self, hosted: Hosted, token: str) -> None:
        """Raises Denied unless `token` is the session's resume token."""
        check_token(hosted.runner.record, token)

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
        if len(self._hosted) >= (most := self.config.limits.sessions):
            raise NoRoom(f"this gateway has {most} sessions, its limit; one must end first")

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
        self._watch(session, hosted)
        log.info("session %s is open", session, extra=hosted.runner.record.about)
        return hosted

    def _watch(self, session: str, hosted: Hosted) -> None:
        task = asyncio.create_task(self._forget(session, hosted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _repeated(self, stored: SessionRecord) -> Hosted:
        hosted = self._hosted.get(stored.id)
        if hosted is None:
            raise Unavailable(f"client_id {stored.client_id!r} is of session {stored.id} at gateway {stored.gateway}")
        await hosted.opened.wait()
        if self._hosted.get(stored.id) is not hosted:
            raise Unavailable(f"session {stored.id} of client_id {stored.client_id!r} has just failed; try again")
        return hosted

    async def _forget(self, session: str, hosted: Hosted) -> None:
        runner = hosted.runner
        record = await runner.ended()
        log.info("session %s is %s: %s", session, record.state.value, record.reason, extra=record.about)
        self._drop(session, hosted)
        task = asyncio.create_task(runner.catch_up())
        self._writing.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("%s", error)

    def _record(self, session: str, graph: Graph, wish: SessionWish, placed: Placed, token: str) -> SessionRecord:
        return SessionRecord(
            id=session,
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


def _models(graph: Graph) -> set[str]:
    return {stage.model for stage in graph.stages}


def runner_config(config: ServiceConfig) -> RunnerConfig:
    """What the service's configuration means to its runners."""
    keep = config.checkpoints
    return RunnerConfig(
        idle_timeout_s=config.idle_timeout_s,
        cadence=Cadence(keep.chunks, keep.seconds, keep.inputs, keep.kind),
        recovery=RecoveryConfig(patience_s=keep.patience_s),
        grace_s=keep.grace_s,
        suspend_idle=keep.suspend_idle,
    )
