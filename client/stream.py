"""One stream of frames: credits, reconnects and controls, on one asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

from riverrun.client import errors
from riverrun.client.changes import Change, ChangeLog
from riverrun.client.feed import Feed, Sent
from riverrun.client.ledger import Ledger, LedgerError
from riverrun.client.link import Link, Lost
from riverrun.client.types import TICKS_PER_SECOND, Frame, Patience, frame_of
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Header, Joiner, WireError, split


@dataclass(frozen=True)
class Wish:
    """How one port is wanted: codec and JPEG quality on the wire, and the most frames that may wait here."""

    port: str
    codec: pb.Codec
    quality: int
    window: int


class Home(Protocol):
    """What a stream asks of the client it belongs to."""

    def channel(self, address: str) -> grpc.aio.Channel: ...

    async def session(self, session_id: str) -> pb.Session: ...

    async def end_session(self, session_id: str, reason: str) -> None: ...


class AsyncStream:
    """The frames of one session, each exactly once and in order on its port; `async for frame in stream`.

    A lost connection is made again with the resume token, at any of the session's gateways; the loop does not notice.
    Frames are sent as they are taken: at most `Wish.window` of a port wait in memory. As controller (`role`), it may
    send controls and, to a graph with inputs, frames; as viewer it watches from now on and may miss frames.
    """

    def __init__(
        self,
        client: Home,
        addresses: list[str],
        session: pb.Session,
        wishes: list[Wish],
        role: pb.Role,
        patience: Patience,
    ) -> None:
        self.session = session
        self.ended_reason: str | None = None
        self.suspended = False
        self.reconnects = 0
        self._client, self._addresses, self._patience = client, addresses, patience
        self._wishes, self._role = wishes, role
        lossless = role == pb.ROLE_CONTROLLER
        self._ledgers = {wish.port: Ledger(wish.port, wish.window, lossless) for wish in wishes}
        self._changes = ChangeLog()
        self._feeds: dict[str, Feed] = {}
        self._finished = False
        self._acked = asyncio.Event()
        self._frames: deque[Frame] = deque()
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._moved = asyncio.Event()
        self._link: Link | None = None
        self._heard = self._was_open = False
        self._error: errors.Error | None = None
        self._task = asyncio.create_task(self._run(), name=f"stream {session.session_id}")

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def done(self) -> bool:
        """Whether the session has ended, failed or been closed; frames may still wait to be taken."""
        return self._task.done()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Frame:
        while not self._frames:
            if self._error is not None:
                raise self._error
            if self._task.done():
                if not self._task.cancelled():
                    self._task.result()  # a fault of ours must not look like a clean end
                raise StopAsyncIteration
            self._moved.clear()
            await self._moved.wait()
        frame = self._frames.popleft()
        self._ledgers[frame.port].take(frame.number)
        self._refill(self._ledgers[frame.port])
        return frame

    def prompt(self, text: str) -> Change:
        """Changes the prompt at the next chunk boundary its embedding is there for."""
        return self._control(pb.Control(prompt=text))

    def pause(self) -> Change:
        """Stops the session at a chunk boundary; its state stays."""
        return self._control(pb.Control(pause=True))

    def resume(self) -> Change:
        """Goes on after `pause`."""
        return self._control(pb.Control(pause=False))

    def set(self, parameters: Mapping[str, Any], stage: str = "") -> Change:
        """Changes parameters that the graph's models take while they run."""
        control = pb.Control(stage=stage)
        control.parameters.update(dict(parameters))
        return self._control(control)

    async def send(self, array: np.ndarray, seconds: float, port: str = "frames") -> int:
        """Puts a frame into an input of the graph, at `seconds` of media time (from 0, rising), and returns its number.

        Waits while as many frames as may be are sent and not acked: take what comes out meanwhile. It is sent again
        where a connection is lost, so it must not be written to any more. Raises Error once the stream has ended.
        """
        if self._role != pb.ROLE_CONTROLLER:
            raise errors.BadRequest("a viewer can't send frames", "FAILED_PRECONDITION")
        feed = self._feeds.setdefault(port, Feed(port))
        while not (feed.has_room or self._task.done()):
            self._acked.clear()
            await self._acked.wait()
        if self._task.done():
            raise self._error or errors.BadRequest("the stream has ended, it takes no frames", "FAILED_PRECONDITION")
        try:
            sent = feed.add(np.asarray(array), round(seconds * TICKS_PER_SECOND))
            parts = _parts(port, sent)
        except ValueError as error:
            raise errors.BadRequest(str(error), "INVALID_ARGUMENT") from None
        for part in parts:
            self._send(pb.ClientMessage(frame=part))
        return sent.number

    def finish(self) -> None:
        """No more frames go in: what is in the graph is flushed, and the stream ends after it."""
        self._finished = True
        for feed in self._feeds.values():
            feed.finished = True
        self._send(pb.ClientMessage(finish=pb.Finish()))

    async def ping(self) -> float:
        """Seconds to the service and back over this stream's connection."""
        nonce, clock = random.getrandbits(63), asyncio.get_running_loop().time
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs[nonce] = answer
        begun = clock()
        try:
            self._send(pb.ClientMessage(ping=pb.Ping(nonce=nonce)))
            await asyncio.wait_for(answer, self._patience.silence)
        except TimeoutError:
            raise errors.Unavailable("the service did not answer a ping", "DEADLINE_EXCEEDED") from None
        finally:
            del self._pongs[nonce]
        return clock() - begun

    async def close(self, reason: str = "closed by the client") -> None:
        """Ends the session (a viewer only leaves it). Closing twice is no error."""
        # What it sent was refused: the connection ended of it, the session did not.
        running = not self._task.done() or isinstance(self._error, errors.BadRequest)
        self._task.cancel()
        await asyncio.wait({self._task})
        if running and self._role == pb.ROLE_CONTROLLER:
            await self._client.end_session(self.session_id, reason)

    # ---- the connection ----

    async def _run(self) -> None:
        try:
            await self._keep_connected()
        except errors.Error as error:
            self._error = error
        finally:
            self._changes.fail_all(self._error or errors.Error("the stream ended before the control was applied"))
            self._moved.set()
            self._acked.set()

    async def _keep_connected(self) -> None:
        clock = asyncio.get_running_loop().time
        failed_since, attempt, waited = clock(), 0, 0.0
        while True:
            address = self._addresses[0]
            self._heard, later = False, 0.0
            try:
                if await self._connected(address):
                    return
                failure: errors.Error = errors.Unavailable(f"the service at {address} closed the connection")
            except grpc.aio.AioRpcError as error:
                failure = errors.from_rpc(error, address)
                later = errors.come_back_s(error) if self._was_open else 0.0
                if not later and (not errors.passing(error) or self.ended_reason == str(failure)):
                    raise failure from None
            except Lost as lost:
                failure, later = errors.Unavailable(f"{lost} at {address}"), lost.later_s
            if self.ended_reason is not None:
                return await self._look_how_it_ended()
            if self._heard:
                failed_since, attempt = clock(), 0
            waited = waited + later if later else 0.0
            if waited > self._patience.room:
                raise errors.NoRoom(f"no place for it in {self._patience.room:g} s: {failure}", "RESOURCE_EXHAUSTED")
            failed_since += later  # it is not away while it says when to come
            wait = later + self._patience.wait(attempt) * random.uniform(0.5, 1)  # so many clients don't come at once
            if clock() + wait - failed_since > self._patience.reconnect:
                raise errors.Unavailable(f"gave up after {self._patience.reconnect:g} s: {failure}", "UNAVAILABLE")
            await asyncio.sleep(wait)
            attempt += 1
            self.reconnects += 1
            self._addresses.append(self._addresses.pop(0))

    async def _connected(self, address: str) -> bool:
        """One connection, to its end. True if the session has ended, False if it should be made again."""
        link = self._link = Link(self._client.channel(address), self._patience)
        joiner = Joiner()
        try:
            link.send(pb.ClientMessage(open=self._opening()))
            for control in self._changes.unsettled():
                link.send(pb.ClientMessage(control=control))
            self._feed_again(link)
            while (message := await link.read()) is not None:
                if message.WhichOneof("message") == "go_away":
                    return False
                self._dispatch(message, link, joiner)
            return self.ended_reason is not None
        except (WireError, LedgerError) as error:
            raise errors.Error(f"the service broke the stream's contract: {error}", "DATA_LOSS") from None
        finally:
            self._link = None
            link.close()

    def _feed_again(self, link: Link) -> None:
        for feed in self._feeds.values():
            for part in (part for sent in feed.again() for part in _parts(feed.port, sent)):
                link.send(pb.ClientMessage(frame=part))
        if self._finished:
            link.send(pb.ClientMessage(finish=pb.Finish()))

    async def _look_how_it_ended(self) -> None:
        """The call broke after the end was told but before its status came, so the record is asked."""
        with contextlib.suppress(errors.NotFound, errors.Unavailable):  # then the end that was told stands
            session = await self._client.session(self.session_id)
            if session.state == pb.SESSION_STATE_FAILED:
                raise errors.Error(session.reason, "INTERNAL")

    def _opening(self) -> pb.Open:
        wishes = []
        for wish in self._wishes:
            ledger = self._ledgers[wish.port]
            wishes.append(
                pb.PortWish(
                    port=wish.port,
                    codec=wish.codec,
                    quality=wish.quality,
                    credits=ledger.connect(),
                    last_received=ledger.last_received,
                )
            )
        return pb.Open(
            session_id=self.session_id, role=self._role, resume_token=self.session.resume_token, ports=wishes
        )

    def _dispatch(self, message: pb.ServerMessage, link: Link, joiner: Joiner) -> None:
        kind = message.WhichOneof("message")
        self._was_open |= kind == "opened"
        self._heard |= kind != "opened"  # a service that opens and then is silent is as good as away
        if kind == "frame":
            self._receive(message.frame, joiner)
        elif kind == "receipt":
            self._changes.note(message.receipt)
        elif kind == "input_ack":
            if message.input_ack.port in self._feeds:
                self._feeds[message.input_ack.port].ack(message.input_ack.frame)
                self._acked.set()
        elif kind == "opened":
            self._addresses += [g for g in message.opened.gateways if g not in self._addresses]
        elif kind == "pong":
            answer = self._pongs.get(message.pong.nonce)
            if answer is not None and not answer.done():
                answer.set_result(None)
        elif kind == "event" and message.event.type == pb.Event.TYPE_ENDED:
            self.ended_reason = message.event.reason
            for ledger in self._ledgers.values():
                if ledger.last_received is not None:
                    link.send(pb.ClientMessage(ack=pb.Ack(port=ledger.port, frame=ledger.last_received)))
            # The server waits for this before it ends the call: grpc.aio drops what it has not read yet of a call that
            # ended while it was sending.
            link.half_close()
        elif kind == "event" and message.event.type == pb.Event.TYPE_SUSPENDED:
            if message.event.HasField("retry_after"):
                later = message.event.retry_after.ToTimedelta().total_seconds()
                raise Lost(f"the session waits for a place ({message.event.reason})", later)
            self.suspended = True
            self.ended_reason = message.event.reason
            link.half_close()
        elif kind == "event" and message.event.type == pb.Event.TYPE_REPLACED:
            raise errors.Replaced(message.event.reason or "another client took this session over", "ABORTED")

    def _receive(self, part: pb.FramePart, joiner: Joiner) -> None:
        joined = joiner.add(part)
        if joined is None:
            return
        ledger = self._ledgers.get(joined.header.port)
        if ledger is None:
            raise LedgerError(f"a frame of port {joined.header.port!r}, which nobody asked for")
        if ledger.receive(joined.header.frame):
            frame = frame_of(joined)
            self._changes.seen(frame.revision, frame.chunk, frame.number)
            self._frames.append(frame)
            self._moved.set()
        else:
            self._refill(ledger)

    def _refill(self, ledger: Ledger) -> None:
        if self._link is None:
            return  # the next connection opens with all credits
        frames = ledger.refill()
        if frames:
            self._send(pb.ClientMessage(credit=pb.Credit(port=ledger.port, frames=frames)))
            if ledger.last_taken is not None:
                self._send(pb.ClientMessage(ack=pb.Ack(port=ledger.port, frame=ledger.last_taken)))

    def _send(self, message: pb.ClientMessage) -> None:
        if self._link is not None:
            self._link.send(message)

    def _control(self, control: pb.Control) -> Change:
        if self._role != pb.ROLE_CONTROLLER:
            raise errors.BadRequest("a viewer can't steer the session", "FAILED_PRECONDITION")
        if self._task.done():
            raise errors.BadRequest("the stream has ended", "FAILED_PRECONDITION")
        change = self._changes.add(control)
        self._send(pb.ClientMessage(control=change.control))
        return change


def _parts(port: str, sent: Sent) -> list[pb.FramePart]:
    header = Header(port, sent.number, chunk=sent.number, index_in_chunk=0, pts=sent.pts, epoch=0, revision=0)
    return split(sent.array, header)
