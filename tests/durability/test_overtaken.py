"""A runner that another one has taken over from, and does not know: it tells a store nothing, deletes nothing, and ends
by the first State that refuses it, or by what its client has. And one that is in charge tells a store of all that it
has lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.stage import Epoch, StaleEpoch
from riverrun.graphs.waiting import SystemClock
from riverrun.models.base import Chunk, Unavailable
from riverrun.store.memory import MemoryStore
from riverrun.store.records import ANY, DECIDED, Conflict, ControlEntry, SessionRecord, SessionState

SOURCE = Graph("source", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})
FED = Graph("fed", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")}, (), {"in": Endpoint("a", "frames")})
SIZE = {"height": 4, "width": 4, "state_bytes": 64}
ARRIVED, CARRIED = ControlEntry(1, "prompt", "p", "a"), ControlEntry(1, "prompt", "p", "a", 4, 4)
DECISION, NEXT = ControlEntry(0, DECIDED, 1, "b", 1), ControlEntry(0, DECIDED, 2, "b", 3)


class AwayStore(MemoryStore):
    """Can't be reached while `away`; answers the next `deaf` lines with an error, though it has taken them."""

    away, deaf = False, 0

    async def _held(self, record: SessionRecord, has: int) -> SessionRecord:
        if self.away:
            raise Unavailable("connection refused")
        return await super()._held(record, has)

    async def log(self, record: SessionRecord, entry: ControlEntry, has: int = ANY) -> None:
        await super().log(record, entry, has)
        if self.deaf:
            self.deaf -= 1
            raise Unavailable("connection reset")


async def _keeper(store: MemoryStore) -> RecordKeeper:
    return RecordKeeper(await store.create(SessionRecord("s1", "g", nonce="n1")), store, SystemClock(), 8, 60)


@pytest.mark.parametrize("after", [(DECISION, NEXT), (DECISION,), ()], ids=len)
def test_a_store_that_has_lost_lines_of_the_log_alone_is_told_of_them(after: Sequence[ControlEntry]):
    """It failed over without the last two; the record in it is the one that its runner knows."""

    async def body() -> tuple[ControlEntry, ...]:
        store = MemoryStore()
        keeper = await _keeper(store)
        for line in (ARRIVED, CARRIED):
            await keeper.log(line)
        store._logs.clear()
        for line in after:
            await keeper.log(line)
        await keeper.commit(state=SessionState.RUNNING)
        return await store.read_log("s1")

    assert asyncio.run(body()) == (ARRIVED, CARRIED, *after)


def test_a_line_whose_answer_was_lost_is_there_once():
    async def body() -> tuple[ControlEntry, ...]:
        store = AwayStore()
        keeper = await _keeper(store)
        store.deaf = 1
        await keeper.log(ARRIVED)
        await keeper.log(CARRIED)  # the store is away, as far as is known here
        await keeper.commit(state=SessionState.RUNNING)
        await keeper.log(DECISION)
        return await store.read_log("s1")

    assert asyncio.run(body()) == (ARRIVED, CARRIED, DECISION)


@pytest.mark.parametrize("newest", [1, 2])
def test_a_store_that_has_lost_everything_is_told_by_the_newest_runner_only(newest: int):
    """The other one stood still while that one took the session over, and left checkpoints."""

    async def epoch(session: str) -> int:
        return newest

    async def body() -> SessionRecord | None:
        store = MemoryStore()
        keeper = RecordKeeper(SessionRecord("s1", "g", nonce="n1", version=3), store, SystemClock(), 8, 60, epoch)
        if newest > 1:
            with pytest.raises(Conflict, match="there are checkpoints of epoch 2"):
                await keeper.commit(state=SessionState.RUNNING)
        else:
            await keeper.commit(state=SessionState.RUNNING)
        return await store.get("s1")

    assert bool(asyncio.run(body())) == (newest == 1)


@pytest.mark.parametrize("is_overtaken", [True, False])
def test_checkpoints_that_a_stage_left_behind_are_deleted_once_the_store_says_so(w, clock, run, is_overtaken):
    """Its client has acked nothing, so the stage began again before them. Who took the session over since, and was not
    told of that, may rely on them."""

    async def body() -> None:
        world = w.World(clock)
        world.store = AwayStore(now=clock.now)
        runner = await world.open(SOURCE, RunnerConfig(cadence=Cadence(chunks=2), grace_s=30), params={"a": SIZE})
        client = w.Client(credits=1)
        await client.read(runner, 24, ack=False)
        saver = runner._flow.saver
        had = [m.path for m in saver.book("a").manifests]
        if is_overtaken:
            stored = await world.store.get("s1")
            await world.store.take("s1", stored.version, 2, "n2")
        world.store.away = True
        saver.begins_again("a", saver.book("a").manifests[0].mark.seq)
        left = sorted(saver.dropped)
        assert left
        assert set(left) < set(had)
        await clock.advance(40)
        assert set(left) <= set(world.blobs.paths), "the store was not told"
        world.store.away = False
        await clock.advance(20)
        if is_overtaken:
            await runner.ended()
            assert isinstance(runner.fault, Conflict)
            assert set(left) <= set(world.blobs.paths)
        else:
            assert not set(left) & set(world.blobs.paths)
            assert not saver.dropped
            await runner.close("over")

    run(body())


@pytest.mark.parametrize("is_overtaken", [True, False])
def test_checkpoints_are_deleted_once_the_store_knows_the_session_closed(w, clock, run, is_overtaken):
    """A runner that can't reach the store closes the session; another one may have it, and need them."""

    async def body() -> None:
        world = w.World(clock)
        world.store = AwayStore(now=clock.now)
        runner = await world.open(SOURCE, RunnerConfig(cadence=Cadence(chunks=2)), params={"a": SIZE})
        await w.Client().read(runner, 40)
        if is_overtaken:
            stored = await world.store.get("s1")
            await world.store.take("s1", stored.version, 2, "n2")
        world.store.away = True
        await runner.close("nobody was connected")
        assert await world.blobs.manifests("s1")
        world.store.away = False
        catching = asyncio.create_task(runner.catch_up())
        await clock.advance(1)
        await asyncio.wait({catching})
        assert isinstance(catching.exception(), Conflict) == is_overtaken
        assert bool(await world.blobs.manifests("s1")) == is_overtaken

    run(body())


def test_a_runner_ends_that_is_refused_a_checkpoint(w, clock, run):
    """Its client has sent all that it may before some of it is durable, so no step is made that would be refused."""

    async def body() -> None:
        world = w.World(clock)
        world.blobs.is_full = True
        config = RunnerConfig(cadence=Cadence(chunks=10_000, seconds=1e9, inputs=2))
        runner = await world.open(FED, config, params={"a": {**SIZE, "takes": 1, "chunk_frames": 1}})
        reading = asyncio.create_task(w.Client().read(runner))
        for number in range(2):
            frame = np.zeros((1, 4, 4, 3), np.uint8)
            await runner.push("in", Chunk("in", frame, pts=number * 5625, frame_ticks=5625, frames=1))
        await runner._signal.until(lambda: runner._flow.saver.stages["a"].is_failing)
        at = await world.find("a", runner.record.placement["a"])
        await at.attach("s1", Epoch(2, "n2"))
        await clock.advance(2)  # it tries again
        await runner.ended()
        await reading
        assert isinstance(runner.fault, StaleEpoch)
        assert world.states() == 1, "the State is another's, and left where it is"

    run(body())


def test_a_client_that_has_more_than_was_made_here_or_known_of_has_it_from_another_runner(w, clock, run):
    """Of a session that was taken over, too."""

    async def body() -> None:
        world = w.World(clock)
        runner, client = await world.open(SOURCE, RunnerConfig(), params={"a": SIZE}), w.Client()
        await client.read(runner, 40)
        assert not runner.is_overtaken({"frames": 40})
        assert runner.is_overtaken({"frames": 400})
        await world.crash(runner)
        world.kill(runner.record.placement["a"].actor)
        runner = await world.take_over(SOURCE, RunnerConfig(), {"frames": 40})
        assert not runner.is_overtaken({"frames": 40})
        assert runner.is_overtaken({"frames": 400})
        await runner.close("over")

    run(body())


def test_no_take_over_goes_on_that_the_store_may_have_forgotten(w, clock, run):
    """It answered that it was granted, and nothing since: whoever had the session before may have it still."""

    async def body() -> None:
        world = w.World(clock)
        world.store = AwayStore(now=clock.now)
        runner, client = await world.open(SOURCE, RunnerConfig(), params={"a": SIZE}), w.Client()
        await client.read(runner, 40)
        await world.crash(runner)
        take = world.store.take

        async def granted(*args: Any) -> SessionRecord:
            record = await take(*args)
            world.store.away = True
            return record

        world.store.take = granted
        taking = asyncio.create_task(world.take_over(SOURCE, RunnerConfig(), {"frames": 40}))
        await clock.advance(20)
        with pytest.raises(Unavailable, match="can't be taken up: the store is away"):
            await taking
        assert not world.states()
        world.store.take, world.store.away = take, False
        runner = await world.take_over(SOURCE, RunnerConfig(), {"frames": 40})
        await client.read(runner, 48)
        assert client.numbers == list(range(48))
        await runner.close("over")

    run(body())
