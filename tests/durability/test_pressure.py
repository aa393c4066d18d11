"""Where there is no room, the session left alone longest makes some; and one left alone is put away in time."""

from __future__ import annotations

import pytest

from riverrun.actors.host import SessionWish
from riverrun.actors.sessions import NoRoom
from riverrun.cluster.pressure import Resting, victim
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.store.records import SessionState

GRAPHS = {"g": Graph("g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")})}
WISH = SessionWish("g", {"height": 4, "width": 4, "state_bytes": 64})


def resting(name: str, alone_s: float | None, *models: str) -> Resting:
    return Resting(name, frozenset(models or ("m",)), alone_s)


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([], None),
        ([resting("a", 4.9)], None),
        ([resting("a", 5.0)], "a"),
        ([resting("a", None), resting("b", 6.0)], "b"),
        ([resting("a", 7.0), resting("b", 9.0), resting("c", 8.0)], "b"),
        ([resting("b", 9.0), resting("a", 9.0)], "a"),
        ([resting("a", 99.0, "other"), resting("b", 6.0, "m", "other")], "b"),
        ([resting("a", 99.0, "other")], None),
    ],
)
def test_who_makes_room(sessions, expected):
    assert victim(sessions, {"m", "n"}, 5.0) == expected


def full(w, clock, host_on, **options):
    """A gateway with two places."""
    world = w.World(clock, actors=2, places=1)
    options.setdefault("service", {"idle_timeout_s": 0.0})
    return world, host_on(world, GRAPHS, **options)


async def opened(w, host, clock):
    hosted = await host.create(WISH)
    client = w.Client()
    await client.read(hosted.runner, 8)
    await clock.advance(1)
    return hosted.runner, client, hosted.token


def test_the_one_left_alone_longest_is_put_away_and_comes_back(w, clock, run, host_on):
    async def body():
        world, host = full(w, clock, host_on)
        first, client, token = await opened(w, host, clock)
        second, _, _ = await opened(w, host, clock)
        with pytest.raises(NoRoom):
            await host.create(WISH)  # nobody has been away for long enough
        await clock.advance(5)
        third, _, _ = await opened(w, host, clock)
        assert (first.state, second.state, third.state) == (S.SUSPENDED, S.RUNNING, S.RUNNING)
        assert "its place was needed" in first.record.reason
        await clock.advance(10)
        received = {"frames": client.numbers[-1] + 1}
        back = (await host.reach(first.record.id, token, received)).runner  # it is taken up again, for another's place
        await client.read(back, 16)
        assert client.numbers == list(range(16))
        assert (second.state, third.state, back.state) == (S.SUSPENDED, S.RUNNING, S.RUNNING)
        host.check()
        await host.close_all("over")
        assert world.states() == 0

    run(body())


def test_nobody_who_is_there_has_to_go(w, clock, run, host_on):
    async def body():
        _, host = full(w, clock, host_on)
        runners = [(await opened(w, host, clock))[0] for _ in range(2)]
        readers = [runner.attach(w.Client().wish()) for runner in runners]
        await clock.advance(100)
        with pytest.raises(NoRoom):
            await host.create(WISH)
        assert all(runner.state is S.RUNNING for runner in runners)
        for reader in readers:
            reader.close()
        await host.close_all("over")

    run(body())


def test_a_tenant_with_its_quota_makes_nobody_leave(w, clock, run, host_on):
    async def body():
        from riverrun.configs.auth import AuthConfig, Quota

        service = {"idle_timeout_s": 0.0, "auth": AuthConfig(tenants={"t": Quota(sessions=1)})}
        world = w.World(clock)
        host = host_on(world, GRAPHS, service=service)
        await world.store.heartbeat("g1", "here", 10**9)
        wish = SessionWish(WISH.graph, WISH.params, tenant="t")
        runner = (await host.create(wish)).runner
        await clock.advance(100)
        with pytest.raises(NoRoom, match="its quota of 1"):
            await host.create(wish)
        assert runner.state is S.RUNNING
        await host.close_all("over")

    run(body())


@pytest.mark.parametrize("puts_away", [True, False])
def test_a_session_left_alone_is_put_away_or_ends(w, clock, run, host_on, puts_away):
    async def body():
        world, host = full(w, clock, host_on, suspend_idle=puts_away, service={"idle_timeout_s": 60.0})
        runner, client, token = await opened(w, host, clock)
        await clock.advance(70)
        await runner.ended()
        assert runner.state is (S.SUSPENDED if puts_away else S.CLOSED)
        assert "nobody was connected for 60 s" in runner.record.reason
        assert world.states() == 0
        assert bool(world.blobs.paths) == puts_away
        if puts_away:
            back = (await host.reach(runner.record.id, token, {"frames": 8})).runner
            await client.read(back, 16)
            assert client.numbers == list(range(16))
        await host.close_all("over")

    run(body())


S = SessionState
