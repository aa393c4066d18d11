"""What nobody will come back for is removed, and nothing else is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from riverrun.actors.health import Resident
from riverrun.actors.host import SessionWish
from riverrun.actors.reaper import Fate, Reaper, Silence, fate, is_orphan, left
from riverrun.configs.durability import CheckpointConfig
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.stage import Epoch
from riverrun.store.records import Placement, SessionRecord, SessionState

GRAPHS = {"g": Graph("g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})}
PARAMS = {"height": 4, "width": 4, "state_bytes": 64}
CHAIN_PARAMS = {f"{stage}.{name}": value for stage in "ab" for name, value in PARAMS.items()} | {"b.takes": 1}
KEEP = CheckpointConfig(grace_s=30.0, retention_s=7000.0, evidence_s=1000.0, orphan_s=300.0)
NOW = 50_000.0
S = SessionState


def record(state: SessionState, age_s: float = 0.0) -> SessionRecord:
    at = {"a": Placement("a0", "m", "i0")}
    return SessionRecord("s", "g", state=state, updated=NOW - age_s, gateway="g1", placement=at)


@pytest.mark.parametrize(
    ("stored", "noted", "age_s", "expected"),
    [
        (record(S.RUNNING, 10**6), None, 10**6, Fate.KEEP),
        (record(S.OPENING), None, 10**6, Fate.KEEP),
        (record(S.DRAINING), None, 10**6, Fate.KEEP),
        (record(S.SUSPENDED, 6999), None, 10**6, Fate.KEEP),
        (record(S.SUSPENDED, 7001), None, 10, Fate.CLOSE),
        (record(S.CLOSED, 29), None, 10**6, Fate.KEEP),
        (record(S.CLOSED, 31), None, 10, Fate.FORGET),
        (record(S.FAILED, 999), None, 10**6, Fate.KEEP),
        (record(S.FAILED, 1001), None, 10, Fate.FORGET),
        (None, record(S.RUNNING), 999, Fate.KEEP),
        (None, record(S.RUNNING), 1001, Fate.FORGET),
        (None, record(S.SUSPENDED), 6999, Fate.KEEP),
        (None, record(S.SUSPENDED), 7001, Fate.FORGET),
        (None, None, 999, Fate.KEEP),
        (None, None, 1001, Fate.FORGET),
    ],
)
def test_what_becomes_of_checkpoints(stored, noted, age_s, expected):
    assert fate(stored, noted, age_s, NOW, KEEP) is expected


@pytest.mark.parametrize(
    ("change", "stored", "expected"),
    [
        ({}, record(S.RUNNING), False),
        ({"idle_s": 299.0}, None, False),
        ({}, None, True),
        ({}, record(S.SUSPENDED), True),
        ({}, record(S.CLOSED), True),
        ({"incarnation": "i9"}, record(S.RUNNING), True),
        ({"actor": "a9"}, record(S.RUNNING), True),
        ({"stage": "b"}, record(S.RUNNING), True),
        ({}, replace(record(S.RUNNING), gateway="dead"), True),
        ({"idle_s": 1.0}, replace(record(S.RUNNING), gateway="dead"), False),
        ({"actor": "a9"}, replace(record(S.OPENING), epoch=1, nonce="n"), False),
        ({"actor": "a9"}, replace(record(S.OPENING), epoch=2, nonce="n"), True),
        ({"actor": "a9"}, replace(record(S.OPENING), epoch=1, nonce="n", gateway="dead"), True),
    ],
)
def test_which_states_are_orphans(change, stored, expected):
    there = Resident("s", "a", Epoch(1, "n"), 301.0, "m", "a0", "i0")
    assert is_orphan(replace(there, **change), stored, {"g1"}, KEEP) == expected


@pytest.mark.parametrize(
    ("manifests", "has_checkpoints", "expected"),
    [((), True, S.SUSPENDED), (({"seq": 1},), True, S.SUSPENDED), (({"seq": 1},), False, S.CLOSED), ((), False, None)],
)
def test_what_a_session_is_that_nobody_runs(manifests, has_checkpoints, expected):
    assert left(replace(record(S.RUNNING), manifests=manifests), has_checkpoints) is expected


def test_silence_begins_anew_with_each_write_and_each_time_a_record_is_new():
    silence, written = Silence(), record(S.RUNNING)
    assert silence.of([written], 100.0) == [0.0]
    assert silence.of([written], 160.0) == [60.0]
    again = replace(written, version=written.version + 1)
    assert silence.of([again], 200.0) == [0.0]
    assert silence.of([], 230.0) == []
    assert silence.of([again], 260.0) == [0.0]


async def opened(w, host, client, frames=16):
    hosted = await host.create(SessionWish("g", PARAMS))
    await client.read(hosted.runner, frames)
    return hosted


def test_a_round_leaves_live_sessions_and_those_put_away_alone(w, clock, run, host_on):
    async def body():
        world = w.World(clock)
        host = host_on(world, GRAPHS, orphan_s=300.0, retention_s=7000.0, service={"idle_timeout_s": 0.0})
        reaper = Reaper(host, host.vault, host.config.checkpoints)
        lives, away, ended = [await opened(w, host, w.Client()) for _ in range(3)]
        await host.suspend(away.runner.record.id, "for the night")
        await host.close(ended.runner.record.id, "enough")
        kept = sorted(hosted.runner.record.id for hosted in (lives, away))
        assert await world.blobs.sessions() == kept
        await lives.runner.control(_pause(True))
        await clock.advance(5000)
        await reaper.round()
        assert await world.blobs.sessions() == kept
        assert world.states() == 1
        await clock.advance(2500)
        await reaper.round()
        assert await world.blobs.sessions() == [lives.runner.record.id]
        closed = await host.elsewhere.record(away.runner.record.id)
        assert (closed.state, "nobody came back for 7000 s" in closed.reason) == (S.CLOSED, True)
        await lives.runner.control(_pause(False, 2))
        more = w.Client()
        await more.read(lives.runner, 4)
        await host.close_all("over")

    run(body())


def _pause(on, revision=1):
    from riverrun.models.base import Control

    return Control(revision, "pause", on)


def test_states_and_checkpoints_that_a_dead_gateway_left_go_in_time(w, clock, run, host_on):
    async def body():
        world = w.World(clock)
        first = host_on(world, GRAPHS, "g1")
        hosted = await opened(w, first, w.Client())
        await world.crash(hosted.runner)
        second = host_on(world, GRAPHS, "g2", orphan_s=300.0, evidence_s=9000.0)
        reaper = Reaper(second, second.vault, second.config.checkpoints)
        await reaper.round()
        assert world.states() == 1
        await clock.advance(301)
        await reaper.round()
        assert world.states() == 0  # its place is free; the session can go on from its checkpoints
        assert await world.blobs.sessions() == [hosted.runner.record.id]
        stored = await world.store.get(hosted.runner.record.id)
        assert (stored.state, stored.epoch) == (S.SUSPENDED, 2)  # and says so
        await world.store.delete(hosted.runner.record.id)
        await reaper.round()
        assert await world.blobs.sessions() == [hosted.runner.record.id]
        await clock.advance(9001)
        await reaper.round()
        assert await world.blobs.sessions() == []
        assert not world.blobs.paths

    run(body())


@pytest.mark.parametrize("was_put_away", [False, True])
def test_a_take_over_that_takes_longer_than_an_orphan_may_is_left_in_peace(w, clock, run, host_on, was_put_away):
    """Its last stage is put on an actor that only answers after minutes, the others stand and wait."""

    async def body():
        world, keep = w.World(clock), {"orphan_s": 60.0, "service": {"idle_timeout_s": 0.0}}
        first, second, third = (host_on(world, {"chain": w.CHAIN}, name, **keep) for name in ("g1", "g2", "g3"))
        hosted, client = await first.create(SessionWish("chain", CHAIN_PARAMS)), w.Client()
        session = hosted.runner.record.id
        await client.read(hosted.runner, 16)
        if was_put_away:
            await first.suspend(session, "for the night")
        else:
            await world.crash(hosted.runner)
            world.kill("a0")
            world.kill("a1")
        answers = asyncio.Event()

        async def slow(what: str) -> None:
            if world.states() and not answers.is_set():
                await answers.wait()

        world.hop = slow
        reaching = asyncio.create_task(second.reach(session, hosted.token, {"frames": 16}))
        reaper = Reaper(third, third.vault, third.config.checkpoints)
        for _ in range(11):  # all within what an actor may take to restore a State
            await clock.advance(10)
            await world.store.heartbeat("g2", "here", 30.0)
            await reaper.round()
        assert not reaching.done()
        assert world.states() == 1
        answers.set()
        back = await reaching
        assert (await world.store.get(session)).epoch == 2
        await client.read(back.runner, 40)
        assert client.numbers == list(range(40))
        await second.close_all("over")

    run(body())


def test_a_session_whose_end_the_store_forgot_is_ended_again(w, clock, run, host_on):
    async def body():
        world = w.World(clock)
        host = host_on(world, GRAPHS, orphan_s=300.0)
        reaper = Reaper(host, host.vault, host.config.checkpoints)
        hosted = await opened(w, host, w.Client(), frames=80)
        await clock.advance(6)
        before = dict(world.store._records)
        await host.close(hosted.runner.record.id, "enough")
        world.store._records = before  # failed over, the last write lost
        await clock.advance(0)
        await reaper.round()
        await clock.advance(301)
        await reaper.round()
        stored = await world.store.get(hosted.runner.record.id)
        assert stored.state is S.CLOSED

    run(body())


def test_a_session_that_was_taken_over_meanwhile_keeps_its_state(w, clock, run):
    """The reaper closes with the epoch it saw; a newer runner's State is not its to close."""
    from riverrun.graphs.stage import OpenRequest, StaleEpoch

    async def body():
        world = w.World(clock)
        worker = world.actors["a0"].worker
        worker.open(OpenRequest("s/a", Epoch(1, "old"), PARAMS, 1))
        await clock.advance(400)
        (seen,) = worker.residents()
        assert (seen.session, seen.stage, seen.idle_s) == ("s", "a", 400.0)
        worker.attach("s/a", Epoch(2, "new"))
        assert worker.residents()[0].idle_s == 0.0
        with pytest.raises(StaleEpoch):
            worker.close("s/a", seen.epoch)
        assert world.states() == 1

    run(body())


def test_nothing_is_reaped_while_the_store_may_have_forgotten(w, clock, run, host_on):
    async def body():
        from riverrun.models.base import Unavailable

        world = w.World(clock)
        host = host_on(world, GRAPHS, orphan_s=0.1, evidence_s=0.1, service={"store_grace_s": 10.0})
        reaper = Reaper(host, host.vault, host.config.checkpoints)
        hosted = await opened(w, host, w.Client())
        await reaper.round()
        await world.crash(hosted.runner)
        host._hosted.clear()
        world.store.wipe()
        with pytest.raises(Unavailable, match="the store came back"):
            await reaper.round()
        assert await world.blobs.sessions() == [hosted.runner.record.id]
        assert world.states() == 1
        await clock.advance(11)
        await reaper.round()
        assert await world.blobs.sessions() == []
        assert world.states() == 0

    run(body())
