"""Who reads a session: its rings, and the consumers attached to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from riverrun.graphs.consumer import Consumer, ConsumerSpec, Lane, PortWish, Role
from riverrun.graphs.items import Event, EventType, Frame, InputAck, InputRefusal, Receipt
from riverrun.graphs.observer import SILENT, Observer
from riverrun.graphs.pacing import Playhead
from riverrun.graphs.ring import OutputRing
from riverrun.graphs.waiting import Clock, Signal
from riverrun.models.base import BadRequest, Corrupt
from riverrun.store.records import PortMark


class Audience:
    """rings: by graph output, the first one first. At most one controller at a time; any number of viewers.

    playhead: how far the controller has played. observer: told so."""

    def __init__(self, rings: Mapping[str, OutputRing], clock: Clock, signal: Signal, observer: Observer = SILENT):
        self.rings = rings
        self.playhead = Playhead(clock)
        self._observer = observer
        self._told_s = (0.0, 0.0)
        self._busy_at = clock.now()
        self._clock = clock
        self._signal = signal
        self._consumers: list[Consumer] = []

    @property
    def first(self) -> OutputRing:
        return next(iter(self.rings.values()))

    @property
    def made(self) -> int:
        """Media time (ticks) that the first output which the controller reads has come to."""
        return next((ring.made for ring in self.rings.values() if ring.lossless), 0)

    @property
    def empty(self) -> bool:
        return not self._consumers

    @property
    def quiet_s(self) -> float:
        """Since when nobody has come, gone, or been given a frame."""
        return self._clock.now() - self._busy_at

    @property
    def delivered(self) -> int:
        """Frames given to controllers, each counted once."""
        return sum(ring.sent for ring in self.rings.values())

    @property
    def drained(self) -> bool:
        """Whether the controller has been given all there is."""
        return all(ring.drained for ring in self.rings.values())

    def noted(self, ports: Mapping[str, PortMark]) -> None:
        """The store has a record with these marks."""
        for name, mark in ports.items():
            self.rings[name].noted(mark.chunks)

    def attach(self, spec: ConsumerSpec) -> Consumer:
        """See `Runner.attach`. Nothing has changed if it raises."""
        wishes = spec.ports or tuple(PortWish(name, spec.credits) for name in self.rings)
        for wish in wishes:
            if wish.port not in self.rings:
                raise BadRequest(f"no output {wish.port!r}; there are {', '.join(sorted(self.rings))}")
        if len({wish.port for wish in wishes}) < len(wishes):
            raise BadRequest("a port is named twice; name each once")
        lanes = {wish.port: Lane(self.rings[wish.port]) for wish in wishes}
        for wish in wishes:
            lanes[wish.port].add(wish.credits)
        if spec.role is Role.CONTROLLER:
            self._begin_controller(wishes, lanes)
        consumer = Consumer(spec.role, lanes, self._signal, self._sent, self._detach)
        for lane in lanes.values():
            lane.ring.readers += 1
        self._consumers.append(consumer)
        self._touch()
        self._signal.notify()
        return consumer

    def tell_controller(self, notice: Receipt | InputAck | InputRefusal) -> None:
        for consumer in self._consumers:
            if consumer.role is Role.CONTROLLER:
                consumer.tell(notice)
        self._signal.notify()

    def tell_all(self, event: Event) -> None:
        for consumer in self._consumers:
            consumer.tell(event)
        self._signal.notify()

    def end(self, event: Event) -> None:
        """The session has ended: rings load nothing more, and everybody is told."""
        for ring in self.rings.values():
            ring.close()
        for consumer in self._consumers:
            consumer.end(event)
        self._let_go()
        self._signal.notify()

    def check(self) -> None:
        """Raises Corrupt if the readers counted are not the ones that are here."""
        if sum(consumer.role is Role.CONTROLLER for consumer in self._consumers) > 1:
            raise Corrupt("two controllers read one session")
        for name, ring in self.rings.items():
            ring.check()
            if ring.readers != sum(name in consumer.ports for consumer in self._consumers):
                raise Corrupt(f"ring {name!r} counts {ring.readers} readers, of {len(self._consumers)} consumers")

    def _begin_controller(self, wishes: Sequence[PortWish], lanes: Mapping[str, Lane]) -> None:
        starts = {wish.port: self.rings[wish.port].start_for(wish.last_received) for wish in wishes}
        for old in [c for c in self._consumers if c.role is Role.CONTROLLER]:
            old.end(Event(EventType.REPLACED, "another controller took over"))
            self._detach(old)
        for wish in wishes:
            lanes[wish.port].position = starts[wish.port]
            self.rings[wish.port].begin(starts[wish.port], wish.last_received is not None, wish.credits)
        for name, ring in self.rings.items():
            ring.set_lossless(name in lanes)

    def _sent(self, role: Role, frame: Frame, end: int) -> None:
        self._touch()
        if role is Role.CONTROLLER:
            self.playhead.deliver(frame.pts, end)
            played_s, stalled_s = self._told_s
            self._told_s = (self.playhead.played_s, self.playhead.stalled_s)
            self._observer.played(self._told_s[0] - played_s, self._told_s[1] - stalled_s)

    def _touch(self) -> None:
        self._busy_at = self._clock.now()

    def _detach(self, consumer: Consumer) -> None:
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            self._touch()
            for port in consumer.ports:
                self.rings[port].readers -= 1
            self._let_go()

    def _let_go(self) -> None:
        """What lies in the rings of a session that has ended, and that nobody reads, is freed at once."""
        for ring in self.rings.values():
            if ring.is_closed and not ring.readers:
                ring.clear()
