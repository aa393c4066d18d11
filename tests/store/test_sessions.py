"""The rules of a session store, for the one in memory and the one in Redis alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from riverrun.models.base import BadRequest
from riverrun.store.records import Conflict, ControlEntry, Placement, PortMark, SessionRecord, SessionState, Store, Ttls
from riverrun.store.sessions import INDEX, SessionStore


def record(name: str = "a", **fields: Any) -> SessionRecord:
    return SessionRecord(id=name, graph="generate", nonce=f"nonce of {name}", **fields)


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < until, "did not come true in time"
        await asyncio.sleep(0.01)


def test_a_record_comes_back_as_it_was(with_store):
    async def body(store: Store) -> None:
        full = record(
            params={"gen": {"prompt": "a red ball", "steps": 4}},
            placement={"gen": Placement("gen-0", "longlive-world", "i1", "ab12")},
            ports={"frames": PortMark(3, 27, 20, 12)},
            steps={"gen": 3},
            folded=(ControlEntry(1, "prompt", "blue", "gen", 2, 2),),
            created=12.5,
        )
        made = await store.create(full)
        assert made == replace(full, version=1)
        assert await store.get("a") == made
        assert await store.get("b") is None

    with_store(body)


def test_create_is_idempotent_by_client_id_while_the_session_lives(with_store):
    async def body(store: Store) -> None:
        first = await store.create(record("a", client_id="mine"))
        assert (await store.create(record("b", client_id="mine"))).id == "a"
        assert await store.get("b") is None
        assert (await store.create(record("c", client_id="mine", tenant="other"))).id == "c"
        await store.update(replace(first, state=SessionState.CLOSED))
        assert (await store.create(record("d", client_id="mine"))).id == "d"
        assert (await store.create(record("e", client_id="mine"))).id == "d"

    with_store(body)


def test_many_creators_with_one_client_id_get_one_session(with_store):
    async def body(store: Store) -> None:
        made = await asyncio.gather(*(store.create(record(f"s{i}", client_id="mine")) for i in range(8)))
        assert len({r.id for r in made}) == 1
        assert [r.id for r in (await store.page()).records] == [made[0].id]

    with_store(body)


def test_update_compares_version_epoch_and_nonce(with_store):
    async def body(store: Store) -> None:
        first = await store.create(record())
        second = await store.update(replace(first, state=SessionState.RUNNING))
        assert (second.version, (await store.get("a")).state) == (2, SessionState.RUNNING)
        for stale in (first, replace(second, epoch=2), replace(second, nonce="another"), record("gone", version=1)):
            with pytest.raises(Conflict):
                await store.update(stale)
        assert await store.get("a") == second

    with_store(body)


def test_taking_over_fences_the_old_runner_off(with_store):
    async def body(store: Store) -> None:
        old = await store.create(record())
        with pytest.raises(BadRequest, match="above 1"):
            await store.take("a", old.version, 1, "new")
        new = await store.take("a", old.version, 2, "new")
        assert (new.epoch, new.nonce, new.version) == (2, "new", 2)
        with pytest.raises(Conflict):
            await store.update(old)
        with pytest.raises(Conflict):
            await store.log(old, ControlEntry(1, "prompt"))
        with pytest.raises(Conflict):
            await store.take("a", old.version, 3, "third")
        assert (await store.update(new)).version == 3

    with_store(body)


def test_pages_newest_first_with_and_without_ended_ones(with_store):
    async def body(store: Store) -> None:
        for i in range(7):
            made = await store.create(record(f"s{i}", created=100.0 + i // 2))  # some at the same time
            if i == 3:
                await store.update(replace(made, state=SessionState.CLOSED))

        async def walk(**options: Any) -> list[str]:
            seen, token = [], ""
            while True:
                page = await store.page(size=2, token=token, **options)
                assert len(page.records) <= 2
                seen += [r.id for r in page.records]
                if not (token := page.token):
                    return seen

        assert await walk() == ["s6", "s5", "s4", "s2", "s1", "s0"]
        assert await walk(include_ended=True) == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]
        await store.delete("s5")
        assert "s5" not in await walk()
        with pytest.raises(BadRequest, match="page token"):
            await store.page(token="nonsense")

    with_store(body)


def test_the_control_log_is_in_order_and_cut_with_the_record(with_store):
    async def body(store: Store) -> None:
        made = await store.create(record())
        assert await store.read_log("a") == ()
        for i in range(10):
            await store.log(made, ControlEntry(i, "prompt", {"text": f"prompt {i}"}))
        assert [e.revision for e in await store.read_log("a")] == list(range(10))
        with pytest.raises(Conflict):
            await store.update(replace(made, version=7), 3)
        made = await store.update(made, 6)
        assert [e.revision for e in await store.read_log("a")] == [6, 7, 8, 9]
        await store.update(made)
        assert (await store.read_log("a"))[0] == ControlEntry(6, "prompt", {"text": "prompt 6"})
        await store.delete("a")
        assert await store.read_log("a") == ()

    with_store(body)


def test_who_writes_may_say_how_many_lines_there_are(with_store):
    """So that a store which has lost some takes none after the gap, and a line that comes twice is there once."""

    async def body(store: Store) -> None:
        made = await store.create(record())
        for i in range(2):
            await store.log(made, ControlEntry(i, "prompt"), i)
        with pytest.raises(Conflict):
            await store.log(made, ControlEntry(1, "prompt"), 1)
        with pytest.raises(Conflict):
            await store.log(made, ControlEntry(3, "prompt"), 3)
        with pytest.raises(Conflict):
            await store.update(made, 1, 3)
        assert [e.revision for e in await store.read_log("a")] == [0, 1]
        made = await store.update(made, 1, 2)
        await store.log(made, ControlEntry(2, "prompt"), 1)
        assert [e.revision for e in await store.read_log("a")] == [1, 2]

    with_store(body)


def test_an_ended_record_expires(with_store):
    async def body(store: Store) -> None:
        made = await store.create(record(client_id="mine"))
        await store.log(made, ControlEntry(1, "prompt"))
        await store.create(record("lives"))
        await store.update(replace(made, state=SessionState.FAILED))
        assert (await store.get("a")).state is SessionState.FAILED

        async def gone() -> bool:
            return await store.get("a") is None and await store.read_log("a") == ()

        await eventually(gone)
        assert [r.id for r in (await store.page(include_ended=True)).records] == ["lives"]

    with_store(body, ttls=Ttls(ended_s=0.2))


@pytest.mark.parametrize(
    ("ttls", "gone"),
    [
        (Ttls(live_s=0.2), {"live"}),
        (Ttls(suspended_s=0.2), {"put away"}),
        (Ttls(ended_s=0.2), {"closed", "failed"}),
    ],
)
def test_how_long_a_record_is_kept_goes_by_its_state(with_store, ttls, gone):
    states = {
        "live": SessionState.RUNNING,
        "put away": SessionState.SUSPENDED,
        "closed": SessionState.CLOSED,
        "failed": SessionState.FAILED,
    }

    async def body(store: Store) -> None:
        for name, state in states.items():
            made = await store.create(record(name, client_id=name))
            await store.log(made, ControlEntry(1, "prompt"))
            await store.update(replace(made, state=state))

        async def left() -> bool:
            return {name for name in states if await store.get(name) is None} == gone

        await eventually(left)
        for name in states:
            assert bool(await store.read_log(name)) == (name not in gone)
        await store.check()

    with_store(body, ttls=ttls)


def test_a_session_that_goes_on_is_kept_as_a_live_one_again(with_store):
    async def body(store: Store) -> None:
        made = await store.create(record())
        away = await store.update(replace(made, state=SessionState.SUSPENDED))
        taken = await store.take("a", away.version, 2, "new")
        assert taken.state is SessionState.SUSPENDED
        await store.update(replace(taken, state=SessionState.RUNNING))

        async def gone() -> bool:
            return await store.get("a") is None

        await eventually(gone)

    with_store(body, ttls=Ttls(live_s=0.2))


def test_a_store_has_a_name_until_it_loses_everything(with_store):
    async def body(store: Store) -> None:
        first = await store.identity()
        assert await store.identity() == first
        await (store._redis.flushall() if isinstance(store, SessionStore) else _wiped(store))
        second = await store.identity()
        assert second.run == first.run
        assert second.born != first.born
        assert second.born_at >= first.born_at

    with_store(body)


async def _wiped(store: Any) -> None:
    store.wipe()


def test_the_index_shrinks_as_sessions_come_though_nobody_reads_it(server):
    async def body() -> None:
        store = SessionStore(server.url, ttls=Ttls(ended_s=0.02))

        async def none_left() -> bool:
            return not [key async for key in store._redis.scan_iter("rr:{old*")]

        await store._redis.flushall()
        for n in range(40):
            made = await store.create(record(f"old {n}"))
            await store.update(replace(made, state=SessionState.CLOSED))
        await eventually(none_left)
        for n in range(60):
            await store.create(record(f"new {n}"))
        assert await store._redis.zcard(INDEX) <= 80  # 100 ever came
        await store.close()

    asyncio.run(asyncio.wait_for(body(), 20))


@pytest.mark.parametrize("url", ["localhost:6379", "http://x"])
def test_another_kind_of_url_is_refused(url):
    with pytest.raises(BadRequest, match="redis_url: Redis URL must specify one of"):
        SessionStore(url)


def test_a_gateway_that_is_silent_is_forgotten(with_store):
    async def body(store: Store) -> None:
        await store.heartbeat("g1", "10.0.0.1:8080", ttl_s=60)
        await store.heartbeat("g2", "10.0.0.2:8080", ttl_s=0.2)
        assert (await store.gateways())["g1"] == "10.0.0.1:8080"

        async def gone() -> bool:
            return dict(await store.gateways()) == {"g1": "10.0.0.1:8080"}

        await eventually(gone)

    with_store(body)


def test_a_session_has_a_constant_number_of_keys(server):
    from riverrun.store.sessions import SessionStore

    async def body() -> None:
        store = SessionStore(server.url)
        await store._redis.flushall()
        made = await store.create(record(client_id="mine"))
        counts = set()
        for i in range(20):
            await store.log(made, ControlEntry(i, "prompt"))
            made = await store.update(made)
            counts.add(await store._redis.dbsize())
        assert counts == {4}  # record, log, client id, index
        assert await store._redis.ttl("rr:{a}:record") > 0
        await store.close()

    asyncio.run(body())


def test_the_places_of_a_tenant_are_counted_until_its_sessions_end(with_store):
    async def body(store: Store) -> None:
        await store.heartbeat("here", "x:1", ttl_s=60)
        await store.heartbeat("there", "x:2", ttl_s=60)
        made = [await store.create(record(n, tenant="acme", gateway="here", created=1.0)) for n in "abcde"]
        assert [await store.admit(one, 2) for one in made[:3]] == [True, True, False]
        assert await store.admit(made[0], 2)
        other = await store.create(record("x", tenant="other", gateway="here"))
        assert await store.admit(other, 1)
        ended = await store.update(replace(made[0], state=SessionState.CLOSED))
        assert await store.admit(made[2], 2)
        assert not await store.admit(made[3], 2)
        await store.delete("b")
        assert await store.admit(made[3], 2)
        assert not await store.admit(made[4], 2)
        taken_over = await store.update(replace(made[2], gateway="gone"))
        assert await store.admit(made[4], 2)
        await store.update(replace(taken_over, gateway="there"))
        assert not await store.admit(await store.create(record("f", tenant="acme", gateway="here")), 3)
        assert ended.state.ended

    with_store(body)


def test_two_gateways_can_not_give_the_last_place_away_twice(with_store):
    async def body(store: Store) -> None:
        await store.heartbeat("here", "x:1", ttl_s=60)
        made = [await store.create(record(f"s{n}", tenant="acme", gateway="here")) for n in range(8)]
        assert sum(await asyncio.gather(*(store.admit(one, 3) for one in made))) == 3

    with_store(body)


def test_a_page_of_one_tenant_tells_nothing_of_another(with_store):
    async def body(store: Store) -> None:
        for number in range(6):
            await store.create(record(f"s{number}", tenant="ab"[number % 2], created=float(number)))
        first = await store.page(2, tenant="a")
        assert [r.id for r in first.records] == ["s4", "s2"]
        assert first.token.endswith(":s2")
        last = await store.page(2, first.token, tenant="a")
        assert ([r.id for r in last.records], last.token) == (["s0"], "")
        assert len((await store.page(9)).records) == 6

    with_store(body)
