"""The client of a schedule: reads through reconnects, sends input and controls again, and looks at every frame."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import numpy as np
from schedule_graphs import Case
from schedule_ledger import Ledger, demand

from riverrun.graphs.consumer import ConsumerSpec, PortWish, Role
from riverrun.graphs.items import Event, EventType, Frame, InputAck, Receipt, ReceiptStage
from riverrun.graphs.runner import SessionEnded
from riverrun.models.base import BadRequest, Control

PRESS_S = 60.0
"""So often a user looks whether the stream stands still."""


class Viewer:
    """show: has `reach(received)`. credits, lag: of frames it may be given, and how many it takes before it acks.

    window: input it sends before an ack. broad: its controls name no stage. over: how the session ended, "" until then.
    nap_s: on its next connection it takes nothing for so long.
    """

    def __init__(self, show: Any, case: Case, dice: random.Random):
        self.show, self.case, self.dice = show, case, dice
        self.ports = ["frames", *case.extra]
        if case.extra and dice.random() < 0.3:
            self.ports = ["frames"]
        self.applied: dict[int, int] = {}
        self.prompted: set[int] = set()
        self.ledgers = {port: self._ledger(port) for port in self.ports}
        self.credits, self.lag = dice.choice((1, 2, 4, 8)), 1 if case.sent else dice.choice((1, 1, 2, 3))
        self.window = show.config.cadence.inputs * 2 + 12
        self.broad = dice.random() < 0.3
        self.acked_input = -1
        self.revision = 0
        self.waiting: dict[int, Control] = {}
        self.pausing = self.wants_end = False
        self.over = ""
        self.reading: asyncio.Task | None = None
        self.talks_to: tuple[Any, Any] | None = None  # gateway and runner, while it is connected
        self.away_s = self.nap_s = 0.0
        self.acks = asyncio.Event()

    def _ledger(self, port: str) -> Ledger:
        line, turned = (self.case.line, self.case.turned) if port == "frames" else (self.case.extra[port], _same)
        about = (lambda: self.show.store.forgotten, self.prompted, self.show.excused)
        return Ledger(self.case, line, turned, self.applied, *about)

    @property
    def received(self) -> dict[str, int]:
        return {port: ledger.count for port, ledger in self.ledgers.items()}

    async def live(self) -> None:
        """Until the session has ended."""
        pressing = asyncio.create_task(self._press_often())
        try:
            await self._live()
        finally:
            pressing.cancel()

    async def _live(self) -> None:
        while not self.over:
            await asyncio.sleep(self.away_s + self.dice.choice((0.0, 0.001, 0.01)))
            self.away_s = 0.0
            gateway = await self.show.reach(self.received)
            if gateway is None:
                continue
            self.reading = asyncio.create_task(self._read(gateway))
            await asyncio.wait({self.reading})
            if not self.reading.cancelled() and (error := self.reading.exception()):
                raise error

    def cut(self, away_s: float) -> None:
        """The connection breaks."""
        self.away_s = away_s
        if self.reading:
            self.reading.cancel()

    async def _read(self, gateway: Any) -> None:
        wishes = [PortWish(p, self.credits, n - 1 if n else None) for p, n in self.received.items()]
        if (runner := gateway.runner) is None:
            return
        try:
            consumer = runner.attach(ConsumerSpec(Role.CONTROLLER, tuple(wishes)))
        except BadRequest:
            return  # it has ended meanwhile
        feeding = gateway.start(self._feed(runner)) if self.case.sent else None
        if feeding:
            feeding.add_done_callback(self._fed)
        self.talks_to = gateway, runner
        try:
            self._send_again(gateway, runner)
            nap_s, self.nap_s = self.nap_s, 0.0
            if nap_s:
                await asyncio.sleep(nap_s)
            while not self.over and (item := await consumer.next()) is not None:
                self._take(consumer, item)
                if self.dice.random() < 0.1:
                    await asyncio.sleep(self.dice.choice((0.001, 0.02)))
        finally:
            self.talks_to = None
            consumer.close()
            if feeding:
                feeding.cancel()

    def _take(self, consumer: Any, item: Any) -> None:
        if isinstance(item, Frame):
            self.ledgers[item.port].take(item)
            self.waiting = {r: c for r, c in self.waiting.items() if r > item.revision}
            consumer.credit(item.port, 1)
            if item.number % self.lag == 0 or self.wants_end or self.case.frames:
                consumer.ack(item.port, item.number)
        elif isinstance(item, InputAck):
            demand(item.frame < self.case.sent, f"input {item.frame} was acked, which was never sent")
            self.acked_input = max(self.acked_input, item.frame)
            self.acks.set()
        elif isinstance(item, Receipt):
            self._settle(item)
        elif isinstance(item, Event):
            self._hear(item)

    def _settle(self, receipt: Receipt) -> None:
        if receipt.stage is ReceiptStage.RECEIVED:
            return
        control = self.waiting.pop(receipt.revision, None)
        if control and control.kind == "prompt" and receipt.stage is ReceiptStage.APPLIED and not self.broad:
            self.applied[receipt.revision] = receipt.frame

    def _hear(self, event: Event) -> None:
        if event.type is EventType.ENDED and not event.failed:
            self.over = "closed"
        elif event.type is EventType.ENDED:
            self.show.failed(event.reason)
        elif event.type is EventType.SUSPENDED:
            self.away_s = event.retry_s

    # ---- what it sends ----

    async def _feed(self, runner: Any) -> None:
        due = runner.taken_in()["in"]
        demand(due <= self.acked_input + 1 + self.window, f"input {due} is due, which was never sent")
        demand(due > self.acked_input, f"input {due} is wanted again, and up to {self.acked_input} was acked")
        try:
            for number in range(due, self.case.sent):
                while number > self.acked_input + self.window:
                    self.acks.clear()
                    await self.acks.wait()
                await runner.push("in", self.case.input_chunk(number))
            await runner.finish()
        except BadRequest:
            return  # it has ended

    def _fed(self, feeding: asyncio.Task) -> None:
        """What is wrong with the input that is asked for ends the schedule."""
        if not feeding.cancelled() and (error := feeding.exception()):
            self.show.fail(error)

    def control(self, kind: str, value: Any) -> None:
        """Sends one, now or on the next connection."""
        self.revision += 1
        self.pausing = value if kind == "pause" else self.pausing
        if kind == "prompt" and value:
            self.prompted.add(self.revision)
        self.waiting[self.revision] = Control(self.revision, kind, value)
        self._send_now(self.revision)

    async def _press_often(self) -> None:
        while True:
            await asyncio.sleep(PRESS_S)
            self.show.guarded(self._press_again)

    def _press_again(self) -> None:
        """As a user who sees that it stands still, though it should go on: the end of the pause is lost."""
        runner = self.talks_to[1] if self.talks_to else None
        waits = self.pausing or any(control.kind == "pause" for control in self.waiting.values())
        if waits or runner is None or not runner.state.runs or not runner.status().paused:
            return
        lost = [line for line in self.show.store.forgotten if line.kind == "pause"]
        demand(lost, "it is paused, and was told to go on")
        self.show.excused("the end of a pause was lost, and said again")
        self.control("pause", False)

    def finish(self) -> None:
        self.wants_end = True
        self._send_now(self.revision + 1)

    def _send_now(self, least: int) -> None:
        if self.talks_to:
            self._send_again(*self.talks_to, least)

    def _send_again(self, gateway: Any, runner: Any, least: int = 0) -> None:
        """All that is not settled, from revision `least` on."""
        if not runner.state.runs:
            return
        for revision, control in list(self.waiting.items()):
            if revision >= least:
                gateway.start(self._sent(runner, control))
        if self.wants_end:
            gateway.start(_finished(runner))

    async def _sent(self, runner: Any, control: Control) -> None:
        stage = "" if control.kind == "pause" or self.broad else "a"
        try:
            await runner.control(control, stage)
        except SessionEnded:
            return
        except BadRequest:
            self.waiting.pop(control.revision, None)  # it was settled, and its receipts are forgotten

    # ---- at the end ----

    def check_whole(self) -> None:
        """It has all that there is."""
        count, case = self.ledgers["frames"].count, self.case
        if case.sent:
            demand(count == case.made(case.sent), f"{count} frames of {case.sent} sent")
        elif case.frames:
            demand(count == case.frames, f"{count} frames of {case.frames}")
        elif case.line:
            chunks = next(n for n in range(10_000) if case.made(n * case.chunk) >= count)
            demand(case.made(chunks * case.chunk) == count, f"{count} frames: no flush leaves so many")
        for port in self.ports[1:] if case.frames else ():
            least, most = case.beside(port)
            count = self.ledgers[port].count
            demand(least <= count <= most, f"{count} frames of {port} beside {case.frames}, not {least} to {most}")


async def _finished(runner: Any) -> None:
    with contextlib.suppress(BadRequest):
        await runner.finish()


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels
