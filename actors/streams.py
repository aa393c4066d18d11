"""`Streams.Connect`: one connection to one session, its two directions as two tasks, frames only against credits.

Nothing is queued on the way out: the next frame is taken from the session when the last one has been written, so a slow
client stalls its own stream and nobody else's. Pictures are encoded in a thread pool, never on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import grpc

from riverrun.actors import principal
from riverrun.actors.auth import caller, check_role
from riverrun.actors.errors import Denied, SessionFailed, mapped
from riverrun.actors.host import Hosted, SessionHost
from riverrun.actors.inputs import InputFeed
from riverrun.actors.messages import duration, live_session, server_message
from riverrun.actors.quota import Pace
from riverrun.actors.requests import control_of, traceparent
from riverrun.actors.sessions import NoRoom
from riverrun.graphs.consumer import Consumer, ConsumerSpec, PortWish, Role
from riverrun.graphs.items import Event, EventType, Frame, InputRefusal, Item, Receipt, ReceiptStage
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.waiting import Signal
from riverrun.models.base import BadRequest, Kind, Unavailable, one_line
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc
from riverrun.protos.wire import CODECS, RAW, Encoded, Header, check_codec, check_quality, encode

OPEN_S = 10.0
"""A client says within so long what it wants."""

LEAVE_S = 1.0
"""After the end was told, the client gets so long to close its side: grpc.aio drops what it has not read of a call that
ends while it is still sending."""

MAX_UNREAD = 1024
"""Receipts and events that may wait for a client which sends controls and reads nothing."""

_PIXELS = {Kind.FRAMES: ("uint8", (1, 1, 3))}  # what codecs ask about: dtype and shape of one frame
_ROLES = {pb.ROLE_CONTROLLER: Role.CONTROLLER, pb.ROLE_VIEWER: Role.VIEWER}
_CODECS = {number: name for name, number in CODECS.items()}
Requests = AsyncIterator[pb.ClientMessage]


class Streams(rpc.StreamsServicer):
    """Connections of one gateway. pool: for encoding."""

    def __init__(self, host: SessionHost, pool: Executor, gateways: list[str]) -> None:
        self._host, self._pool, self._gateways = host, pool, gateways
        self._connections: set[Connection] = set()
        self._calls = 0
        self._left = Signal()
        self._hurried = False

    async def Connect(self, requests: Requests, context: grpc.aio.ServicerContext) -> None:
        """The status of a failed call goes out when the client has read what was sent before, perhaps never: the call
        holds nothing of the session meanwhile, but counts among the connections."""
        self._calls += 1
        try:
            async with mapped(context), _letting_go():
                if self._calls > (most := self._host.config.limits.connections):
                    raise NoRoom(f"this gateway has {most} connections, its limit; one must end first")
                await self._connect(requests, context)
        finally:
            self._calls -= 1

    async def _connect(self, requests: Requests, context: grpc.aio.ServicerContext) -> None:
        opening = await _opening(requests)
        await self._host.check_owner(opening.session_id, caller())
        hosted = await self._reach(opening)
        pace = self._host.quotas.pace(caller().tenant)
        connection = Connection(hosted, opening, context, self._pool, self._host.config.stall_s, pace)
        if connection.role is Role.CONTROLLER:
            check_role(caller(), principal.Role.CONTROLLER, "to connect as controller")
            self._host.check_token(hosted, opening.resume_token)
            hosted.runner.observer.wanted(traceparent(context))
        self._connections.add(connection)
        try:
            await connection.run(requests, self._gateways, self._host.config.idle_timeout_s)
        finally:
            self._connections.discard(connection)
            self._left.notify()

    async def _reach(self, opening: pb.Open) -> Hosted:
        """The session; one that does not run here is taken over by its controller."""
        if opening.role != pb.ROLE_CONTROLLER or not self._host.vault:
            return await self._host.live(opening.session_id)
        check_role(caller(), principal.Role.CONTROLLER, "to connect as controller")
        received = {w.port: w.last_received + 1 for w in opening.ports if w.HasField("last_received")}
        return await self._host.reach(opening.session_id, opening.resume_token, received)

    async def go_away(self, time_left_s: float, reason: str) -> None:
        """Tells every client that this gateway is about to leave."""
        message = pb.ServerMessage(go_away=pb.GoAway(time_left=duration(time_left_s), reason=reason))
        sends = [connection.send(message) for connection in self._connections]
        with contextlib.suppress(TimeoutError):  # one that does not read has only itself to blame
            async with asyncio.timeout(1.0):
                await asyncio.gather(*sends, return_exceptions=True)

    async def emptied(self, timeout_s: float) -> None:
        """Returns when no client is connected, or after the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._left.until(lambda: self._hurried or not self._connections)

    def hurry(self) -> None:
        """From now on nobody is waited for."""
        self._hurried = True
        self._left.notify()


class Stalled(Unavailable):
    """The client does not read what it is sent. Its session goes on, until its idle timeout if nobody comes."""


class Connection:
    """One client. credits: what it gave and was not used yet, by port. stall_s: see `ServiceConfig`. pace: of
    its tenant."""

    def __init__(
        self,
        hosted: Hosted,
        opening: pb.Open,
        context: grpc.aio.ServicerContext,
        pool: Executor,
        stall_s: float,
        pace: Pace,
    ) -> None:
        if opening.role not in _ROLES:
            raise BadRequest("role must be ROLE_CONTROLLER or ROLE_VIEWER")
        self.role = _ROLES[opening.role]
        self._hosted, self._runner = hosted, hosted.runner
        self._opening, self._context, self._pool = opening, context, pool
        self._wishes = {wish.port: wish for wish in opening.ports}
        self._kinds = {output.port: output.kind for output in self._runner.status().outputs}
        self._writing = asyncio.Lock()
        self._stall_s = stall_s or None
        self._credits: dict[str, int] = {}
        self._pace = pace
        self._leaving = False
        self._consumer: Consumer
        self._feed = InputFeed(hosted, pool)

    async def run(self, requests: Requests, gateways: list[str], idle_timeout_s: float) -> None:
        """Serves the client until either side ends. Raises SessionFailed after telling it why the session failed."""
        self._consumer = self._attach()
        try:
            idle = self._runner.record.idle_timeout_s or idle_timeout_s
            opened = pb.Opened(
                session=live_session(self._hosted, gateways),
                epoch=self._runner.record.epoch,
                gateways=gateways,
                idle_timeout=duration(idle),
            )
            await self.send(pb.ServerMessage(opened=opened))
            await self._serve(requests)
        finally:
            self._consumer.close()

    async def send(self, message: pb.ServerMessage) -> None:
        """Returns when gRPC has taken it: when the client has read most of what came before. Raises Stalled."""
        async with self._writing:
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._context.write(message)
            except TimeoutError:
                text = f"nothing was read for {self._stall_s:g} s; connect again with last_received"
                raise Stalled(text) from None

    def _attach(self) -> Consumer:
        for wish in self._opening.ports:
            check_quality(wish.quality)
            if wish.port in self._kinds:
                check_codec(wish.codec, *_PIXELS.get(self._kinds[wish.port], ("float32", (1, 1))))
        self._credits = {w.port: w.credits for w in self._opening.ports} or dict.fromkeys(self._kinds, 0)
        wishes = tuple(
            PortWish(w.port, w.credits, w.last_received if w.HasField("last_received") else None)
            for w in self._opening.ports
        )
        return self._runner.attach(ConsumerSpec(self.role, wishes))

    async def _serve(self, requests: Requests) -> None:
        """Both directions, and the client's frames on their way in; the first to fail ends all."""
        reader = asyncio.create_task(self._read(requests))
        writer = asyncio.create_task(self._write())
        running: set[asyncio.Task[Any]] = {reader, writer, asyncio.create_task(self._feed.run())}
        try:
            while writer in running and not self._has_left:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if writer in running:
                return
            await asyncio.wait({reader}, timeout=LEAVE_S)
            if failure := writer.result():
                raise SessionFailed(failure, self._runner.fault)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    @property
    def _has_left(self) -> bool:
        """Whether the client has closed its side and has had all it gave credit for."""
        return self._leaving and not any(self._credits.values())

    # ---- to the client ----

    async def _write(self) -> str:
        """Everything the session has for this client, to the end; why it failed, if it did."""
        async for item in self._consumer:
            await self._pass_on(item)
            if isinstance(item, Event) and item.type is EventType.ENDED and item.failed:
                return item.reason
            if self._has_left:
                break
        return ""

    async def _pass_on(self, item: Item) -> None:
        if isinstance(item, InputRefusal):
            raise BadRequest(item.message)
        if not isinstance(item, Frame):
            await self.send(server_message(item))
            return
        await self._pace.take()
        begun = time.monotonic()
        encoded = await self._encoded(item)
        made = time.monotonic()
        for part in range(encoded.parts):
            message = pb.ServerMessage()
            encoded.write(part, message.frame)
            await self.send(message)
        self._credits[item.port] -= 1
        size, sent = len(encoded.data), time.monotonic()
        self._runner.observer.sent(item, _CODECS[encoded.about.codec], size, made - begun, sent - made)

    async def _encoded(self, frame: Frame) -> Encoded:
        wish = self._wishes.get(frame.port, pb.PortWish(codec=RAW))
        header = Header(
            port=frame.port,
            frame=frame.number,
            chunk=frame.chunk,
            index_in_chunk=frame.index,
            pts=frame.pts,
            epoch=frame.epoch,
            revision=frame.revision,
        )
        codec = wish.codec or RAW
        if codec == RAW:
            return encode(frame.array, header, codec)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, encode, frame.array, header, codec, wish.quality)

    # ---- from the client ----

    async def _read(self, requests: Requests) -> None:
        """What the client says, until it closes its side: then it gets what it has given credit for, and no more."""
        async for message in requests:
            with contextlib.suppress(SessionEnded):  # it said so before it heard; the end is on its way
                await self._take(message)
        self._leaving = True

    async def _take(self, message: pb.ClientMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "credit":
            self._consumer.credit(message.credit.port, message.credit.frames)
            self._credits[message.credit.port] += message.credit.frames
        elif kind == "ack":
            self._consumer.ack(message.ack.port, message.ack.frame)
        elif kind == "ping":
            await self.send(pb.ServerMessage(pong=pb.Pong(nonce=message.ping.nonce)))
        elif self.role is Role.VIEWER:
            raise Denied(f"a viewer watches; only the controller may send {kind!r}")
        elif self._consumer.is_over:
            return  # another controller has taken over; that is on its way to this one
        elif kind == "control":
            await self._control(message.control)
        elif kind == "frame":
            await self._feed.take(message.frame)
        elif kind == "finish":
            self._feed.finish()
        else:
            raise BadRequest(f"unexpected message {kind or 'none'}: `open` comes once, first")

    async def _control(self, message: pb.Control) -> None:
        """A control that can't be taken is refused by a receipt; the stream goes on unchanged."""
        try:
            if self._consumer.unread >= MAX_UNREAD:  # the refusal waits to be sent, and so does what comes after it
                raise Unavailable(f"{MAX_UNREAD} receipts and events wait to be read; read on before you send more")
            await self._runner.control(control_of(message), message.stage)
        except SessionEnded:
            raise
        except (BadRequest, Unavailable) as error:
            receipt = Receipt(message.revision, ReceiptStage.REJECTED, message=one_line(str(error)))
            await self.send(server_message(receipt))


@contextlib.asynccontextmanager
async def _letting_go() -> AsyncIterator[None]:
    """What is raised inside goes on without the values of the calls it came through."""
    try:
        yield
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise


async def _opening(requests: Requests) -> pb.Open:
    """The first message. Raises BadRequest if it is another one, or none comes."""
    try:
        async with asyncio.timeout(OPEN_S):
            first = await anext(aiter(requests), None)
    except TimeoutError:
        raise BadRequest(f"nothing was sent for {OPEN_S:g} s; the first message must be `open`") from None
    kind = first.WhichOneof("message") if first is not None else None
    if first is None or kind != "open":
        raise BadRequest(f"the first message must be `open`, got {kind or 'none'}")
    return first.open
