"""Controls a client has sent and what became of them."""

from __future__ import annotations

import asyncio

from riverrun.client.errors import Error, Rejected
from riverrun.client.types import Receipt
from riverrun.protos import riverrun_pb2 as pb


class Change:
    """One control on its way: first received (logged, so it survives a crash), then applied at a chunk boundary.

    revision: its number; frames with `revision` at or above it were made with it. receipt: where it took effect, once
    known. error: why it never will. Waiting for `applied` needs somebody to take frames meanwhile, since the stream
    runs only on credits.
    """

    def __init__(self, control: pb.Control) -> None:
        self.control = control
        self.receipt: Receipt | None = None
        self.is_received = False
        self._moved = asyncio.Event()
        self.error: Error | None = None

    @property
    def revision(self) -> int:
        return int(self.control.revision)

    @property
    def settled(self) -> bool:
        """Whether it was applied or refused, or the stream ended first."""
        return self.receipt is not None or self.error is not None

    async def received(self) -> None:
        """Waits until the service has logged it. Raises Rejected if it was refused, Error if the stream ended."""
        while not (self.is_received or self.settled):
            await self._next_move()
        if self.error is not None and not self.is_received:
            raise self.error

    async def applied(self) -> Receipt:
        """Waits until it is in force. Raises Rejected if it was refused, Error if the stream ended before."""
        while not self.settled:
            await self._next_move()
        if self.receipt is None:
            assert self.error is not None
            raise self.error
        return self.receipt

    def apply(self, chunk: int, frame: int) -> None:
        self.is_received = True
        if not self.settled:
            self.receipt = Receipt(self.revision, chunk, frame)
        self._moved.set()

    def fail(self, error: Error) -> None:
        if not self.settled:
            self.error = error
        self._moved.set()

    def acknowledge(self) -> None:
        self.is_received = True
        self._moved.set()

    async def _next_move(self) -> None:
        self._moved.clear()
        await self._moved.wait()


class ChangeLog:
    """The controls of one stream that are not settled yet, by revision. Sent again after each reconnect."""

    def __init__(self) -> None:
        self._last = 0
        self._open: dict[int, Change] = {}

    def add(self, control: pb.Control) -> Change:
        """Numbers a control and keeps it until it is settled."""
        self._last += 1
        control.revision = self._last
        self._open[self._last] = Change(control)
        return self._open[self._last]

    def start_after(self, revision: int) -> None:
        """Numbers from above `revision`: a session that somebody steered before."""
        self._last = max(self._last, revision)

    def unsettled(self) -> list[pb.Control]:
        return [change.control for change in self._open.values()]

    def note(self, receipt: pb.Receipt) -> None:
        """Books a receipt; one for a settled or foreign revision is ignored."""
        change = self._open.get(receipt.revision)
        if change is None:
            return
        if receipt.stage == pb.Receipt.STAGE_RECEIVED:
            change.acknowledge()
        elif receipt.stage == pb.Receipt.STAGE_APPLIED:
            change.apply(receipt.chunk, receipt.frame)
        elif receipt.stage == pb.Receipt.STAGE_REJECTED:
            change.fail(Rejected(receipt.message or f"control {receipt.revision} was refused", "FAILED_PRECONDITION"))
        if change.settled:
            del self._open[receipt.revision]

    def seen(self, revision: int, chunk: int, frame: int) -> None:
        """A frame made under `revision` proves it was applied, even if the receipt was lost with a connection."""
        change = self._open.pop(revision, None)
        if change is not None:
            change.apply(chunk, frame)

    def fail_all(self, error: Error) -> None:
        for change in self._open.values():
            change.fail(error)
        self._open.clear()
