"""Runs a session's output into something that writes, with no client attached: what a job does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from riverrun.graphs.consumer import ConsumerSpec, PortWish, Role
from riverrun.graphs.items import Event, EventType, Frame
from riverrun.graphs.runner import Runner

NOTHING: Mapping[str, int] = MappingProxyType({})


class Sink(Protocol):
    """Takes frames, each port's in order."""

    async def write(self, frame: Frame) -> None:
        """Returns when `frame` is written, which lets the next one be made. `frame.array` is lent for that time."""

    def durable(self, port: str) -> int:
        """So many frames of a port will never be asked for again, so they need not be kept."""


async def drain(
    runner: Runner,
    sink: Sink,
    ports: tuple[str, ...] = (),
    ahead: int = 4,
    had: Mapping[str, int] = MappingProxyType({}),
) -> Event:
    """Writes every frame of `ports` (none named: all outputs) until the session ends; returns its ENDED event, or
    SUSPENDED.

    `ahead` frames a port are let go before the first is written; as many may be written that are not durable. had: by
    port, frames that `sink` has from before. What `sink.write` raises goes up; the session is left as it is, to be
    closed by the caller.
    """
    wishes = tuple(PortWish(port, ahead, had[port] - 1 if port in had else None) for port in ports)
    consumer = runner.attach(ConsumerSpec(Role.CONTROLLER, wishes, credits=ahead))
    last = Event(EventType.ENDED, "nothing was read")
    acked: dict[str, int] = {}
    try:
        async for item in consumer:
            if isinstance(item, Frame):
                await sink.write(item)
                if (durable := sink.durable(item.port)) > acked.get(item.port, 0):
                    acked[item.port] = durable
                    consumer.ack(item.port, durable - 1)
                consumer.credit(item.port, 1)
            elif isinstance(item, Event):
                last = item
    finally:
        consumer.close()
    return last
