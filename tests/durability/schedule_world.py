"""The world of a schedule: its parties, and the messages between them, every one of which may be late, lost, or come
twice.

What goes over a message is the real thing: `StageWorker` and `Checkpoints` at one end, `Runner` at the other.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from riverrun.models.base import Unavailable


@dataclass
class Weather:
    """lose, twice, slow: shares of messages. slow_s: how late a slow one is, at most."""

    lose: float = 0.0
    twice: float = 0.0
    slow: float = 0.0
    slow_s: float = 1.0


@dataclass(eq=False)
class Party:
    """Whom messages are sent to. is_noticed: that it is dead is known. frozen_until: it answers nothing before.
    away_until: it refuses everything before. owed: letters whose answer it still works at. tells: a message to it that
    is lost is always known to be."""

    tells = False
    what: str
    lives: bool = True
    is_noticed: bool = True
    frozen_until: float = 0.0
    away_until: float = 0.0
    owed: list[Letter] = field(default_factory=list)

    def gone(self, why: str) -> Exception:
        """What its caller gets who finds it dead, or the connection broken."""
        return Unavailable(f"{self.what}: {why}")

    def must_be_here(self, now: float) -> None:
        if self.away_until > now:
            raise Unavailable(f"{self.what} is away")


class World:
    """clock, loop: time. dice: for everything by chance. on_message: called with each message about to be sent.

    actors: by name. struck: what has happened, by kind. furthest: by stage, the first step that was never asked for.
    lost_closes: how many calls that free a State did not get through.
    """

    def __init__(self, loop: Any, clock: Any, dice: random.Random, places: int):
        self.loop, self.clock, self.dice, self.places = loop, clock, dice, places
        self.weather = Weather()
        self.on_message: Callable[[str], None] = lambda what: None
        self.struck: Counter[str] = Counter()
        self.messages = 0
        self.trace = 0
        self.numbers = itertools.count(1)
        self.actors: dict[str, Any] = {}
        self.furthest: Counter[str] = Counter()
        self.lost_closes = 0

    def states(self) -> int:
        return sum(actor.sessions() for actor in self.actors.values())

    async def ask(self, sender: Any, what: str, receiver: Any, work: Callable[[], Any]) -> Any:
        """What `work` returns at the receiver, or raises there; a `Future` is waited for there.

        A message that is under way arrives, whatever becomes of its sender.
        """
        self.messages += 1
        self.trace = hash((self.trace, round(self.loop._now, 9), sum(map(ord, what))))
        self.on_message(what)
        if sender and not sender.lives:
            raise asyncio.CancelledError  # a dead process says nothing, and nothing goes on in it
        letter = Letter(self, sender, what, receiver, work)
        letter.send()
        return await letter.answer

    def delay(self) -> float:
        if self.dice.random() < self.weather.slow:
            self.struck["slow message"] += 1
            return self.dice.random() * self.weather.slow_s
        return self.dice.choice(DELAYS)


DELAYS = (0.0, 0.001, 0.002, 0.01)


class Letter:
    """A request and its answer. sender: a gateway, or None. receiver: a `Party`."""

    __slots__ = ("answer", "receiver", "sender", "what", "work", "world")

    def __init__(self, world: World, sender: Any, what: str, receiver: Any, work: Callable[[], Any]):
        self.world, self.sender, self.what, self.receiver, self.work = world, sender, what, receiver, work
        self.answer: asyncio.Future = world.loop.create_future()

    def send(self) -> None:
        world, weather = self.world, self.world.weather
        if world.dice.random() < weather.lose:
            self.lose("lost request")
            return
        self._later(self._arrive)
        if world.dice.random() < weather.twice:
            world.struck["request twice"] += 1
            again = Letter(world, self.sender, self.what, self.receiver, self.work)
            world.loop.call_later(world.delay() + world.dice.choice((0.0, 0.05, 3.0)), again._arrive)

    def lose(self, kind: str) -> None:
        """Nobody hears of it, or the sender hears at once that it did not get through."""
        world = self.world
        world.struck[kind] += 1
        if self.what.startswith("close"):
            world.lost_closes += 1
        if world.dice.random() < 0.5 or self.receiver.tells:
            world.loop.call_later(world.delay(), self.set, None, self.receiver.gone("the connection broke"))

    def _later(self, then: Callable[..., None], *args: Any) -> None:
        """When the message is through: after its own delay, and not while either end stands still."""
        world = self.world
        frozen = max(self.receiver.frozen_until, self.sender.frozen_until if self.sender else 0.0)
        world.loop.call_later(max(world.delay(), frozen - world.loop._now), then, *args)

    def _arrive(self) -> None:
        receiver = self.receiver
        if receiver.frozen_until > self.world.loop._now:
            return self._later(self._arrive)
        if not receiver.lives:
            if receiver.is_noticed:
                self.set(None, receiver.gone("the process died"))
            return
        try:
            receiver.must_be_here(self.world.loop._now)
            result = self.work()
        except Exception as error:  # noqa: BLE001 - it is the answer
            return self._reply(None, error)
        if isinstance(result, Future):
            receiver.owed.append(self)
            result.add_done_callback(self._made)
        else:
            self._reply(result, None)

    def _made(self, future: Future) -> None:
        if not self.receiver.lives:
            return
        if self in self.receiver.owed:
            self.receiver.owed.remove(self)
        if error := future.exception():
            self._reply(None, error)
        else:
            self._reply(future.result(), None)

    def _reply(self, result: Any, error: BaseException | None) -> None:
        if error:
            self.world.struck[f"answer: {type(error).__name__}"] += 1
        if self.world.dice.random() < self.world.weather.lose:
            self.lose("lost reply")
        else:
            self._later(self.set, result, error)

    def set(self, result: Any, error: BaseException | None) -> None:
        """The answer is there; it may be there twice."""
        if self.answer.done():
            return
        if error:
            self.answer.set_exception(error)
            self.answer.exception()  # asked for: its sender may have given up
        else:
            self.answer.set_result(result)
