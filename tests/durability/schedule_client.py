"""The client of a schedule: reads through reconnects, sends input and controls again, and looks at every frame."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import numpy as np
from schedule_graphs import Case, Line, last_of, prompts

from riverrun.graphs.consumer import ConsumerSpec, PortWish, Role
from riverrun.graphs.items import Event, EventType, Frame, InputAck, Receipt, ReceiptStage
from riverrun.models.base import BadRequest, Control

PROMPTS = prompts(40)


class Violation(AssertionError):
    """Something was lost, came twice, or is not what it was."""


def demand(true: Any, what: str) -> None:
    if not true:
        raise Violation(what)


class Ledger:
    """The frames of one output as they must be. seen: which prompt each chunk of the source was made under."""

    def __init__(self, case: Case, line: Line | None, turned: Any):
        self.case, self.line, self.turned = case, line, turned
        self.count = 0
        self.revision = 0
        self.seen: dict[int, int] = {}
        self._group = (0, 0, 0)  # of a stage of chance: groups before, how many in this one, which is next

    def take(self, frame: Frame) -> None:
        where = f"{frame.port} frame {frame.number}"
        demand(frame.number == self.count, f"{where} came where {self.count} was due")
        demand(frame.revision >= self.revision, f"{where}: revision {frame.revision} after {self.revision}")
        self.count, self.revision = self.count + 1, frame.revision
        if self.line:
            at = self.line.pts(frame.number)
            demand(frame.pts == at, f"{where} is shown at {frame.pts}, not {at}")
            self._compare(frame, self.line.of(frame.number), self.turned, where)
        else:
            self._compare(frame, self._next_by_chance(frame, where), None, where)

    def _next_by_chance(self, frame: Frame, where: str) -> int:
        groups, count, index = self._group
        said, place, mark = (int(v) for v in frame.array[0, 1])
        demand(mark == 7 and place == index and (not index or said == count), f"{where} is {place} of {said}")
        self._group = (groups, said, index + 1) if index + 1 < said else (groups + 1, 0, 0)
        return 2 * groups + index

    def _compare(self, frame: Frame, number: int, turned: Any, where: str) -> None:
        chunk = number // self.case.chunk
        if self.case.sent:
            fits = [0] if np.array_equal(frame.array, turned(self.case.source(number, "input"))) else []
        else:
            fits = [r for r, p in enumerate(PROMPTS[: frame.revision + 1]) if self._is(frame, number, p, turned)]
        demand(fits, f"{where} is not as it was undisturbed (revision {frame.revision})")
        least = max((r for c, r in self.seen.items() if c < chunk), default=0)
        fits = [r for r in fits if r >= least and self.seen.get(chunk, r) == r]
        demand(fits, f"{where}: its prompt changed within chunk {chunk}, or went back")
        self.seen[chunk] = fits[0]
        if len(self.seen) > 8:
            del self.seen[min(self.seen)]

    def _is(self, frame: Frame, number: int, prompt: str, turned: Any) -> bool:
        wanted = self.case.source(number, prompt)
        if turned is not None:
            return np.array_equal(frame.array, turned(wanted))
        wanted[0, 1] = frame.array[0, 1]
        return np.array_equal(frame.array, wanted)


class Viewer:
    """show: has `reach(received)`. credits, lag: of frames it may be given, and how many it takes before it acks.

    window: input it sends before an ack.
    """

    def __init__(self, show: Any, case: Case, dice: random.Random):
        self.show, self.case, self.dice = show, case, dice
        self.ports = ["frames", *case.extra]
        if case.extra and dice.random() < 0.3:
            self.ports = ["frames"]
        self.ledgers = {
            p: Ledger(case, case.extra.get(p, case.line), case.turned if p == "frames" else _same) for p in self.ports
        }
        self.credits, self.lag = dice.choice((1, 2, 4, 8)), 1 if case.sent else dice.choice((1, 1, 2, 3))
        self.window = show.config.cadence.inputs * 2 + 12
        self.acked_input = -1
        self.revision = 0
        self.waiting: dict[int, Control] = {}
        self.wants_end = False
        self.over = ""
        self.reading: asyncio.Task | None = None
        self.away_s = 0.0
        self.progress = asyncio.Event()
        self.acks = asyncio.Event()

    @property
    def received(self) -> dict[str, int]:
        return {port: ledger.count for port, ledger in self.ledgers.items()}

    async def live(self) -> None:
        """Until the session has ended."""
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
        try:
            consumer = gateway.runner.attach(ConsumerSpec(Role.CONTROLLER, tuple(wishes)))
        except BadRequest:
            return  # it has ended meanwhile
        feeding = self.show.start(gateway, self._feed(gateway.runner)) if self.case.sent else None
        try:
            self._send_again(gateway.runner)
            while not self.over and (item := await consumer.next()) is not None:
                self._take(consumer, item)
                if self.dice.random() < 0.1:
                    await asyncio.sleep(self.dice.choice((0.001, 0.02)))
        finally:
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
            self.show.moved()
        elif isinstance(item, InputAck):
            demand(item.frame < self.case.sent, f"input {item.frame} was acked, which was never sent")
            self.acked_input = max(self.acked_input, item.frame)
            self.acks.set()
            self.show.moved()
        elif isinstance(item, Receipt):
            if item.stage is not ReceiptStage.RECEIVED:
                self.waiting.pop(item.revision, None)
        elif isinstance(item, Event):
            self._hear(item)

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

    def control(self, kind: str, value: Any, runner: Any) -> None:
        """Sends one, now or on the next connection."""
        self.revision += 1
        self.waiting[self.revision] = Control(self.revision, kind, value)
        self._send_again(runner, self.revision)

    def finish(self, runner: Any) -> None:
        self.wants_end = True
        self._send_again(runner, self.revision + 1)

    def _send_again(self, runner: Any, least: int = 0) -> None:
        """All that is not settled, from revision `least` on."""
        if runner is None or not runner.state.runs:
            return
        for revision, control in list(self.waiting.items()):
            if revision >= least:
                self.show.start(self.show.current, self._sent(runner, control))
        if self.wants_end:
            self.show.start(self.show.current, _quietly(runner.finish()))

    async def _sent(self, runner: Any, control: Control) -> None:
        stage = "" if control.kind == "pause" or self.show.broad else "a"
        try:
            await runner.control(control, stage)
        except BadRequest:
            self.waiting.pop(control.revision, None)  # it was settled, and its receipts are forgotten

    # ---- at the end ----

    def check_whole(self) -> None:
        """It has all that there is."""
        count = self.ledgers["frames"].count
        if self.case.sent:
            demand(count == last_of(self.case, self.case.sent), f"{count} frames of {self.case.sent} sent")
        elif self.case.frames:
            demand(count == self.case.frames, f"{count} frames of {self.case.frames}")
        elif self.case.line:
            chunks = 0
            while last_of(self.case, chunks * self.case.chunk) < count:
                chunks += 1
            demand(last_of(self.case, chunks * self.case.chunk) == count, f"{count} frames: no flush leaves so many")


async def _quietly(work: Any) -> None:
    with contextlib.suppress(BadRequest):
        await work


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels
