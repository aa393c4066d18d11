"""What a gateway tells of sessions it no longer runs: nothing but what is so."""

import asyncio
from types import SimpleNamespace

import pytest

from riverrun.actors.directory import Placed
from riverrun.actors.elsewhere import as_seen
from riverrun.actors.host import SessionHost, SessionWish
from riverrun.configs import ServiceConfig
from riverrun.graphs import keeper
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.stage import OpenReply, StepReply
from riverrun.graphs.waiting import SystemClock
from riverrun.models.base import Description, Kind, Port, Unavailable
from riverrun.store.memory import MemoryStore
from riverrun.store.records import ANY, SessionRecord, SessionState

GRAPH = Graph("g", (StageSpec("gen", "m"),), {"frames": Endpoint("gen", "frames")})


class AwayStore(MemoryStore):
    """Takes no change while `away`. refused: how many it has not taken."""

    away, refused = False, 0

    async def update(self, record, drop=0, has=ANY):
        if self.away:
            self.refused += 1
            raise Unavailable("connection refused")
        return await super().update(record, drop, has)


class Idle:
    """A stage that makes nothing."""

    async def open(self, request):
        return OpenReply(Description((), (Port("frames", Kind.FRAMES),), 1, 16.0), "i1")

    async def step(self, request):
        return StepReply(request.seq, (), ready=False)

    async def close(self, session, epoch, life=None):
        pass


def host_on(store):
    placed = Placed(stages={"gen": Idle()}, encoders={}, placement={}, fields={"gen": frozenset()})
    directory = SimpleNamespace(
        graph=lambda name: GRAPH,
        place=lambda graph, session: asyncio.sleep(0, placed),
        settled=lambda session: None,
    )
    return SessionHost(directory, store, SystemClock(), ServiceConfig(), "here")


async def until(check):
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(keeper, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(keeper, "LAST_RETRY_S", 0.01)


async def ended_unseen(host, store):
    """The id of a session whose end the store has not been told of."""
    session = (await host.create(SessionWish("g", {}))).runner.record.id
    store.away = True
    await host.close(session, "enough")
    await until(lambda: host.find(session) is None)
    return session


def test_an_end_is_told_to_the_store_when_it_is_back():
    async def body():
        store = AwayStore()
        host = host_on(store)
        session = await ended_unseen(host, store)
        await until(lambda: store.refused > 3)
        (shown,) = await host.elsewhere.shown([await store.get(session)])
        assert (shown.state, "the store was away" in shown.reason) == (SessionState.FAILED, True)
        store.away = False
        async with asyncio.timeout(10):
            while not (stored := await store.get(session)).state.ended:
                await asyncio.sleep(0.001)
        assert (stored.state, stored.reason) == (SessionState.CLOSED, "enough")
        assert await host.elsewhere.shown([stored]) == [stored]

    asyncio.run(body())


def test_who_comes_while_stages_are_closed_hears_how_it_ended(monkeypatch):
    async def body():
        closing, may_end = asyncio.Event(), asyncio.Event()

        async def close(self, session, epoch, life=None):
            closing.set()
            await may_end.wait()

        monkeypatch.setattr(Idle, "close", close)
        host = host_on(MemoryStore())
        session = (await host.create(SessionWish("g", {}))).runner.record.id
        ending = asyncio.create_task(host.close(session, "enough"))
        await closing.wait()
        with pytest.raises(SessionEnded, match=f"session {session} is closed: enough"):
            await host.live(session)
        may_end.set()
        await ending

    asyncio.run(body())


def test_a_gateway_that_leaves_does_not_wait_for_the_store():
    async def body():
        store = AwayStore()
        host = host_on(store)
        await ended_unseen(host, store)
        async with asyncio.timeout(10):
            await host.close_all("leaving")
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(body())


@pytest.mark.parametrize(
    ("state", "gateway", "seen", "why"),
    [
        ("running", "other", "running", ""),
        ("running", "dead", "failed", "its gateway dead is gone"),
        ("draining", "here", "failed", "it has ended; the store was away, so why is not known"),
        ("closed", "dead", "closed", ""),
    ],
)
def test_as_seen(state, gateway, seen, why):
    record = SessionRecord("s", "g", state=SessionState(state), gateway=gateway)
    shown = as_seen(record, "here", {"here", "other"})
    assert (shown.state, shown.reason) == (SessionState(seen), why)
