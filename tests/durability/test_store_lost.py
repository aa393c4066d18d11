"""The store is away, comes back, comes back empty: streams go on, nothing is granted too early, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from riverrun.actors.errors import Denied, NotFound
from riverrun.actors.grants import Grants
from riverrun.actors.host import SessionWish
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.waiting import SystemClock
from riverrun.models.base import Unavailable
from riverrun.store.checkpoints import Manifest, Mark
from riverrun.store.embedded import EmbeddedServer
from riverrun.store.memory import MemoryStore
from riverrun.store.rebuild import noted, rebuilt
from riverrun.store.records import SessionRecord, SessionState
from riverrun.store.sessions import SessionStore

S = SessionState
GRAPHS = {"g": Graph("g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})}
WISH = SessionWish("g", {"height": 4, "width": 4, "state_bytes": 64}, seed=3)
ENDLESS = {"service": {"idle_timeout_s": 0.0}}


class MayBeAway(MemoryStore):
    """Does not answer while `away`."""

    away = False

    def __getattribute__(self, name):
        if name in ("get", "create", "update", "take", "log", "identity", "gateways") and self.away:
            return _refuse
        return super().__getattribute__(name)


async def _refuse(*_):
    raise Unavailable("connection refused")


async def undisturbed(w, clock, host_on, frames):
    host = host_on(w.World(clock), GRAPHS, **ENDLESS)
    client = w.Client()
    await client.read((await host.create(WISH)).runner, frames)
    await host.close_all("over")
    return client.pixels


def test_while_the_store_is_away_streams_checkpoints_and_recovery_go_on_and_nothing_begins(w, clock, run, host_on):
    async def body():
        wanted = await undisturbed(w, clock, host_on, 96)
        world = w.World(clock)
        world.store = MayBeAway(now=clock.now)
        host = host_on(world, GRAPHS, **ENDLESS)
        hosted = await host.create(WISH)
        session, client = hosted.runner.record.id, w.Client()
        await client.read(hosted.runner, 8)
        world.store.away = True
        await client.read(hosted.runner, 48)
        before = {m.mark.seq for m in await world.blobs.manifests(session)}
        world.kill(hosted.runner.record.placement["a"].actor)
        await client.read(hosted.runner, 96)
        after = {m.mark.seq for m in await world.blobs.manifests(session)}
        assert max(after) > max(before) > 3
        assert client.pixels == wanted
        with pytest.raises(Unavailable, match="connection refused"):
            await host.create(WISH)
        with pytest.raises(Unavailable, match="connection refused"):
            await host_on(world, GRAPHS, "g2").reach(session, hosted.token)
        world.store.away = False
        await clock.advance(20)  # the runner writes every few seconds
        stored = await world.store.get(session)
        assert stored.placement == hosted.runner.record.placement
        assert {m["mark"]["seq"] for m in stored.manifests} <= after
        await host.create(WISH)
        await host.close_all("over")

    run(body())


@pytest.mark.parametrize("loses", [False, True])
def test_after_a_restart_nothing_is_granted_for_a_while_and_runners_tell_of_their_sessions(
    w, clock, run, host_on, loses
):
    async def body():
        world = w.World(clock)
        host = host_on(world, GRAPHS, **ENDLESS)
        hosted = await host.create(WISH)
        session, client = hosted.runner.record.id, w.Client()
        await client.read(hosted.runner, 40)
        world.store.run = "another"
        if loses:
            world.store.wipe()
        for host_of in (host, host_on(world, GRAPHS, "g2")):
            if host_of is host:
                with pytest.raises(Unavailable, match="sessions that run come first: try again in 10 s"):
                    await host.create(WISH)
                with pytest.raises(Unavailable, match="sessions that run come first"):
                    await host.elsewhere.record("of another gateway, perhaps")
            elif loses:  # this one never saw the old store, but the new one is too young to be believed
                with pytest.raises(Unavailable, match="sessions that run come first"):
                    await host_of.reach(session, hosted.token)
        await clock.advance(9)
        assert (await world.store.get(session)).epoch == hosted.runner.record.epoch  # told again
        with pytest.raises(Unavailable, match="try again in 1 s"):
            await host.create(WISH)
        await clock.advance(2)
        await host.create(WISH)
        await client.read(hosted.runner, 48)
        assert client.numbers == list(range(48))
        await host.close_all("over")

    run(body())


def test_a_session_that_was_put_away_outlives_the_loss_of_its_record(w, clock, run, host_on):
    async def body():
        wanted = await undisturbed(w, clock, host_on, 32)
        world = w.World(clock)
        host = host_on(world, GRAPHS, **ENDLESS)
        hosted = await host.create(WISH)
        session, client = hosted.runner.record.id, w.Client()
        await client.read(hosted.runner, 13)
        await host.suspend(session, "for the night")
        was = await world.store.get(session)
        world.store.wipe()
        await clock.advance(30_000)
        other = host_on(world, GRAPHS, "g2", **ENDLESS)
        with pytest.raises(Unavailable, match="sessions that run come first"):
            await other.reach(session, hosted.token)  # the store has just been given its name
        await clock.advance(11)
        with pytest.raises(Denied):
            await other.reach(session, "a guess")
        with pytest.raises(NotFound):
            await other.reach("another", hosted.token)
        with pytest.raises(NotFound):
            await other.reach("../" + session, hosted.token)
        back = (await other.reach(session, hosted.token, {"frames": 13})).runner
        assert back.record.epoch > was.epoch
        assert (back.record.seed, back.record.params, back.record.token_digest) == (
            was.seed,
            was.params,
            was.token_digest,
        )
        await client.read(back, 32)
        assert client.numbers == list(range(32))
        assert client.pixels == wanted
        await other.close_all("over")

    run(body())


def manifest(epoch: int, state: SessionState | None, created: float = 1.0, session: str = "s") -> Manifest:
    record = SessionRecord(session, "g", state=state, reason="why", epoch=1).to_json() if state else "{"
    return Manifest("s", "a", epoch, "n", "exact", Mark(epoch), record=record, created=created)


def test_what_checkpoints_tell():
    assert noted([]) is None
    assert noted([manifest(1, None)]) is None
    assert noted([manifest(1, S.RUNNING, session="other")]) is None
    found = noted([manifest(1, S.RUNNING), manifest(3, S.SUSPENDED), manifest(4, None)])
    assert found
    assert (found.state, found.epoch) == (S.SUSPENDED, 4)
    assert noted([manifest(1, S.SUSPENDED, 2.0), manifest(1, S.RUNNING, 3.0)]).state is S.RUNNING
    away = rebuilt(replace(found, version=9), 10**6)
    assert (away.state, away.reason, away.version) == (S.SUSPENDED, "why", 0)
    ran = replace(found, state=S.RUNNING)
    assert rebuilt(ran, 60.0).state is S.SUSPENDED
    assert rebuilt(ran, 4000.0) is None  # it may have failed since, and its record have expired
    assert rebuilt(None, 1.0) is None


class Linked:
    """A real store server behind one address, whatever its own is."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.link = folder, folder / "link.sock"
        self._server: EmbeddedServer | None = None

    def start(self, forgets: bool = False) -> None:
        if forgets:
            shutil.rmtree(self._folder / "data")
        self._server = EmbeddedServer(self._folder / "data")
        self._server.start()
        self.link.unlink(missing_ok=True)
        os.symlink(self._server.url.removeprefix("unix://"), self.link)

    def stop(self) -> None:
        if self._server:
            self._server.stop()


@pytest.mark.parametrize("forgets", [False, True])
def test_a_real_server_is_restarted_with_and_without_its_data(w, run, host_on, tmp_path_factory, forgets):
    async def told(store, session, epoch):
        """Returns when the store has the session as its runner left it."""
        async with asyncio.timeout(60):
            while True:
                found = await store.get(session)
                if found and found.epoch == epoch:
                    return
                await asyncio.sleep(0.02)

    async def body():
        clock = SystemClock()
        server = Linked(tmp_path_factory.mktemp("s"))
        server.start()
        store = SessionStore(f"unix://{server.link}", timeout_s=2.0)
        world = w.World(clock)
        world.store = store
        options = {"service": {"idle_timeout_s": 0.0, "store_grace_s": 1.0}}
        host = host_on(world, GRAPHS, **options)
        lives, away = await host.create(WISH), await host.create(WISH)
        client, other = w.Client(), w.Client()
        await client.read(lives.runner, 8)
        await other.read(away.runner, 13)
        await host.suspend(away.runner.record.id, "for the night")
        try:
            server.stop()
            await client.read(lives.runner, 24)
            with pytest.raises(Unavailable, match="does not answer"):
                await host.create(WISH)
            with pytest.raises(Unavailable, match="does not answer"):
                await host.reach(away.runner.record.id, away.token)
            server.start(forgets)
            with pytest.raises(Unavailable, match="sessions that run come first"):
                await host.create(WISH)
            await told(store, lives.runner.record.id, lives.runner.record.epoch)
            async with asyncio.timeout(60):
                while True:
                    try:
                        back = (await host.reach(away.runner.record.id, away.token, {"frames": 13})).runner
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)
            await other.read(back, 32)
            await client.read(lives.runner, 32)
            assert client.numbers == other.numbers == list(range(32))
            assert client.pixels == other.pixels  # one seed: two streams alike
            await (await host.create(WISH)).runner.close("enough")
            await host.close_all("over")
            assert world.states() == 0
        finally:
            await store.close()
            server.stop()

    run(body())


def test_a_new_store_keeps_nobody_waiting(clock, run):
    async def body():
        grants = Grants(MemoryStore(now=clock.now), clock, 10.0)
        await grants.check()
        with pytest.raises(Unavailable, match="try again in 10 s"):
            await grants.check_lost()
        await clock.advance(10)
        await grants.check_lost()

    run(body())
