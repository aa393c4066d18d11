"""Runs a session's output into something that writes, with no client attached: what a job does."""

from __future__ import annotations

from typing import Protocol

from riverrun.graphs.consumer import ConsumerSpec, PortWish, Role
from riverrun.graphs.items import Event, EventType, Frame
from riverrun.graphs.runner import Runner


class Sink(Protocol):
    """Takes frames, each port's in order."""

    async def write(self, frame: Frame) -> None:
        """Returns when `frame` is written, which lets the next one be made. `frame.array` is lent for that time."""


async def drain(runner: Runner, sink: Sink, ports: tuple[str, ...] = (), ahead: int = 4) -> Event:
    """Writes every frame of `ports` (none named: all outputs) until the session ends; returns its ENDED event.

    `ahead` frames a port are let go before the first is written. What `sink.write` raises goes up; the session is left
    as it is, to be closed by the caller.
    """
    wishes = tuple(PortWish(port, ahead) for port in ports)
    consumer = runner.attach(ConsumerSpec(Role.CONTROLLER, wishes, credits=ahead))
    last = Event(EventType.ENDED, "nothing was read")
    try:
        async for item in consumer:
            if isinstance(item, Frame):
                await sink.write(item)
                consumer.ack(item.port, item.number)
                consumer.credit(item.port, 1)
            elif isinstance(item, Event):
                last = item
    finally:
        consumer.close()
    return last
