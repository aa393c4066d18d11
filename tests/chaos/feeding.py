"""A client that feeds its session: it keeps what it sent until the service says it need not, and sends it again to
whoever takes the session up.

The library's streams only read, so this is one of them with inputs, as docs/durability.md says of any client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from riverrun.client.link import Link
from riverrun.client.stream import AsyncStream
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Header, Joiner, split

KEEP = 60
"""Frames of a port that may be sent and not said to be safe; a gateway lets 64 wait."""


@dataclass
class Feed:
    """arrays: by port, the frames to send. ticks: media time from one to the next. sent, acked: frames, all ports."""

    arrays: Mapping[str, Iterator[np.ndarray]]
    ticks: int
    sent: int = 0
    acked: int = 0
    again: int = 0
    _next: dict[str, int] = field(default_factory=dict)
    _kept: dict[str, deque[tuple[int, list[pb.FramePart]]]] = field(default_factory=dict)

    def unsafe(self) -> list[pb.FramePart]:
        """What was sent and may have been lost."""
        kept = [parts for frames in self._kept.values() for _, parts in frames]
        self.again += len(kept)
        return [part for parts in kept for part in parts]

    def more(self) -> list[pb.FramePart]:
        """What can be sent now and was not yet."""
        return [part for port in self.arrays for part in self._more(port)]

    def _more(self, port: str) -> list[pb.FramePart]:
        kept, made = self._kept.setdefault(port, deque()), list[pb.FramePart]()
        while len(kept) < KEEP and (array := next(self.arrays[port], None)) is not None:
            number = self._next.get(port, 0)
            parts = split(np.asarray(array), Header(port, number, 0, 0, number * self.ticks, 0, 0))
            kept.append((number, parts))
            made += parts
            self._next[port] = number + 1
            self.sent += 1
        return made

    def safe(self, port: str, frame: int) -> None:
        """Frames up to this one need not be kept."""
        kept = self._kept[port]
        while kept and kept[0][0] <= frame:
            kept.popleft()
            self.acked += 1


class FedStream(AsyncStream):
    """A stream that sends its session's inputs."""

    feed: Feed

    @classmethod
    def of(cls, stream: AsyncStream, feed: Feed) -> FedStream:
        """`stream`, which has not connected yet, with inputs."""
        stream.__class__ = cls
        assert isinstance(stream, cls)
        stream.feed = feed
        return stream

    def _dispatch(self, message: pb.ServerMessage, link: Link, joiner: Joiner) -> None:
        super()._dispatch(message, link, joiner)
        if message.HasField("opened"):
            self._give(link, self.feed.unsafe() + self.feed.more())
        elif message.HasField("input_ack"):
            self.feed.safe(message.input_ack.port, message.input_ack.frame)
            self._give(link, self.feed.more())

    def _give(self, link: Link, parts: list[pb.FramePart]) -> None:
        if self.ended_reason is None:
            for part in parts:
                link.send(pb.ClientMessage(frame=part))
