"""One reader of a session's output: single frames against credits, receipts, events.

A `controller` is lossless: its frame numbers have no gaps and its credits pace the session. A `viewer` gets the latest
frames it has credit for and slows nobody down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from riverrun.graphs.items import Event, EventType, Frame, InputAck, Item, Notice
from riverrun.graphs.ring import OutputRing, Slot
from riverrun.graphs.waiting import Signal
from riverrun.models.base import BadRequest

MAX_CREDITS = 512
"""Frames that may be outstanding on a port: the ring must be able to keep them all for a reconnect."""

MAX_CREDIT_BYTES = 1 << 27
"""And no more than so many bytes of them, but always `MIN_CREDITS` frames, and two chunks."""
MIN_CREDITS = 32

MANY_UNREAD = 64
"""From so many notices on, those that say no more than the next one are forgotten."""


class Role(StrEnum):
    CONTROLLER = "controller"
    VIEWER = "viewer"


@dataclass(frozen=True)
class PortWish:
    """A graph output somebody wants. credits: frames that may be given before the first `Consumer.credit`.

    last_received: reconnect of a controller: frames after this number come again. None: from the first kept one.
    """

    port: str
    credits: int = 0
    last_received: int | None = None


@dataclass(frozen=True)
class ConsumerSpec:
    """What `Runner.attach` is asked for. ports empty: every output of the graph, each with `credits`."""

    role: Role
    ports: tuple[PortWish, ...] = ()
    credits: int = 0


def most_credits(frame_bytes: int, chunk_frames: int = 1) -> int:
    """Frames of that size which may be outstanding on a port; a size of 0 is not known. Two chunks always may."""
    least = max(MIN_CREDITS, 2 * chunk_frames)
    return min(MAX_CREDITS, max(least, MAX_CREDIT_BYTES // frame_bytes)) if frame_bytes else MAX_CREDITS


class Lane:
    """One port of one consumer: where it stands and how many frames it may still be given."""

    def __init__(self, ring: OutputRing):
        self.ring = ring
        self.position = -1
        self.credits = 0

    def add(self, credits: int) -> None:
        """Raises BadRequest for a negative number, or for more outstanding than the ring may have to keep."""
        most = most_credits(self.ring.frame_bytes, self.ring.chunk_frames)
        if credits < 0 or self.credits + credits > most:
            raise BadRequest(
                f"{credits} more credits on port {self.ring.name!r} make {self.credits + credits};"
                f" at most {most} frames may be outstanding"
            )
        self.credits += credits

    def catch_up(self) -> None:
        """A viewer more than a chunk behind goes on at the newest one."""
        self.position = max(self.position, self.ring.latest_from(self.position))

    def slot(self) -> Slot | None:
        """The chunk that holds the next frame, if that is there and there is credit for it."""
        return self.ring.find(self.position) if self.credits else None


class Consumer:
    """Made by `Runner.attach`. One task reads it (`next` or `async for`); the other methods may be called any time.

    on_sent: called with each frame given, and the media time at which it ends."""

    def __init__(
        self,
        role: Role,
        lanes: dict[str, Lane],
        signal: Signal,
        on_sent: Callable[[Role, Frame, int], None],
        on_close: Callable[[Consumer], None],
    ):
        self.role = role
        self._lanes = lanes
        self._signal = signal
        self._on_sent = on_sent
        self._on_close = on_close
        self._notices: deque[Notice] = deque()
        self._ended: Event | None = None
        self._done = False

    @property
    def is_over(self) -> bool:
        """Left, or replaced: what its client still says counts no more."""
        return self._done or (self._ended is not None and self._ended.type is EventType.REPLACED)

    @property
    def unread(self) -> int:
        """Receipts, acks and events that wait to be read."""
        return len(self._notices)

    @property
    def ports(self) -> tuple[str, ...]:
        return tuple(self._lanes)

    async def next(self) -> Item | None:
        """The next item; None when there will be no more (after ENDED or REPLACED, or `close`).

        Receipts and events go before frames, so `applied` comes before the first frame it is true of. Frames of
        several ports come in order of pts as far as they are there. Safe to cancel: no frame is lost.
        """
        return (await self._signal.until(self._poll))[0]

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> Item:
        if (item := await self.next()) is None:
            raise StopAsyncIteration
        return item

    def credit(self, port: str, frames: int) -> None:
        """Lets `frames` more frames go on `port`. Raises BadRequest (port, or too many outstanding)."""
        lane = self._lane(port)
        if self.is_over:
            return
        lane.add(frames)
        if self.role is Role.CONTROLLER:
            lane.ring.keep_at_least(lane.credits)
        self._signal.notify()

    def ack(self, port: str, frame: int) -> None:
        """Frames of `port` up to number `frame` were received: they need not be kept. A viewer's says nothing."""
        lane = self._lane(port)
        if self.role is Role.CONTROLLER and not self.is_over:
            lane.ring.ack(frame)
            self._signal.notify()

    def close(self) -> None:
        """Leaves. The session goes on; a controller may come back with `last_received`."""
        if not self._done:
            self._done = True
            self._on_close(self)
            self._signal.notify()

    # ---- the runner's side ----

    def tell(self, notice: Notice) -> None:
        """Queues a notice. Where many wait unread, an event takes the place of all a viewer has missed, and an input
        ack that of the one before on its port. Receipts are all kept, so who takes controls must look at `unread`."""
        if len(self._notices) >= MANY_UNREAD:
            if self.role is Role.VIEWER:
                self._notices.clear()
            elif (place := self._covered(notice)) is not None:
                del self._notices[place]
        self._notices.append(notice)

    def _covered(self, notice: Notice) -> int | None:
        """The place of an unread input ack that this one says all of."""
        places = range(len(self._notices) - 1, -1, -1)
        return next((place for place in places if _covers(notice, self._notices[place])), None)

    def end(self, event: Event) -> None:
        """Nothing more will come, after a clean end but the frames already loaded."""
        self._ended = event

    def _poll(self) -> tuple[Item | None] | None:
        if self._done:
            return (None,)
        if self._notices:
            return (self._notices.popleft(),)
        if frame := self._take():
            return (frame,)
        if self._ended:
            self._done = True
            self._on_close(self)
            return (self._ended,)
        return None

    def _take(self) -> Frame | None:
        if self._ended and (self._ended.failed or self._ended.type is EventType.REPLACED):
            return None
        candidates = []
        for lane in self._lanes.values():
            if self.role is Role.VIEWER:
                lane.catch_up()
            if slot := lane.slot():
                candidates.append((slot.pts_of(lane.position), lane.ring.name, lane, slot))
        for _, _, lane, slot in sorted(candidates, key=lambda c: c[:2]):
            if slot.array is None:
                lane.ring.load(slot)
                continue
            frame = slot.frame(lane.ring.name, lane.position)
            lane.position += 1
            lane.credits -= 1
            if self.role is Role.CONTROLLER:
                lane.ring.sent_to(lane.position)
                self._signal.notify()
            self._on_sent(self.role, frame, slot.pts_of(lane.position))
            return frame
        return None

    def _lane(self, port: str) -> Lane:
        if port not in self._lanes:
            raise BadRequest(f"no port {port!r} here; there are {', '.join(sorted(self._lanes)) or 'none'}")
        return self._lanes[port]


def _covers(notice: Notice, before: Notice) -> bool:
    """Whether an input ack says all that one before it said."""
    return isinstance(notice, InputAck) and isinstance(before, InputAck) and notice.port == before.port
