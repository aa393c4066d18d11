"""What a session's flow tells whoever measures it. The flow knows no metrics and no traces: it is handed an `Observer`.

A trace is a W3C traceparent string, empty where nobody traces. It travels on chunks and step requests; only an observer
puts it there.
"""

from __future__ import annotations

from riverrun.graphs.items import Frame
from riverrun.graphs.stage import StepReply, StepRequest
from riverrun.models.base import Chunk


class Observer:
    """One session's. This one does nothing, at the cost of a call; others override what they want.

    Called on the event loop between two steps: every method returns at once and raises nothing.
    """

    def asks(self, stage: str, request: StepRequest) -> StepRequest:
        """`request` is about to be sent; what is returned is sent in its place (the same, or with a trace)."""
        return request

    def answered(self, stage: str, request: StepRequest, reply: StepReply, call_s: float) -> StepReply:
        """`reply` came after `call_s`; what is returned goes on in its place (the same, or its chunks with a trace)."""
        return reply

    def fetched(self, stage: str, chunk: Chunk, fetch_s: float) -> Chunk:
        """A chunk of `stage` was fetched for the clients; what is returned is kept in its place."""
        return chunk

    def sent(self, frame: Frame, codec: str, size: int, encode_s: float, send_s: float) -> None:
        """A frame was written to a client: `size` bytes by `codec`, that took so long to make and to write."""

    def played(self, played_s: float, stalled_s: float) -> None:
        """Since its last frame the controller's player played, and stood until this one came, for so long."""

    def moved(self, stage: str) -> None:
        """The stage goes on at another actor, which was given its State."""

    def recovered(self, stage: str) -> None:
        """The stage was lost and stands again."""

    def wanted(self, trace: str) -> None:
        """A client asks that the next chunk be traced under its own `trace`; "" asks for nothing, nor does a repeat."""

    def ended(self, state: str) -> None:
        """The session is over: "closed" or "failed". Not told of one that never opened."""


SILENT = Observer()
