"""The session store of a schedule: the real rules behind messages; it may be away, lose its last writes, or all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from schedule_world import Party, World

from riverrun.graphs.waiting import within
from riverrun.models.base import Unavailable
from riverrun.store.memory import MemoryStore
from riverrun.store.records import Conflict, ControlEntry, SessionRecord

WRITES = frozenset({"create", "update", "take", "log", "delete"})
CHANCE_S = 8.0
"""A runner left in peace for so long after the store has lost writes has told it again (it writes every 5 s)."""


class Redis(MemoryStore, Party):
    """kept: how it stood before each of the last writes. holders: (epoch, nonce) of each write that it knows of.
    forgotten: lines of the control log that it has taken, and lost before their runner could tell it of them again; or
    could not be told of while it was away. untold: what may be such lines, of runners that another one takes over from.
    """

    def __init__(self, world: World):
        MemoryStore.__init__(self, now=world.clock.now)
        Party.__init__(self, "redis")
        self.world = world
        self.kept: deque = deque(maxlen=4)
        self.holders: list[tuple[int, str]] = []
        self.forgotten: list[ControlEntry] = []
        self.holder: Any = None
        self.untold: Callable[[], list[ControlEntry]] = list

    def fail_over(self, writes: int) -> None:
        """The last writes were not on the replica."""
        before = self._lines()
        stood = None
        for _ in range(min(writes, len(self.kept))):
            stood = self.kept.pop()
        if stood:
            self._records, self._expiry, self.holders = dict(stood[0]), dict(stood[2]), list(stood[3])
            self._logs = {name: deque(lines) for name, lines in stood[1].items()}
        self._restarted(before)

    def hear(self, gateways: Iterable[str], ttl_s: float) -> None:
        """That they live."""
        for name in gateways:
            now(self.heartbeat(name, "here", ttl_s))

    def empty(self) -> None:
        before = self._lines()
        self.wipe()
        self.holders = []
        self.kept.clear()
        self._restarted(before)

    def _lines(self) -> list[ControlEntry]:
        """All that it knows: those that have left the log for the record, too."""
        logged = [ControlEntry.from_json(line) for lines in self._logs.values() for line in lines]
        return [line for text in self._records.values() for line in SessionRecord.from_json(text).folded] + logged

    def _restarted(self, before: list[ControlEntry]) -> None:
        self.run = f"run {next(self.world.numbers)}"
        left = self._lines()
        lost = [line for line in before if line not in left]
        if not lost:
            return
        self.world.struck["log lines lost"] += 1
        self.forgotten += lost
        if self.holder and not self._is_disturbed(self.holder):
            since, holder = self.world.loop._now, self.holder
            known = [line for line in lost if holder.knows(line)]
            self.world.loop.call_later(CHANCE_S, self._had_its_chance, holder, holder.runner, known, since)

    def never_told(self, lines: Iterable[ControlEntry]) -> None:
        """Nobody is left who could tell it of these; of some it may know."""
        known = self._lines()
        self.forgotten += [line for line in lines if line not in known]

    def _had_its_chance(self, holder: Any, runner: Any, lost: list[ControlEntry], since: float) -> None:
        """No excuse is left for a runner that lived all the while, with nothing between it and the store."""
        lived = holder.lives and holder.runner is runner and runner and runner.state.runs
        if lived and not self._is_disturbed(holder, since):
            self.forgotten = [line for line in self.forgotten if line not in lost]

    def _is_disturbed(self, holder: Any, since: float | None = None) -> bool:
        since = self.world.loop._now if since is None else since
        weather = self.world.weather
        is_rough = weather.lose or (weather.slow and weather.slow_s > 1)
        return bool(is_rough or max(holder.frozen_until, self.away_until, self.frozen_until) > since)

    def note(self, record: SessionRecord) -> None:
        """A write was accepted. Raises AssertionError if somebody else holds the session."""
        if self.holders:
            last = self.holders[-1]
            mine = (record.epoch, record.nonce)
            assert mine == last or mine[0] > last[0], f"epoch {mine} wrote after {last} was granted"
        self.holders.append((record.epoch, record.nonce))

    def record(self, session: str) -> SessionRecord | None:
        """As it stands."""
        text = self._records.get(session)
        return SessionRecord.from_json(text) if text else None

    def by(self, gateway: Any) -> View:
        return View(self, gateway)


class View:
    """The store as one gateway sees it."""

    def __init__(self, redis: Redis, gateway: Any):
        self._redis, self._gateway = redis, gateway

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._call, name)

    async def _call(self, name: str, *args: Any) -> Any:
        redis, world = self._redis, self._redis.world
        work = _Once(redis, partial(self._do, name, *args))
        return await in_time(world, 4.0, world.ask(self._gateway, f"store.{name}", redis, work))

    def _do(self, name: str, *args: Any) -> Any:
        redis = self._redis
        if name not in WRITES:
            return now(getattr(redis, name)(*args))
        stood = (dict(redis._records), {k: tuple(v) for k, v in redis._logs.items()}, dict(redis._expiry))
        try:
            result = now(getattr(redis, name)(*args))
        except Conflict:
            redis.world.struck["write refused by its epoch or version"] += 1
            if name in ("update", "log") and redis.holders and args[0].epoch < redis.holders[-1][0]:
                redis.never_told(self._gateway.untold)  # what an overtaken runner took in while the store was away
            raise
        redis.kept.append((*stood, tuple(redis.holders)))
        if name != "delete":
            redis.note(args[0] if name == "log" else result)
            redis.holder = self._gateway
        if name == "take":
            redis.never_told(redis.untold())
        told = (args[1],) if name == "log" else args[0].folded if name == "update" else ()
        if told and redis.forgotten:
            redis.forgotten = [line for line in redis.forgotten if line not in told]
        return result


class _Once:
    """Work for a store. The message may come twice; but not to another store than the first one went to, since it came
    over a connection to that one."""

    def __init__(self, redis: Redis, work: Callable[[], Any]):
        self._redis, self._work = redis, work
        self._done_in = ""

    def __call__(self) -> Any:
        if self._done_in not in ("", self._redis.run):
            raise Unavailable("the connection broke")
        self._done_in = self._redis.run
        return self._work()


async def in_time(world: World, seconds: float, work: Any) -> Any:
    """Its result; Unavailable if that takes too long."""
    try:
        return await within(world.clock, seconds, work)
    except TimeoutError as error:
        raise Unavailable(f"no answer for {seconds:g} s") from error


def now(work: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")
